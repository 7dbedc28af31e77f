import { BlockManager } from "../kvcache/block-manager.ts"
import type { GenerateParams } from "../worker/protocol.ts"
import type { StepRunner } from "./core.ts"
import { Pace } from "./pace.ts"
import { Sequence } from "./sequence.ts"
import type { Drafter } from "./speculation.ts"

/** Known tokens that the small model takes together with the last one; longer rests are computed before. */
const CATCH_UP = 4

export interface DraftModelOptions {
  readonly pages: number
  readonly pageSize: number
  readonly maxBatchTokens: number
  /** Tokens of one guess. */
  readonly most: number
}

interface Follower {
  /** The small model's own view of a sequence: its tokens, and pages in its own cache. */
  readonly shadow: Sequence
  readonly pace: Pace
}

/**
 * Guesses with a smaller model of the same vocabulary ("speculative decoding", Leviathan et al. 2023). It draws with the
 * parameters and the random numbers that the sequence itself draws with, so that the two agree where their
 * distributions do; penalties, which look at guesses too, are left out.
 */
export class DraftModel implements Drafter {
  readonly #runner: StepRunner
  readonly #blocks: BlockManager
  readonly #options: DraftModelOptions
  readonly #followers = new Map<Sequence, Follower>()

  constructor(runner: StepRunner, options: DraftModelOptions) {
    const { pages, pageSize } = options
    this.#runner = runner
    this.#blocks = new BlockManager({ pages, pageSize, prefixCache: false })
    this.#options = options
  }

  propose(seqs: readonly Sequence[], most: number): void {
    for (const [seq, { shadow }] of this.#followers) {
      if (seq.state === "running") continue
      this.#release(shadow)
      this.#followers.delete(seq)
    }
    const share = Math.floor(most / seqs.length)
    const wants = new Map<Sequence, number>()
    for (const seq of seqs) {
      const { shadow, pace } = this.#followerOf(seq)
      const left = seq.params.maxTokens - seq.numGenerated - 1
      const count = Math.min(pace.next(this.#options.most), share, left)
      if (count > 0 && this.#follow(seq, shadow, count)) wants.set(seq, count)
    }
    for (let round = 0; round < most && wants.size > 0; round++) {
      const drawing = [...wants.keys()]
      this.#draw(drawing)
      for (const seq of drawing) if (seq.numDraft >= (wants.get(seq) ?? 0)) wants.delete(seq)
    }
  }

  observe(seq: Sequence, drafted: number, accepted: number): void {
    this.#followers.get(seq)?.pace.observe(drafted, accepted)
  }

  #followerOf(seq: Sequence): Follower {
    let follower = this.#followers.get(seq)
    if (follower === undefined) {
      const prompt = seq.tokens.slice(0, seq.promptLength)
      const shadow = new Sequence(seq.id, prompt, freeParams(seq.params, seq.seed))
      shadow.epoch = 1
      this.#followers.set(seq, (follower = { shadow, pace: new Pace() }))
    }
    return follower
  }

  /** Brings tokens, pages and all but the last few keys and values up to date. False when pages are short. */
  #follow(seq: Sequence, shadow: Sequence, count: number): boolean {
    let same = Math.min(shadow.length, seq.promptLength)
    while (same < Math.min(shadow.length, seq.length) && shadow.tokens[same] === seq.tokens[same])
      same++
    shadow.length = same
    while (shadow.length < seq.length) shadow.append(seq.tokens[shadow.length] as number)
    shadow.numComputed = Math.min(shadow.numComputed, same, shadow.length - 1)
    while (shadow.pages.length * this.#options.pageSize < shadow.length + count) {
      if (this.#blocks.numFree === 0) return false
      shadow.pages.push(this.#blocks.allocate())
    }
    while (shadow.numRemaining > CATCH_UP) {
      const numTokens = Math.min(shadow.numRemaining - 1, this.#options.maxBatchTokens)
      shadow.numScheduled = numTokens
      this.#runner.run({ seqs: [shadow], numTokens })
      shadow.numComputed += numTokens
      shadow.numScheduled = 0
    }
    return true
  }

  /** One token more for each. */
  #draw(seqs: readonly Sequence[]): void {
    const shadows = seqs.map((seq) => this.#followerOf(seq).shadow)
    let numTokens = 0
    for (const shadow of shadows) {
      shadow.numScheduled = shadow.numRemaining
      numTokens += shadow.numScheduled
    }
    const { tokens } = this.#runner.run({ seqs: shadows, numTokens })
    for (const [i, shadow] of shadows.entries()) {
      const token = tokens[i] as number
      shadow.numComputed = shadow.length
      shadow.numScheduled = 0
      shadow.append(token)
      ;(seqs[i] as Sequence).guess(token)
    }
  }

  #release(shadow: Sequence): void {
    for (const page of shadow.pages.splice(0)) this.#blocks.release(page)
    shadow.sampling?.[Symbol.dispose]()
    shadow.sampling = undefined
  }

  [Symbol.dispose](): void {
    for (const { shadow } of this.#followers.values()) this.#release(shadow)
    this.#followers.clear()
  }
}

/** What can be drawn again after tokens were taken back. */
function freeParams(params: GenerateParams, seed: number): GenerateParams {
  const { logprobs: _, grammar: _grammar, ...rest } = params
  return {
    ...rest,
    seed,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    dryMultiplier: 0,
    mirostat: 0,
  }
}
