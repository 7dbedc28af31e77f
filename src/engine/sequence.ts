import type { CachedBlock } from "../kvcache/prefix-cache.ts"
import type { GenerateParams, PromptLogprob } from "../worker/protocol.ts"
import type { SequenceGrammar } from "./grammar.ts"
import type { Pooler } from "./pooling.ts"
import type { Thinking } from "./thinking.ts"

/** Maps the length a token is rotated for to the choice it makes; equal choices give equal K. */
export type RopeKey = (length: number) => number

export type SequenceState = "waiting" | "running" | "finished"

/** One request: its tokens, how many of them are in the cache, and where. */
export class Sequence {
  readonly id: number
  readonly params: GenerateParams
  readonly seed: number
  readonly promptLength: number
  state: SequenceState = "waiting"
  /** Tokens known: the prompt, then what was generated. */
  length: number
  /** Tokens whose K and V are in the cache. */
  numComputed = 0
  /** Tokens that the current step computes. */
  numScheduled = 0
  /** Page of tokens 0 .. pageSize-1, and so on. */
  readonly pages: number[] = []
  /** Counts admissions: what was written for an earlier one (block tables) is void. */
  epoch = 0
  /** Pages offered to the prefix cache, the block of the last one, and whether more can be chained to it. */
  numPublished = 0
  lastBlock: CachedBlock | undefined
  chainOpen = true
  /** For models whose layers keep a state per sequence: the slot that its steps write, -1 while it waits. */
  stateSlot = -1
  /** The slot that its next step reads: its own, a snapshot's, or -1 where it begins with zeros. */
  stateSource = -1
  /** Lengths, ascending, at which its state is to be kept for other sequences. */
  snapshotAt: readonly number[] = []
  /** Of the current step: slots that receive the state after so many tokens of the sequence, ascending. */
  readonly stateSplits: { readonly at: number; readonly slot: number }[] = []
  /** The last block with a snapshot that generation left behind. */
  snapshotBlock: CachedBlock | undefined
  /** Tokens behind the known ones that were guessed: the next step checks them. */
  numDraft = 0
  /** Of those that the step computes, how many were right. */
  numAccepted = 0
  /** Guessed tokens so far, and those of them that were right. */
  drafted = 0
  accepted = 0
  /** Of the prompt, tokens found in the prefix cache when the sequence last began. */
  numCached = 0
  /** What the sampler keeps of it; disposed of when the sequence ends. */
  sampling: (Disposable & { push(token: number): void }) | undefined
  /** Of the prompt's tokens from the second on, where asked for. */
  readonly promptLogprobs: PromptLogprob[] = []
  /** What its output must match; disposed of when the sequence ends. */
  grammar: SequenceGrammar | undefined
  /** Bounds its reasoning. */
  readonly thinking: Thinking | undefined
  /** Makes a vector or a score of its states: such a sequence generates nothing. */
  readonly pooler: Pooler | undefined
  readonly arrivedAt: number
  /** When the first step began that computed tokens of it; undefined before. */
  startedAt: number | undefined
  #tokens: Int32Array
  #ropeKeys: Int32Array | undefined
  readonly #ropeKey: RopeKey | undefined

  constructor(
    id: number,
    prompt: Int32Array,
    params: GenerateParams,
    options: {
      ropeKey?: RopeKey | undefined
      now?: number
      grammar?: SequenceGrammar | undefined
      pooler?: Pooler | undefined
      thinking?: Thinking | undefined
    } = {},
  ) {
    this.pooler = options.pooler
    this.grammar = options.grammar
    this.thinking = options.thinking
    this.id = id
    this.params = params
    this.seed = params.seed ?? randomSeed()
    this.promptLength = prompt.length
    this.length = prompt.length
    this.arrivedAt = options.now ?? performance.now()
    this.#tokens = new Int32Array(prompt.length + 64)
    this.#tokens.set(prompt)
    this.#ropeKey = options.ropeKey
    if (options.ropeKey !== undefined) {
      this.#ropeKeys = new Int32Array(this.#tokens.length)
      this.#ropeKeys.fill(options.ropeKey(prompt.length), 0, prompt.length)
    }
  }

  /** The tokens' buffer; entries from `length` on are void. Do not keep it: append() may replace it. */
  get tokens(): Int32Array {
    return this.#tokens
  }

  /** The rope choice per token, parallel to `tokens`; undefined where the model's rope does not depend on length. */
  get ropeKeys(): Int32Array | undefined {
    return this.#ropeKeys
  }

  get numRemaining(): number {
    return this.length - this.numComputed
  }

  get numGenerated(): number {
    return this.length - this.promptLength
  }

  /**
   * The length that chooses length-dependent rope for the token at `position`: the whole prompt's for its tokens, then
   * each new position's own. It does not change when a sequence is computed again after preemption.
   */
  ropeLength(position: number): number {
    return position < this.promptLength ? this.promptLength : position + 1
  }

  /** The next token. The sampler, which drew it, knows of it. */
  append(token: number): void {
    this.#put(this.length++, token)
    this.grammar?.accept(token)
    this.thinking?.accept(token)
  }

  /** A guess of the token after those that are known or guessed. */
  guess(token: number): void {
    this.#put(this.length + this.numDraft++, token)
  }

  #put(at: number, token: number): void {
    if (at === this.#tokens.length) {
      this.#tokens = grown(this.#tokens)
      if (this.#ropeKeys !== undefined) this.#ropeKeys = grown(this.#ropeKeys)
    }
    if (this.#ropeKeys !== undefined && this.#ropeKey !== undefined)
      this.#ropeKeys[at] = this.#ropeKey(this.ropeLength(at))
    this.#tokens[at] = token
  }
}

function grown(array: Int32Array): Int32Array {
  const out = new Int32Array(array.length * 2)
  out.set(array)
  return out
}

/** 53 random bits. */
function randomSeed(): number {
  const words = crypto.getRandomValues(new Uint32Array(2))
  return (words[0] as number) * 2097152 + ((words[1] as number) >>> 11)
}
