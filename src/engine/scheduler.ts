import { ConfigError, KtError } from "../errors.ts"
import type { BlockManager } from "../kvcache/block-manager.ts"
import { type CachedBlock, hasAnyState } from "../kvcache/prefix-cache.ts"
import type { StateSlots } from "../kvcache/state-slots.ts"
import type { Sequence } from "./sequence.ts"

export interface SchedulerOptions {
  /** Sequences that run at once. */
  readonly maxBatchSize: number
  /** New tokens per step. */
  readonly maxBatchTokens: number
  /** Prompt and output together. */
  readonly contextLength: number
  /** Every token sees the whole text (encoders): a sequence is computed in one step. */
  readonly wholePrompts?: boolean
}

/** The work of one step: sequences with numScheduled new tokens each; single tokens first. Reused step after step. */
export interface Batch {
  readonly seqs: Sequence[]
  numTokens: number
}

/** Whether the step computes the last known token, so that its logits give the next one. */
export function wantsToken(seq: Sequence): boolean {
  return seq.numComputed + seq.numScheduled >= seq.length
}

/** Guessed tokens that the step computes after the last known one. */
export function draftOf(seq: Sequence): number {
  return Math.max(0, seq.numComputed + seq.numScheduled - seq.length)
}

/** Whether its next token can be drawn: a sequence whose grammar's thread compiles another one sits steps out. */
export function isReady({ grammar }: Sequence): boolean {
  return grammar === undefined || grammar.isReady
}

/** Tokens of a known prefix that a step copies back to the device while other sequences run: some milliseconds. */
const MAX_RESTORED_TOKENS = 1024

/** Rows of logits that a step computes beside those that are drawn from: some ten megabytes of a large vocabulary. */
export const MAX_PROMPT_ROWS = 64

/** Tokens of the prompt, from the step's first on, whose next token's log-probability is asked for. */
export function promptRowsOf(seq: Sequence, count = seq.numScheduled): number {
  if (seq.params.promptLogprobs === undefined) return 0
  return Math.max(0, Math.min(seq.numComputed + count, seq.promptLength - 1) - seq.numComputed)
}

/** Sequences that can run at once: every one gets a token in every step, so that none starves. */
export function maxRunning(options: Omit<SchedulerOptions, "contextLength">): number {
  return Math.min(options.maxBatchSize, options.maxBatchTokens)
}

/**
 * Decides what each step computes. First come, first served: running sequences are kept in order of arrival, waiting
 * ones too, and only the head of the queue may start. A step holds one token of every sequence that generates and fills
 * the rest of the token budget with chunks of prompts, oldest first.
 *
 * A sequence starts when pages for all its known tokens are free and one more for each running sequence would remain;
 * if generation later runs out of pages, the youngest running sequence gives its pages back and waits at the head of the
 * queue, to be computed again with what it generated as part of its prompt.
 *
 * Where layers keep a state per sequence, a known prefix can be reused only up to a length at which the state was kept too.
 * A sequence keeps it at the last page boundary before its prompt's end, at the end of what it shares with earlier sequences
 * (so that the next one with that beginning finds it), and at the last page boundary that its generation has passed.
 */
export class Scheduler {
  readonly #options: SchedulerOptions
  readonly #blocks: BlockManager
  readonly #maxRunning: number
  readonly #waiting: Sequence[] = []
  readonly #running: Sequence[] = []
  readonly #byId = new Map<number, Sequence>()
  readonly #batch: Batch = { seqs: [], numTokens: 0 }
  numPreemptions = 0

  constructor(options: SchedulerOptions, blocks: BlockManager) {
    this.#options = options
    this.#blocks = blocks
    this.#maxRunning = maxRunning(options)
    if (blocks.states !== undefined && blocks.states.slots < this.#maxRunning)
      throw new KtError(`${blocks.states.slots} state slots for ${this.#maxRunning} sequences`)
  }

  get numWaiting(): number {
    return this.#waiting.length
  }

  get numRunning(): number {
    return this.#running.length
  }

  /** Tokens of prompt and output that one sequence can have: the context, or what all pages hold. */
  get maxLength(): number {
    return Math.min(this.#options.contextLength, this.#blocks.pages * this.#blocks.pageSize)
  }

  /** The next sequence waits for what other tiers know of it. */
  get isRestoring(): boolean {
    return this.#blocks.restore?.isActive === true
  }

  /** Sequences that have started, oldest first. */
  get running(): readonly Sequence[] {
    return this.#running
  }

  get(id: number): Sequence | undefined {
    return this.#byId.get(id)
  }

  /** Queues a sequence. @throws ConfigError when it is empty or can never fit, KtError when its id is in use */
  add(seq: Sequence): void {
    if (this.#byId.has(seq.id)) throw new KtError(`sequence ${seq.id} exists already`)
    if (seq.length === 0) throw new ConfigError("the prompt is empty")
    const { contextLength, wholePrompts, maxBatchTokens } = this.#options
    if (seq.pooler !== undefined) {
      const limit = wholePrompts ? Math.min(this.maxLength, maxBatchTokens) : this.maxLength
      if (seq.length > limit)
        throw new ConfigError(`a text of ${seq.length} tokens exceeds the context of ${limit}`)
    } else if (seq.length >= this.maxLength) {
      const limit =
        this.maxLength < contextLength
          ? `${this.maxLength} tokens that the KV cache holds`
          : `context of ${contextLength}`
      throw new ConfigError(
        `a prompt of ${seq.length} tokens leaves no room for an answer in the ${limit}`,
      )
    }
    this.#byId.set(seq.id, seq)
    this.#waiting.push(seq)
  }

  /** What the next step computes; an empty batch when there is nothing to do. Valid until the next call. */
  schedule(): Batch {
    const batch = this.#batch
    batch.seqs.length = 0
    batch.numTokens = 0
    const preemptions = this.numPreemptions
    for (let i = 0; i < this.#running.length; i++) {
      const seq = this.#running[i] as Sequence
      if (seq.numRemaining === 1 && isReady(seq) && this.#reserve(seq)) this.#take(seq, 1)
    }
    for (let i = 0; i < this.#batch.seqs.length; i++)
      this.#takeDraft(this.#batch.seqs[i] as Sequence)
    for (let i = 0; i < this.#running.length; i++) {
      const seq = this.#running[i] as Sequence
      if (seq.numRemaining > 1) this.#take(seq, seq.numRemaining)
    }
    if (preemptions === this.numPreemptions) this.#admit()
    return batch
  }

  /** The step succeeded: its tokens are in the cache, and full pages can be shared. */
  commit(batch: Batch): void {
    for (const seq of batch.seqs) {
      // keys and values of wrong guesses stay where they are until the right tokens' take their place
      seq.numComputed += seq.numScheduled - (draftOf(seq) - seq.numAccepted)
      seq.numScheduled = 0
      seq.numAccepted = 0
      seq.numDraft = 0
      const { states } = this.#blocks
      if (states !== undefined) this.#readOwnState(seq, states)
      this.#publish(seq)
      if (states !== undefined) this.#keepState(seq, states)
    }
  }

  /** Ends a sequence, whatever its state; its pages are free at once. False when there is none with this id. */
  remove(id: number): boolean {
    const seq = this.#byId.get(id)
    if (seq === undefined) return false
    this.#byId.delete(id)
    const queue = seq.state === "running" ? this.#running : this.#waiting
    queue.splice(queue.indexOf(seq), 1)
    if (this.#blocks.restore?.isOf(seq)) this.#blocks.restore.end()
    this.#releasePages(seq)
    seq.sampling?.[Symbol.dispose]()
    seq.sampling = undefined
    seq.grammar?.[Symbol.dispose]()
    seq.grammar = undefined
    seq.state = "finished"
    return true
  }

  /** Ids of all sequences, running ones first. */
  ids(): number[] {
    return [...this.#running, ...this.#waiting].map((seq) => seq.id)
  }

  #take(seq: Sequence, wanted: number): void {
    let count = Math.min(wanted, this.#options.maxBatchTokens - this.#batch.numTokens)
    if (promptRowsOf(seq, count) > 0) {
      const taken = this.#batch.seqs.reduce((rows, other) => rows + promptRowsOf(other), 0)
      count = Math.min(count, MAX_PROMPT_ROWS - taken)
    }
    if (count <= 0) return
    seq.numScheduled = count
    this.#batch.seqs.push(seq)
    this.#batch.numTokens += count
    const { states } = this.#blocks
    if (states === undefined || !seq.chainOpen) return
    for (const at of seq.snapshotAt) {
      if (at <= seq.numComputed || at >= seq.numComputed + count) continue
      const slot = states.take()
      if (slot !== undefined) seq.stateSplits.push({ at, slot })
    }
  }

  /** Guesses join where tokens and pages are left over: nobody gives way to them. */
  #takeDraft(seq: Sequence): void {
    const { pageSize } = this.#blocks
    let count = Math.min(seq.numDraft, this.#options.maxBatchTokens - this.#batch.numTokens)
    if (count <= 0) return
    while (
      seq.pages.length * pageSize < seq.length + count &&
      this.#blocks.numFree > this.#running.length
    )
      seq.pages.push(this.#blocks.allocate())
    count = Math.min(count, seq.pages.length * pageSize - seq.length)
    seq.numScheduled += count
    this.#batch.numTokens += count
  }

  /** Starts waiting sequences while pages, places and tokens of the step last. */
  #admit(): void {
    const blocks = this.#blocks
    while (this.#waiting.length > 0 && this.#running.length < this.#maxRunning) {
      if (this.#batch.numTokens === this.#options.maxBatchTokens) return
      const seq = this.#waiting[0] as Sequence
      const { maxBatchTokens, wholePrompts } = this.#options
      if (wholePrompts && seq.length > maxBatchTokens - this.#batch.numTokens) return
      // the last token is always computed: its logits are what the sequence needs
      const needsAll = seq.pooler?.needsAll || seq.params.promptLogprobs !== undefined
      const shareable = needsAll ? 0 : Math.floor((seq.length - 1) / blocks.pageSize)
      const known = blocks.match(seq.tokens, seq.ropeKeys, shareable)
      const hits = this.#usable(known)
      if (hits === undefined) return
      const onDevice = hits.reduce((count, { page }) => count + (page >= 0 ? 1 : 0), 0)
      const fresh = blocks.pagesFor(seq.length) - onDevice
      const spare = this.#running.length
      if (spare > 0 && fresh + blocks.countIdle(hits) + spare > blocks.numFree) return
      if (!this.#bring(seq, hits)) return
      this.#waiting.shift()
      for (const block of hits) seq.pages.push(blocks.acquire(block))
      blocks.restore?.end()
      blocks.tiers?.used(hits)
      while (seq.pages.length < blocks.pagesFor(seq.length)) seq.pages.push(blocks.allocate())
      seq.numComputed = hits.length * blocks.pageSize
      this.#takeState(seq, hits, known.length)
      seq.numCached = Math.min(seq.numComputed, seq.promptLength)
      seq.numPublished = hits.length
      seq.lastBlock = hits.at(-1)
      seq.chainOpen = blocks.prefixCache !== undefined
      seq.state = "running"
      seq.epoch++
      this.#running.push(seq)
      this.#take(seq, seq.numRemaining)
    }
  }

  /** Whether what is known of the sequence is on the device; what is not is on its way. */
  #bring(seq: Sequence, hits: readonly CachedBlock[]): boolean {
    const { restore, states, pageSize } = this.#blocks
    if (restore === undefined) return true
    const isThere = hits.every(({ page }) => page >= 0)
    const last = hits.at(-1)
    const hasState = states === undefined || last === undefined || last.state >= 0
    if (isThere && hasState && !restore.isActive) return true
    const blocks = Math.max(1, Math.floor(MAX_RESTORED_TOKENS / pageSize))
    const most = this.#running.length > 0 ? blocks : Number.POSITIVE_INFINITY
    return restore.bring(seq, hits, states, most)
  }

  /**
   * Of known blocks, those up to the last one whose state was kept; all, where there are no states. Undefined while no slot
   * is free: those that steps read are free again after them.
   */
  #usable(known: CachedBlock[]): CachedBlock[] | undefined {
    const { states } = this.#blocks
    if (states === undefined) return known
    const hits = known.slice(0, known.findLastIndex(hasAnyState) + 1)
    const last = hits.at(-1)
    // its snapshot is not to be taken for the sequence's own slot; one of another tier needs a slot too
    const pinned = last !== undefined && !states.isRead(last) ? 1 : 0
    if (states.numAvailable > pinned) return hits
    return this.#running.length > 0 ? undefined : []
  }

  #takeState(seq: Sequence, hits: readonly CachedBlock[], numKnown: number): void {
    const { states, pageSize, prefixCache } = this.#blocks
    if (states === undefined) return
    const last = hits.at(-1)
    seq.stateSource = last === undefined ? -1 : states.read(last)
    seq.stateSlot = states.take() as number
    if (prefixCache === undefined) return
    const end = Math.floor((seq.length - 1) / pageSize)
    seq.snapshotAt = [...new Set([numKnown, end])]
      .filter((pages) => pages > hits.length)
      .map((pages) => pages * pageSize)
      .sort((a, b) => a - b)
  }

  #readOwnState(seq: Sequence, states: StateSlots): void {
    if (seq.stateSource >= 0 && seq.stateSource !== seq.stateSlot) states.unread(seq.stateSource)
    seq.stateSource = seq.stateSlot
  }

  /** The state after the last token becomes a snapshot, if it is wanted: from now on another slot is written. */
  #keepState(seq: Sequence, states: StateSlots): void {
    for (const { slot } of seq.stateSplits.splice(0)) states.release(slot)
    const { numComputed, lastBlock: block } = seq
    if (!seq.chainOpen || block === undefined || block.state >= 0) return
    if (seq.numPublished * this.#blocks.pageSize !== numComputed) return
    const isGenerated = numComputed >= seq.promptLength
    if (!isGenerated && !seq.snapshotAt.includes(numComputed)) return
    const previous = seq.snapshotBlock
    if (isGenerated && previous !== undefined && !states.isRead(previous)) states.forget(previous)
    const spare = states.take()
    if (spare === undefined) return
    states.keep(block, seq.stateSlot)
    seq.stateSource = states.read(block)
    seq.stateSlot = spare
    if (isGenerated) seq.snapshotBlock = block
    else this.#blocks.tiers?.save(block)
  }

  #releaseState(seq: Sequence): void {
    const { states } = this.#blocks
    if (states === undefined || seq.stateSlot < 0) return
    this.#readOwnState(seq, states)
    // of those that generation passes only the last is worth the disk
    if (seq.snapshotBlock !== undefined) this.#blocks.tiers?.save(seq.snapshotBlock)
    states.release(seq.stateSlot)
    for (const { slot } of seq.stateSplits.splice(0)) states.release(slot)
    seq.stateSlot = -1
    seq.stateSource = -1
    seq.snapshotAt = []
    seq.snapshotBlock = undefined
  }

  /** A page for the next token. False when the sequence itself had to give way. */
  #reserve(seq: Sequence): boolean {
    if (seq.pages.length * this.#blocks.pageSize >= seq.length) return true
    while (this.#blocks.numFree === 0) {
      if (this.#blocks.restore?.isActive) {
        this.#blocks.restore.end()
        continue
      }
      const youngest = this.#running.at(-1) as Sequence
      this.#preempt(youngest)
      if (youngest === seq) return false
    }
    seq.pages.push(this.#blocks.allocate())
    return true
  }

  #preempt(seq: Sequence): void {
    this.#running.pop()
    if (seq.numScheduled > 0) {
      this.#batch.seqs.splice(this.#batch.seqs.indexOf(seq), 1)
      this.#batch.numTokens -= seq.numScheduled
    }
    this.#releasePages(seq)
    seq.state = "waiting"
    this.#waiting.unshift(seq)
    this.numPreemptions++
  }

  #releasePages(seq: Sequence): void {
    for (let page = seq.pages.pop(); page !== undefined; page = seq.pages.pop())
      this.#blocks.release(page)
    this.#releaseState(seq)
    seq.numComputed = 0
    seq.numScheduled = 0
    seq.numDraft = 0
    seq.numPublished = 0
    seq.lastBlock = undefined
  }

  #publish(seq: Sequence): void {
    const { pageSize } = this.#blocks
    while (seq.chainOpen && (seq.numPublished + 1) * pageSize <= seq.numComputed) {
      const start = seq.numPublished * pageSize
      const end = start + pageSize
      const block = this.#blocks.publish(
        seq.lastBlock,
        seq.tokens.subarray(start, end),
        seq.ropeKeys?.subarray(start, end),
        seq.pages[seq.numPublished] as number,
      )
      const [split] = seq.stateSplits
      if (split?.at === end) {
        seq.stateSplits.shift()
        // an equal block of another sequence may have one already
        if (block !== undefined && block.state < 0) {
          this.#blocks.states?.keep(block, split.slot)
          this.#blocks.tiers?.save(block)
        } else this.#blocks.states?.release(split.slot)
      }
      seq.numPublished++
      seq.lastBlock = block
      seq.chainOpen = block !== undefined
    }
  }
}
