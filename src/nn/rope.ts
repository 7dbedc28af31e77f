import type { Backend } from "../native/backend.ts"
import { rope, ropeTable } from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import type { ForwardBatch } from "./forward-batch.ts"
import { Module, registerModules } from "./module.ts"

export const ROPE_TYPES = ["default", "linear", "dynamic", "yarn", "llama3", "longrope"] as const
export type RopeType = (typeof ROPE_TYPES)[number]

/** Everything that rotary position embedding needs, defaults filled in. */
export interface RopeConfig {
  readonly type: RopeType
  /** Base of the frequencies: theta^(-2i / rotary_dim). */
  readonly theta: number
  /** Leading dimensions of each head that rotate; even. */
  readonly rotary_dim: number
  /**
   * true: pairs (2i, 2i + 1); false: halves (i, i + rotary_dim / 2). A matter of how the checkpoint
   * orders the rows of q and k: GGUF's architecture llama has them permuted for pairs.
   */
  readonly interleaved: boolean
  /** Scale of the context; 1 = none. */
  readonly factor: number
  /**
   * Context before scaling: bounds of yarn and llama3, switch of longrope, start of dynamic NTK's
   * growth.
   */
  readonly original_max_position_embeddings: number
  /** Multiplies cos and sin. */
  readonly attention_factor: number
  /**
   * yarn: rotations over the original context above which a dimension is left alone, below which
   * interpolated.
   */
  readonly beta_fast: number
  readonly beta_slow: number
  /** yarn: whether the bounds are rounded to whole dimensions. */
  readonly truncate: boolean
  /** llama3: wavelengths above original / low are scaled, below original / high left alone. */
  readonly low_freq_factor: number
  readonly high_freq_factor: number
  /**
   * longrope: divisors of the frequencies up to and beyond the original context; rotary_dim / 2
   * each.
   */
  readonly short_factor: readonly number[] | undefined
  readonly long_factor: readonly number[] | undefined
  /** Divisors of the frequencies that a GGUF brings along (`rope_freqs.weight`); rotary_dim / 2. */
  readonly freq_factors: readonly number[] | undefined
}

/** One step's rotations, shared by its layers. */
export interface PositionEmbeddings {
  /** [tokens, rotary_dim]: cosines, then sines */
  readonly table: Tensor
  /** Pairs (2i, 2i + 1) rotate; otherwise (i, i + rotary_dim / 2). */
  readonly interleaved: boolean
}

/** Angles of rotary position embedding, with the scalings of the context that Transformers knows. */
export class RotaryEmbedding extends Module {
  readonly options: RopeConfig
  /** [1, n] F32 on each device, by class of lengths; 0 where the frequencies do not depend on the length. */
  readonly #frequencies = new Map<Backend, Map<number, Tensor>>()
  readonly #byLength = new Map<number, Float32Array>()

  constructor(options: RopeConfig) {
    super()
    this.options = options
  }

  override materialize(backend: Backend): void {
    if (!isLengthDependent(this.options)) this.#frequenciesOn(backend)
  }

  #frequenciesOn(backend: Backend, key = 0): Tensor {
    const own = this.#frequencies.get(backend) ?? new Map<number, Tensor>()
    this.#frequencies.set(backend, own)
    let frequencies = own.get(key)
    if (frequencies === undefined) {
      const values = inverseFrequencies(this.options, key)
      frequencies = Tensor.from(backend, values, [1, values.length], { persistent: true })
      own.set(key, frequencies)
    }
    return frequencies
  }

  /** The cos/sin table of a step's tokens, on the device of the batch. */
  forward(batch: ForwardBatch): PositionEmbeddings {
    const { attention_factor, interleaved } = this.options
    const frequencies = isLengthDependent(this.options)
      ? this.#perToken(batch)
      : this.#frequenciesOn(batch.positions.backend)
    return { table: ropeTable(batch.positions, frequencies, attention_factor), interleaved }
  }

  /** [1 or tokens, n]: every token has the frequencies of its own sequence's length. */
  #perToken(batch: ForwardBatch): Tensor {
    const { options } = this
    const { backend } = batch.positions
    const { original_max_position_embeddings: original, type } = options
    const key = lengthClass(options, batch.ropeLengths[0] as number)
    // classes that later steps have too: dynamic NTK beyond the original context has one a length
    const isCommon = type === "longrope" || key === original
    if (isCommon && batch.ropeLengths.every((length) => lengthClass(options, length) === key))
      return this.#frequenciesOn(backend, key)
    const n = options.rotary_dim / 2
    const out = new Float32Array(batch.numTokens * n)
    for (let t = 0; t < batch.numTokens; t++) {
      out.set(this.#forLength(batch.ropeLengths[t] as number), t * n)
    }
    return Tensor.from(backend, out, [batch.numTokens, n])
  }

  #forLength(length: number): Float32Array {
    const key = lengthClass(this.options, length)
    let values = this.#byLength.get(key)
    if (values === undefined) {
      // every decoded token is a new length of dynamic NTK: keep the recent ones only
      if (this.#byLength.size >= MAX_LENGTHS) this.#byLength.clear()
      values = inverseFrequencies(this.options, key)
      this.#byLength.set(key, values)
    }
    return values
  }
}

const MAX_LENGTHS = 256

/** Whether the frequencies follow the length of the sequence. */
export function isLengthDependent(options: RopeConfig): boolean {
  return options.type === "dynamic" || options.type === "longrope"
}

/** Lengths with the same frequencies have the same class. */
function lengthClass(options: RopeConfig, length: number): number {
  const original = options.original_max_position_embeddings
  if (options.type === "dynamic") return Math.max(length, original)
  return length > original ? original + 1 : original
}

/** Radians per position of each rotating pair, for a sequence of `length` tokens; computed in float64. */
export function inverseFrequencies(options: RopeConfig, length: number): Float32Array {
  const { rotary_dim: dim, theta, factor, freq_factors: divisors } = options
  const plain = (base: number): number[] =>
    Array.from({ length: dim / 2 }, (_, i) => base ** ((-2 * i) / dim))
  const scaled = ((): number[] => {
    switch (options.type) {
      case "default":
        return plain(theta)
      case "linear":
        return plain(theta).map((f) => f / factor)
      case "dynamic":
        return plain(dynamicBase(options, length))
      case "yarn":
        return yarnFrequencies(options, plain(theta))
      case "llama3":
        return plain(theta).map((f) => llama3Frequency(options, f))
      case "longrope": {
        const isLong = length > options.original_max_position_embeddings
        const list = (isLong ? options.long_factor : options.short_factor) ?? []
        return plain(theta).map((f, i) => f / (list[i] ?? 1))
      }
    }
  })()
  return Float32Array.from(scaled, (f, i) => f / (divisors?.[i] ?? 1))
}

/** NTK-aware scaling whose base grows with the length (Transformers' `_compute_dynamic_ntk_parameters`). */
function dynamicBase(options: RopeConfig, length: number): number {
  const { rotary_dim: dim, theta, factor, original_max_position_embeddings: original } = options
  const stretched = (factor * Math.max(length, original)) / original - (factor - 1)
  return theta * stretched ** (dim / (dim - 2))
}

/** NTK by parts (YaRN, arXiv 2309.00071, section 3.2): fast dimensions stay, slow ones are interpolated. */
function yarnFrequencies(options: RopeConfig, plain: readonly number[]): number[] {
  const { rotary_dim: dim, theta, factor, original_max_position_embeddings: original } = options
  const dimension = (rotations: number): number =>
    (dim * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta))
  let low = dimension(options.beta_fast)
  let high = dimension(options.beta_slow)
  if (options.truncate) {
    low = Math.floor(low)
    high = Math.ceil(high)
  }
  low = Math.max(low, 0)
  high = Math.min(high, dim - 1)
  if (low === high) high += 0.001
  return plain.map((f, i) => {
    const ramp = Math.min(Math.max((i - low) / (high - low), 0), 1)
    return (f / factor) * ramp + f * (1 - ramp)
  })
}

/** Llama 3.1: long wavelengths are divided, short ones kept, a smooth band between. */
function llama3Frequency(options: RopeConfig, f: number): number {
  const { factor, low_freq_factor: low, high_freq_factor: high } = options
  const { original_max_position_embeddings: original } = options
  const wavelength = (2 * Math.PI) / f
  if (wavelength < original / high) return f
  if (wavelength > original / low || low === high) return f / factor
  const smooth = (original / wavelength - low) / (high - low)
  return ((1 - smooth) * f) / factor + smooth * f
}

/** Rotates q and k [tokens, heads, dim] in place. */
export function applyRotary(q: Tensor, k: Tensor, positions: PositionEmbeddings): void {
  rope(q, positions.table, positions.interleaved)
  rope(k, positions.table, positions.interleaved)
}

registerModules({ RotaryEmbedding })
