import { KtError } from "../errors.ts"
import { layouts } from "../native/abi.generated.ts"
import type { Backend } from "../native/backend.ts"
import { Slab } from "../native/memory.ts"
import { I32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { SamplingParams } from "../worker/protocol.ts"
import { backendOf, descOf, empty } from "./dispatch.ts"

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

/**
 * What the sampler needs of one sequence, in native memory: its parameters, and the ids that the penalties look at.
 * Made once per sequence; each new token is pushed.
 */
export class SamplingState {
  readonly params: SamplingParams
  readonly #backend: Backend
  readonly #penalises: boolean
  readonly #biasLength: number
  readonly #promptLength: number
  #history: Slab | null = null
  #ids: Int32Array = new Int32Array(0)
  #length = 0
  #bias: Slab | null = null

  constructor(backend: Backend, params: SamplingParams, prompt: ArrayLike<number>) {
    this.params = params
    this.#backend = backend
    this.#penalises =
      params.repetitionPenalty !== 1 ||
      params.presencePenalty !== 0 ||
      params.frequencyPenalty !== 0
    this.#promptLength = this.#penalises ? prompt.length : 0
    if (this.#penalises && prompt.length > 0) {
      this.#reserve(prompt.length)
      this.#ids.set(prompt)
      this.#length = prompt.length
    }
    const bias = params.logitBias ?? []
    this.#biasLength = bias.length
    if (bias.length > 0) {
      this.#bias = new Slab(backend.library, bias.length * 8)
      new Int32Array(this.#bias.view(0, bias.length * 4)).set(bias.map(([token]) => token))
      new Float32Array(this.#bias.view(bias.length * 4)).set(bias.map(([, value]) => value))
    }
  }

  /** Appends a token of the output. */
  push(token: number): void {
    if (!this.#penalises) return
    if (this.#length === this.#ids.length) this.#reserve(this.#length + 1)
    this.#ids[this.#length++] = token
  }

  #reserve(count: number): void {
    const slab = new Slab(this.#backend.library, Math.max(1024, count * 2) * 4)
    const ids = new Int32Array(slab.view())
    ids.set(this.#ids.subarray(0, this.#length))
    this.#history?.[Symbol.dispose]()
    this.#history = slab
    this.#ids = ids
  }

  /** Fills one kt_sampling_row_t, seen as words at `word`. */
  write(floats: Float32Array, words: Int32Array, word: number, uniform: number): void {
    const { params } = this
    floats[word + FIELDS.temperature / 4] = params.temperature
    floats[word + FIELDS.top_p / 4] = params.topP
    floats[word + FIELDS.min_p / 4] = params.minP
    floats[word + FIELDS.repetition_penalty / 4] = params.repetitionPenalty
    floats[word + FIELDS.presence_penalty / 4] = params.presencePenalty
    floats[word + FIELDS.frequency_penalty / 4] = params.frequencyPenalty
    floats[word + FIELDS.uniform / 4] = uniform < 1 ? Math.min(uniform, BELOW_ONE) : uniform
    words[word + FIELDS.top_k / 4] = params.topK
    const bias = this.#bias?.address ?? 0
    putPointer(words, word + FIELDS.history / 4, this.#history?.address ?? 0)
    words[word + FIELDS.history_len / 4] = this.#length
    words[word + FIELDS.prompt_len / 4] = this.#promptLength
    putPointer(words, word + FIELDS.bias_ids / 4, bias)
    putPointer(words, word + FIELDS.bias_values / 4, bias === 0 ? 0 : bias + this.#biasLength * 4)
    words[word + FIELDS.bias_len / 4] = this.#biasLength
  }

  [Symbol.dispose](): void {
    this.#history?.[Symbol.dispose]()
    this.#bias?.[Symbol.dispose]()
    this.#history = null
    this.#bias = null
  }
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
   * One token a row: bias, penalties, temperature, top-k, top-p, min-p, then the inverse of the cumulative distribution
   * at uniforms[r] in [0, 1) over what is left, most probable first (ties: the lower id). Temperature 0 is greedy.
   * logits [rows, vocab] F32 (left as they are), states and uniforms one a row -> [rows] I32.
   */
  sample(
    logits: Tensor,
    states: readonly SamplingState[],
    uniforms: ArrayLike<number>,
    out = empty(logits, [logits.dim(0)], I32),
  ): Tensor {
    const backend = backendOf("sample", logits, out)
    const rows = logits.dim(0)
    if (states.length !== rows || uniforms.length !== rows)
      throw new KtError(
        `sample: ${states.length} states and ${uniforms.length} uniforms for ${rows} rows of logits`,
      )
    const slab = this.#reserve(rows)
    for (let row = 0; row < rows; row++) {
      const state = states[row] as SamplingState
      state.write(this.#floats, this.#words, row * ROW_WORDS, uniforms[row] as number)
    }
    backend.check(
      backend.library.kt_sample(backend.ctx, logits.desc, slab.address, out.desc),
      "sample",
    )
    return out
  }

  #reserve(rows: number): Slab {
    if (this.#slab !== null && rows <= this.#capacity) return this.#slab
    this.#slab?.[Symbol.dispose]()
    this.#capacity = Math.max(16, rows * 2)
    const slab = new Slab(this.#backend.library, this.#capacity * ROW.size)
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
