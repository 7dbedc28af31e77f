import { EngineCore, type StepOutput, type StepRunner } from "../../src/engine/core.ts"
import { GREEDY as LIKELIEST } from "../../src/engine/params.ts"
import { type Batch, maxRunning, Scheduler, wantsToken } from "../../src/engine/scheduler.ts"
import type { RopeKey, Sequence } from "../../src/engine/sequence.ts"
import { BlockManager } from "../../src/kvcache/block-manager.ts"
import { headerBytes } from "../../src/kvcache/block-record.ts"
import { HostTier } from "../../src/kvcache/host-tier.ts"
import type { BlockHash } from "../../src/kvcache/prefix-cache.ts"
import { type PieceMemory, PrefixTiers } from "../../src/kvcache/prefix-tiers.ts"
import { StateSlots } from "../../src/kvcache/state-slots.ts"
import { requireLibrary } from "../../src/native/library.ts"
import type { GenerateParams, TokenEvent } from "../../src/worker/protocol.ts"
import type { FakeDisk } from "../kvcache/fake-disk.ts"

export const VOCAB = 50
export const GREEDY: GenerateParams = { ...LIKELIEST, maxTokens: 16 }

/** What a "model" knows before its first token, and after one more; it tells every prefix from every other. */
const NOTHING = 17
function after(state: number, entry: number): number {
  return (Math.imul(state, 31) + entry * 7 + 3) >>> 0
}

/** The next token of a "model" that looks at every token before it and at how each was rotated. */
function nextToken(entries: Iterable<number>): number {
  let state = NOTHING
  for (const entry of entries) state = after(state, entry)
  return (state >>> 7) % VOCAB
}

/** What the model generates for a prompt, computed without pages, batches or chunks. */
export function expected(
  prompt: readonly number[],
  params: GenerateParams,
  maxLength: number,
  ropeKey?: RopeKey,
): number[] {
  const entry = (token: number, length: number): number =>
    token + 1 + 1000 * (ropeKey?.(length) ?? 0)
  const entries = prompt.map((token) => entry(token, prompt.length))
  const out: number[] = []
  while (out.length < params.maxTokens && prompt.length + out.length < maxLength) {
    const token = nextToken(entries)
    out.push(token)
    if (params.stopTokens.includes(token)) break
    entries.push(entry(token, prompt.length + out.length))
  }
  return out
}

/**
 * A model that keeps its "keys" in the pages it is told, and reads them back through the page tables. With state slots it
 * also keeps what it knows as a state per sequence, and fails where that does not come to the same.
 */
export class FakeRunner implements StepRunner {
  readonly #slots: Int32Array
  readonly #pageSize: number
  readonly #ropeKey: RopeKey | undefined
  readonly #blocks: BlockManager
  readonly #tokens = new Int32Array(1024)
  readonly #states: Uint32Array
  readonly maxTokens: number
  readonly maxSeqs: number
  failNext = false
  steps = 0
  computed = 0

  constructor(
    blocks: BlockManager,
    limits: { maxTokens: number; maxSeqs: number },
    ropeKey?: RopeKey,
  ) {
    this.#blocks = blocks
    this.#pageSize = blocks.pageSize
    this.#slots = new Int32Array(blocks.pages * blocks.pageSize).fill(-1)
    this.#states = new Uint32Array(blocks.states?.slots ?? 0).fill(0xdeadbeef)
    this.#ropeKey = ropeKey
    this.maxTokens = limits.maxTokens
    this.maxSeqs = limits.maxSeqs
  }

  /** What tiers copy: the "keys" of a page. */
  get pageMemory(): PieceMemory {
    return pieces(this.#slots, this.#pageSize)
  }

  get stateMemory(): PieceMemory {
    return pieces(this.#states, 1)
  }

  run(batch: Batch): StepOutput {
    this.steps++
    if (this.failNext) {
      this.failNext = false
      throw new Error("the step failed")
    }
    const total = batch.seqs.reduce((sum, seq) => sum + seq.numScheduled, 0)
    if (total !== batch.numTokens || total > this.maxTokens || batch.seqs.length > this.maxSeqs)
      throw new Error(`a step of ${total} tokens, ${batch.numTokens} said`)
    for (const seq of batch.seqs) {
      if (seq.numScheduled < 1 || seq.numScheduled > seq.numRemaining)
        throw new Error(`${seq.numScheduled} tokens of ${seq.numRemaining}`)
      for (let p = seq.numComputed; p < seq.numComputed + seq.numScheduled; p++) {
        const page = seq.pages[Math.floor(p / this.#pageSize)]
        if (page === undefined || this.#blocks.refCount(page) !== 1)
          throw new Error(`token ${p} goes into page ${page}, which is shared or absent`)
        this.#slots[page * this.#pageSize + (p % this.#pageSize)] =
          (seq.tokens[p] as number) + 1 + 1000 * (this.#ropeKey?.(seq.ropeLength(p)) ?? 0)
      }
      this.computed += seq.numScheduled
    }
    if (this.#blocks.states !== undefined) this.#advanceStates(batch.seqs)
    for (const [i, seq] of batch.seqs.entries()) {
      if (!wantsToken(seq)) continue
      const keys: number[] = []
      for (let p = 0; p < seq.length; p++) {
        const page = seq.pages[Math.floor(p / this.#pageSize)] as number
        keys.push(this.#slots[page * this.#pageSize + (p % this.#pageSize)] as number)
      }
      this.#tokens[i] = nextToken(keys)
      const state = this.#states[seq.stateSlot]
      if (state !== undefined && (state >>> 7) % VOCAB !== this.#tokens[i])
        throw new Error(`the state of sequence ${seq.id} is not that of its tokens`)
    }
    return { tokens: this.#tokens, logprobs: [] }
  }

  #advanceStates(seqs: readonly Sequence[]): void {
    const written = new Set<number>()
    const sources = new Set<number>()
    for (const seq of seqs) {
      const write = (slot: number, state: number): void => {
        if (slot < 0 || written.has(slot)) throw new Error(`state slot ${slot} is written twice`)
        written.add(slot)
        this.#states[slot] = state
      }
      const { stateSource: source, stateSplits: splits } = seq
      if (source !== seq.stateSlot) sources.add(source)
      let state = source < 0 ? NOTHING : (this.#states[source] as number)
      const end = seq.numComputed + seq.numScheduled
      let next = 0
      for (let p = seq.numComputed; p < end; p++) {
        if (p > seq.numComputed && splits[next]?.at === p)
          write(splits[next++]?.slot as number, state)
        const choice = this.#ropeKey?.(seq.ropeLength(p)) ?? 0
        state = after(state, (seq.tokens[p] as number) + 1 + 1000 * choice)
      }
      if (next !== splits.length) throw new Error(`${splits.length - next} splits out of range`)
      write(seq.stateSlot, state)
    }
    for (const slot of sources) {
      if (written.has(slot)) throw new Error(`state slot ${slot} is read and written`)
    }
  }
}

function pieces(values: Int32Array | Uint32Array, size: number): PieceMemory {
  const bytes = new Uint8Array(values.buffer)
  const pieceBytes = 4 * size
  return {
    pieceBytes,
    copyOut: (i, to) => to.set(bytes.subarray(i * pieceBytes, (i + 1) * pieceBytes)),
    copyIn: (i, from) => bytes.set(from.subarray(0, pieceBytes), i * pieceBytes),
  }
}

/** Tiers below the device: slots of host memory for pages and for states, and a disk. */
export interface FakeTiers {
  readonly hostSlots: number
  readonly disk?: FakeDisk | undefined
}

export interface FakeOptions {
  readonly pages: number
  readonly pageSize: number
  readonly maxBatchSize: number
  readonly maxBatchTokens: number
  readonly contextLength: number
  readonly prefixCache: boolean
  readonly ropeKey?: RopeKey | undefined
  readonly hash?: BlockHash | undefined
  /** For a model that keeps states: slots for snapshots, besides those of running sequences. */
  readonly snapshots?: number | undefined
  readonly tiers?: FakeTiers | undefined
}

export interface FakeEngine {
  readonly core: EngineCore
  readonly blocks: BlockManager
  readonly scheduler: Scheduler
  readonly runner: FakeRunner
}

export function fakeEngine(options: FakeOptions): FakeEngine {
  const { ropeKey, snapshots } = options
  const states =
    snapshots === undefined ? undefined : new StateSlots(maxRunning(options) + snapshots)
  let made: FakeRunner | undefined
  const lazily = (
    memory: (runner: FakeRunner) => PieceMemory,
    pieceBytes: number,
  ): PieceMemory => ({
    pieceBytes,
    copyOut: (i, to) => memory(made as FakeRunner).copyOut(i, to),
    copyIn: (i, from) => memory(made as FakeRunner).copyIn(i, from),
  })
  const tiers =
    options.tiers &&
    new PrefixTiers({
      pages: lazily((runner) => runner.pageMemory, 4 * options.pageSize),
      states: states && lazily((runner) => runner.stateMemory, 4),
      headerBytes: headerBytes(options.pageSize),
      disk: options.tiers.disk,
      host: (slotBytes, _, onEvict) =>
        new HostTier(
          requireLibrary("cpu"),
          (options.tiers?.hostSlots ?? 1) * slotBytes,
          slotBytes,
          onEvict,
        ),
    })
  const blocks = new BlockManager({ ...options, states, tiers })
  const scheduler = new Scheduler(options, blocks)
  const limits = { maxTokens: options.maxBatchTokens, maxSeqs: options.maxBatchSize }
  const runner = new FakeRunner(blocks, limits, ropeKey)
  made = runner
  return {
    core: new EngineCore(runner, scheduler, blocks, { vocabSize: VOCAB, ropeKey }),
    blocks,
    scheduler,
    runner,
  }
}

/** Steps until nothing is left; the tokens of each sequence and how it ended. */
export function drain(
  core: EngineCore,
  into = new Map<number, { tokens: number[]; finish?: string }>(),
  limit = 20_000,
): Map<number, { tokens: number[]; finish?: string }> {
  for (let i = 0; core.hasWork; i++) {
    if (i > limit) throw new Error(`${limit} steps were not enough`)
    collect(core.step(), into)
  }
  return into
}

export function collect(
  events: readonly TokenEvent[],
  into: Map<number, { tokens: number[]; finish?: string }>,
): void {
  for (const event of events) {
    let entry = into.get(event.id)
    if (entry === undefined) into.set(event.id, (entry = { tokens: [] }))
    if (entry.finish !== undefined) throw new Error(`an event after the end of ${event.id}`)
    if (event.token >= 0) entry.tokens.push(event.token)
    if (event.finish !== undefined) entry.finish = event.finish
  }
}
