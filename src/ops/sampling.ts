import { KtError } from "../errors.ts"
import { layouts } from "../native/abi.generated.ts"
import type { Backend } from "../native/backend.ts"
import { Slab } from "../native/memory.ts"
import { I32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { SamplerName, SamplingParams } from "../worker/protocol.ts"
import { backendOf, descOf, empty } from "./dispatch.ts"
import { DryRepetitions, isDryOn } from "./dry.ts"

const ROW = layouts.kt_sampling_row
const ROW_WORDS = ROW.size / 4
const FIELDS = ROW.fields

/** out[r] = index of the greatest logit, the lowest of equals; NaN never wins. logits [rows, vocab] F32 -> [rows] I32. */
export function argmax(logits: Tensor, out = empty(logits, [logits.dim(0)], I32)): Tensor {
  const backend = backendOf("argmax", logits, out)
  backend.check(backend.library.kt_argmax(backend.ctx, logits.desc, out.desc), "argmax")
  return out
}

/**
 * Forbids tokens, in place: logits [rows, vocab] F32 are minus infinity where bit t % 32 of bits[r][t / 32] is 0.
 * bits [rows, ceil(vocab / 32)] I32.
 */
export function maskLogits(logits: Tensor, bits: Tensor): void {
  const backend = backendOf("maskLogits", logits, bits)
  backend.check(backend.library.kt_mask_logits(backend.ctx, logits.desc, bits.desc), "maskLogits")
}

export interface Logprobs {
  /** Of the given tokens, [rows] F32. */
  readonly token: Tensor
  /** The best tokens, best first, [rows, n] I32, and their log-probabilities, [rows, n] F32; null when n is 0. */
  readonly topIds: Tensor | null
  readonly topLogprobs: Tensor | null
}

/** Natural log-probabilities under softmax(logits). logits [rows, vocab] F32, tokens [rows] I32. */
export function logprobs(logits: Tensor, tokens: Tensor, n: number): Logprobs {
  const backend = backendOf("logprobs", logits, tokens)
  const rows = logits.dim(0)
  if (!(Number.isInteger(n) && n >= 0 && n <= logits.dim(-1)))
    throw new KtError(`logprobs: n is ${n}, the vocabulary has ${logits.dim(-1)} tokens`)
  const token = empty(logits, [rows])
  const topIds = n > 0 ? empty(logits, [rows, n], I32) : null
  const topLogprobs = n > 0 ? empty(logits, [rows, n]) : null
  backend.check(
    backend.library.kt_logprobs(
      backend.ctx,
      logits.desc,
      tokens.desc,
      token.desc,
      descOf(topIds),
      descOf(topLogprobs),
    ),
    "logprobs",
  )
  return { token, topIds, topLogprobs }
}

/** Whether penalties look at the tokens before. */
function penalises(params: SamplingParams): boolean {
  return (
    (params.repetitionPenalty !== 1 ||
      params.presencePenalty !== 0 ||
      params.frequencyPenalty !== 0) &&
    params.penaltyLastN !== 0
  )
}

/** Whether the most probable token may be another than that of the greatest logit. */
export function changesLogits(params: SamplingParams): boolean {
  return penalises(params) || isDryOn(params) || (params.logitBias?.length ?? 0) > 0
}

/** The draws of one token, in [0, 1). */
export interface Draw {
  readonly uniform: number
  /** Whether xtc acts. */
  readonly xtc: number
}

/** 4 bits a sampler, the first in the lowest; 0 for the default. */
function orderWords({ samplers }: SamplingParams): readonly [low: number, high: number] {
  const words: [number, number] = [0, 0]
  for (const [i, name] of (samplers ?? []).entries())
    words[i >> 3] = (words[i >> 3] as number) | (SAMPLER_CODES[name] << (4 * (i & 7)))
  return words
}

export function isSamplerName(name: string): name is SamplerName {
  return Object.hasOwn(SAMPLER_CODES, name)
}

const SAMPLER_CODES: Readonly<Record<SamplerName, number>> = {
  penalties: 1,
  dry: 2,
  top_n_sigma: 3,
  top_k: 4,
  typ_p: 5,
  top_p: 6,
  min_p: 7,
  xtc: 8,
  temperature: 9,
}

/**
 * What the sampler needs of one sequence, in native memory: its parameters, and the ids that penalties and dry look at.
 * Made once per sequence; each new token is pushed.
 */
export class SamplingState {
  readonly params: SamplingParams
  readonly #backend: Backend
  readonly #penalises: boolean
  readonly #dry: DryRepetitions | undefined
  readonly #biasLength: number
  readonly #promptLength: number
  readonly #order: readonly [low: number, high: number]
  #history: Slab | null = null
  #ids: Int32Array = new Int32Array(0)
  #length = 0
  #bias: Slab | null = null
  #dryPenalties: Slab | null = null
  #mu: number

  constructor(backend: Backend, params: SamplingParams, prompt: ArrayLike<number>) {
    this.params = params
    this.#backend = backend
    this.#penalises = penalises(params)
    this.#dry = isDryOn(params) ? new DryRepetitions(params) : undefined
    this.#order = orderWords(params)
    this.#mu = 2 * (params.mirostatTau ?? MIROSTAT_TAU)
    const isHistoryRead = this.#penalises || this.#dry !== undefined
    this.#promptLength = isHistoryRead ? prompt.length : 0
    if (isHistoryRead && prompt.length > 0) {
      this.#reserve(prompt.length)
      this.#ids.set(prompt)
      this.#length = prompt.length
    }
    const bias = params.logitBias ?? []
    this.#biasLength = bias.length
    if (bias.length > 0) {
      this.#bias = new Slab(backend.library, bias.length * 8, { pinned: true })
      new Int32Array(this.#bias.view(0, bias.length * 4)).set(bias.map(([token]) => token))
      new Float32Array(this.#bias.view(bias.length * 4)).set(bias.map(([, value]) => value))
    }
  }

  /** Appends a token of the output. */
  push(token: number): void {
    if (!this.#penalises && this.#dry === undefined) return
    if (this.#length === this.#ids.length) this.#reserve(this.#length + 1)
    this.#ids[this.#length++] = token
  }

  #reserve(count: number): void {
    const slab = new Slab(this.#backend.library, Math.max(1024, count * 2) * 4, {
      pinned: true,
    })
    const ids = new Int32Array(slab.view())
    ids.set(this.#ids.subarray(0, this.#length))
    this.#history?.[Symbol.dispose]()
    this.#history = slab
    this.#ids = ids
  }

  /** Fills one kt_sampling_row_t, seen as words at `word`. */
  write(floats: Float32Array, words: Int32Array, word: number, draw: Draw): void {
    const { params } = this
    const put = (field: keyof typeof FIELDS, value: number): void => {
      floats[word + FIELDS[field] / 4] = value
    }
    put("temperature", params.temperature)
    put("top_p", params.topP)
    put("min_p", params.minP)
    put("repetition_penalty", params.repetitionPenalty)
    put("presence_penalty", params.presencePenalty)
    put("frequency_penalty", params.frequencyPenalty)
    put("uniform", belowOne(draw.uniform))
    put("typical_p", params.typicalP ?? 1)
    put("top_n_sigma", params.topNSigma ?? 0)
    put("xtc_probability", params.xtcProbability ?? 0)
    put("xtc_threshold", params.xtcThreshold ?? XTC_THRESHOLD)
    put("xtc_uniform", belowOne(draw.xtc))
    put("dynatemp_range", params.dynatempRange ?? 0)
    put("dynatemp_exponent", params.dynatempExponent ?? 1)
    put("mirostat_tau", params.mirostatTau ?? MIROSTAT_TAU)
    put("mirostat_eta", params.mirostatEta ?? MIROSTAT_ETA)
    put("mirostat_mu", this.#mu)
    words[word + FIELDS.mirostat / 4] = params.mirostat ?? 0
    words[word + FIELDS.top_k / 4] = params.topK
    words[word + FIELDS.order / 4] = this.#order[0]
    words[word + FIELDS.order / 4 + 1] = this.#order[1]
    this.#writeHistory(words, word)
    const bias = this.#bias?.address ?? 0
    putPointer(words, word + FIELDS.bias_ids / 4, bias)
    putPointer(words, word + FIELDS.bias_values / 4, bias === 0 ? 0 : bias + this.#biasLength * 4)
    words[word + FIELDS.bias_len / 4] = this.#biasLength
    this.#writeDry(words, word)
  }

  /** Takes back what the call changed of a row. */
  read(floats: Float32Array, word: number): void {
    if (this.params.mirostat) this.#mu = floats[word + FIELDS.mirostat_mu / 4] as number
  }

  #writeHistory(words: Int32Array, word: number): void {
    const lastN = this.params.penaltyLastN ?? -1
    const length = this.#penalises ? this.#length : 0
    const skipped = lastN < 0 ? 0 : Math.max(0, length - lastN)
    const address = length > 0 ? (this.#history as Slab).address + skipped * 4 : 0
    putPointer(words, word + FIELDS.history / 4, address)
    words[word + FIELDS.history_len / 4] = length - skipped
    words[word + FIELDS.prompt_len / 4] = length > 0 ? Math.max(0, this.#promptLength - skipped) : 0
  }

  #writeDry(words: Int32Array, word: number): void {
    const found = this.#dry?.find(this.#ids.subarray(0, this.#length)) ?? []
    words[word + FIELDS.dry_len / 4] = found.length
    if (found.length > 0 && (this.#dryPenalties?.bytes ?? 0) < found.length * 8) {
      this.#dryPenalties?.[Symbol.dispose]()
      this.#dryPenalties = new Slab(this.#backend.library, Math.max(64, found.length * 2) * 8, {
        pinned: true,
      })
    }
    const slab = this.#dryPenalties
    putPointer(words, word + FIELDS.dry_ids / 4, slab?.address ?? 0)
    const values = slab === null ? 0 : slab.address + found.length * 4
    putPointer(words, word + FIELDS.dry_penalties / 4, values)
    if (slab === null || found.length === 0) return
    const ids = new Int32Array(slab.view(0, found.length * 4))
    const penalties = new Float32Array(slab.view(found.length * 4, found.length * 4))
    for (const [i, [token, penalty]] of found.entries()) {
      ids[i] = token
      penalties[i] = penalty
    }
  }

  [Symbol.dispose](): void {
    this.#history?.[Symbol.dispose]()
    this.#bias?.[Symbol.dispose]()
    this.#dryPenalties?.[Symbol.dispose]()
    this.#history = null
    this.#bias = null
    this.#dryPenalties = null
  }
}

/** llama.cpp's values of what a request does not name. */
const XTC_THRESHOLD = 0.1
const MIROSTAT_TAU = 5
const MIROSTAT_ETA = 0.1

function belowOne(uniform: number): number {
  return uniform < 1 ? Math.min(uniform, BELOW_ONE) : uniform
}

/** The greatest f32 below 1: a double just below 1 would round to 1, which is no draw. */
const BELOW_ONE = 1 - 2 ** -24

function putPointer(words: Int32Array, index: number, address: number): void {
  words[index] = address % 4294967296
  words[index + 1] = Math.floor(address / 4294967296)
}

/** The rows of kt_sample calls, in native memory that grows with the batch and is kept. */
export class SamplingBatch {
  readonly #backend: Backend
  #slab: Slab | null = null
  #floats: Float32Array = new Float32Array(0)
  #words: Int32Array = new Int32Array(0)
  #capacity = 0

  constructor(backend: Backend) {
    this.#backend = backend
  }

  /**
   * One token a row: bias, the samplers in their order, then the inverse of the cumulative distribution at the uniform in
   * [0, 1) over what is left, most probable first (ties: the lower id). Temperature 0 is greedy.
   * logits [rows, vocab] F32 (left as they are), states and draws one a row -> [rows] I32.
   */
  sample(
    logits: Tensor,
    states: readonly SamplingState[],
    draws: readonly Draw[],
    out = empty(logits, [logits.dim(0)], I32),
  ): Tensor {
    const backend = backendOf("sample", logits, out)
    const rows = logits.dim(0)
    if (states.length !== rows || draws.length !== rows)
      throw new KtError(
        `sample: ${states.length} states and ${draws.length} draws for ${rows} rows of logits`,
      )
    const slab = this.#reserve(rows)
    for (let row = 0; row < rows; row++) {
      const state = states[row] as SamplingState
      state.write(this.#floats, this.#words, row * ROW_WORDS, draws[row] as Draw)
    }
    backend.check(
      backend.library.kt_sample(backend.ctx, logits.desc, slab.address, out.desc),
      "sample",
    )
    if (states.some(({ params }) => params.mirostat)) backend.synchronize()
    for (let row = 0; row < rows; row++)
      (states[row] as SamplingState).read(this.#floats, row * ROW_WORDS)
    return out
  }

  #reserve(rows: number): Slab {
    if (this.#slab !== null && rows <= this.#capacity) return this.#slab
    this.#slab?.[Symbol.dispose]()
    this.#capacity = Math.max(16, rows * 2)
    const slab = new Slab(this.#backend.library, this.#capacity * ROW.size, { pinned: true })
    const view = slab.view()
    this.#floats = new Float32Array(view)
    this.#words = new Int32Array(view)
    this.#slab = slab
    return slab
  }

  [Symbol.dispose](): void {
    this.#slab?.[Symbol.dispose]()
    this.#slab = null
    this.#capacity = 0
  }
}
