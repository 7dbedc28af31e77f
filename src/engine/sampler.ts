import type { Backend } from "../native/backend.ts"
import {
  argmax,
  cast,
  changesLogits,
  type Draw,
  logprobs,
  maskLogits,
  onDevice,
  SamplingBatch,
  SamplingState,
} from "../ops/index.ts"
import { F32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"
import type { FurtherToken, StepOutput, TokenLogprobs } from "./core.ts"
import { FixedInts } from "./fixed-ints.ts"
import { uniform } from "./random.ts"
import type { Sequence } from "./sequence.ts"

/** Draws the next token of each row of logits; a row's draw depends on its own sequence alone. */
export class Sampler {
  /** What draws; logits of another device are copied there. */
  readonly backend: Backend
  readonly #batch: SamplingBatch
  readonly #tokens: FixedInts
  readonly #draws: Draw[] = []
  readonly #states: SamplingState[] = []

  constructor(backend: Backend, maxRows: number) {
    this.backend = backend
    this.#batch = new SamplingBatch(backend)
    this.#tokens = new FixedInts(backend, maxRows)
  }

  /** Whether the greatest logit of each row is all that is drawn: chooseGreatest() can be called before sample(). */
  drawsGreatest(seqs: readonly Sequence[]): boolean {
    for (const seq of seqs) if (isBound(seq) || !isGreedy(seq)) return false
    return true
  }

  /** Part of a step of sequences for which drawsGreatest() holds. logits [rows, vocab] F32 */
  chooseGreatest(logits: Tensor): void {
    argmax(logits, this.#tokens.target([logits.dim(0)]))
  }

  /** all [rows, vocab] F32, one row per sequence; `chosen`: after chooseGreatest(). The result is valid until the next call. */
  sample(all: Tensor, seqs: readonly Sequence[], ahead = 0, chosen = false): StepOutput {
    const logits = onDevice(all, this.backend)
    const known = seqs.some(isBound) ? this.#mask(logits, seqs) : []
    const tokens = this.#tokens.target([seqs.length])
    if (!chosen) {
      if (seqs.every(isGreedy)) argmax(logits, tokens)
      else this.#draw(logits, seqs, tokens, ahead)
    }
    const wantsLogprobs = seqs.some((seq) => seq.params.logprobs !== undefined)
    this.backend.synchronize()
    return {
      tokens: this.#tokens.values,
      logprobs: wantsLogprobs
        ? seqs.map((seq, row) =>
            rowLogprobs(seq, known[row] ?? logits.narrow(0, row, 1), tokens.narrow(0, row, 1)),
          )
        : [],
    }
  }

  /** The token after `ahead` others that were drawn in this step. logits [1, vocab] F32. */
  sampleAhead(logits: Tensor, seq: Sequence, ahead: number): FurtherToken {
    const { tokens, logprobs: all } = this.sample(logits, [seq], ahead)
    return { token: tokens[0] as number, logprobs: all[0] }
  }

  /** The greatest logit of each row, when that is all that these sequences need. */
  bestOf(all: Tensor, seqs: readonly Sequence[]): Int32Array | undefined {
    const isPlain = (seq: Sequence): boolean => !isBound(seq) && seq.params.logprobs === undefined
    if (!seqs.every((seq) => isGreedy(seq) && isPlain(seq))) return undefined
    const logits = onDevice(all, this.backend)
    argmax(logits, this.#tokens.target([logits.dim(0)]))
    this.backend.synchronize()
    return this.#tokens.values
  }

  /**
   * Forbids what grammars do not allow, and all but the token that ends reasoning; the result has the logits as they were of
   * rows whose log-probabilities are asked.
   */
  #mask(logits: Tensor, seqs: readonly Sequence[]): (Tensor | undefined)[] {
    const words = Math.ceil(logits.dim(1) / 32)
    const maskOf = ({ grammar, thinking }: Sequence): Int32Array => {
      const forced = thinking?.forced
      if (forced === undefined && grammar !== undefined) return grammar.mask
      const mask = new Int32Array(words)
      if (forced !== undefined) mask[forced >> 5] = 1 << (forced & 31)
      return mask
    }
    return seqs.map((seq, row) => {
      if (!isBound(seq)) return undefined
      const own = logits.narrow(0, row, 1)
      const before = seq.params.logprobs === undefined ? undefined : cast(own, F32)
      const bits = Tensor.from(this.backend, maskOf(seq).subarray(0, words), [1, words])
      maskLogits(own, bits)
      return before
    })
  }

  #draw(logits: Tensor, seqs: readonly Sequence[], tokens: Tensor, ahead: number): void {
    const states = this.#states
    const draws = this.#draws
    states.length = 0
    draws.length = 0
    for (let row = 0; row < seqs.length; row++) {
      const seq = seqs[row] as Sequence
      states.push(this.#stateOf(seq))
      draws.push(drawOf(seq, ahead))
    }
    this.#batch.sample(logits, states, draws, tokens)
    this.backend.synchronize()
    for (const [row, state] of states.entries()) state.push(this.#tokens.values[row] as number)
  }

  #stateOf(seq: Sequence): SamplingState {
    if (seq.sampling instanceof SamplingState) return seq.sampling
    const prompt = seq.tokens.subarray(0, seq.promptLength)
    const state = new SamplingState(this.backend, seq.params, prompt)
    for (let i = seq.promptLength; i < seq.length; i++) state.push(seq.tokens[i] as number)
    seq.sampling = state
    return state
  }

  [Symbol.dispose](): void {
    this.#batch[Symbol.dispose]()
    this.#tokens[Symbol.dispose]()
  }
}

/** Not every token may come next. */
function isBound({ grammar, thinking }: Sequence): boolean {
  return grammar !== undefined || thinking?.forced !== undefined
}

/** The greatest logit is drawn, whatever the other samplers do. */
function isGreedy({ params }: Sequence): boolean {
  return (
    params.temperature === 0 &&
    params.samplers === undefined &&
    !params.dynatempRange &&
    !changesLogits(params)
  )
}

function drawOf({ seed, numGenerated, params }: Sequence, ahead: number): Draw {
  const n = numGenerated + ahead
  return {
    uniform: uniform(seed, n),
    xtc: params.xtcProbability ? uniform(seed, n, 1) : 0,
  }
}

/** Of the model's own distribution: the logits are as the model gave them. */
function rowLogprobs(seq: Sequence, logits: Tensor, tokens: Tensor): TokenLogprobs | undefined {
  const count = seq.params.logprobs
  if (count === undefined) return undefined
  const out = logprobs(logits, tokens, count)
  const ids = out.topIds?.toInt32Array() ?? new Int32Array(0)
  const values = out.topLogprobs?.toFloat32Array() ?? new Float32Array(0)
  return {
    logprob: out.token.toFloat32Array()[0] as number,
    top: Array.from(ids, (id, i) => [id, values[i] as number] as const),
  }
}
