import { ConfigError, KtError } from "../errors.ts"
import type { BlockManager } from "../kvcache/block-manager.ts"
import type {
  EngineStats,
  FinishReason,
  GenerateParams,
  PhaseWork,
  PoolParams,
  StepTimes,
  TokenEvent,
} from "../worker/protocol.ts"
import type { SequenceGrammar } from "./grammar.ts"
import { checkParams, checkTokens, GREEDY } from "./params.ts"
import { checkPoolParams, Pooler, type PoolingLimits } from "./pooling.ts"
import { type Batch, draftOf, isReady, type Scheduler, wantsToken } from "./scheduler.ts"
import { type RopeKey, Sequence } from "./sequence.ts"
import type { Speculation } from "./speculation.ts"
import { NO_STEPS } from "./step-times.ts"
import type { Thinking } from "./thinking.ts"

export interface TokenLogprobs {
  readonly logprob: number
  readonly top: readonly (readonly [token: number, logprob: number])[]
}

/** What a step gave: entry i belongs to batch.seqs[i]. Valid until the next step. */
export interface StepOutput {
  /** The next token of sequences for which wantsToken() held; other entries are void. */
  readonly tokens: Int32Array
  readonly logprobs: readonly (TokenLogprobs | undefined)[]
  /** Tokens after that one, where guesses were right; undefined when no sequence had any. */
  readonly more?: readonly (readonly FurtherToken[])[]
}

export interface FurtherToken {
  readonly token: number
  readonly logprobs: TokenLogprobs | undefined
}

/** Computes a step: the model and the sampler, or a test's replacement for both. */
export interface StepRunner {
  run(batch: Batch): StepOutput
  /** Where the time of recorded steps went. */
  readonly times?: StepTimes | undefined
}

/** What stats() says of the cache beyond what the blocks know. */
export interface CacheFacts {
  readonly pageBytes?: number | undefined
  readonly hostLimitBytes?: number | undefined
  readonly diskLimitBytes?: number | undefined
}

/** With nothing to compute until another thread is done: how long a step waits for it, so that an abort is seen. */
const SHORT_WAIT_MS = 5

/** Of a sequence that generates nothing. */
const NO_SAMPLING: GenerateParams = { ...GREEDY, maxTokens: 1 }

/** What the steps of one kind have taken and computed. */
class Phase {
  seconds = 0
  #steps = 0
  #sequences = 0
  #tokens = 0
  #positions = 0

  /** A step that is about to be computed. */
  add(seqs: readonly Sequence[]): void {
    this.#steps++
    this.#sequences += seqs.length
    for (const { numScheduled, numComputed } of seqs) {
      this.#tokens += numScheduled
      this.#positions += numComputed
    }
  }

  work(): PhaseWork {
    return {
      steps: this.#steps,
      sequences: this.#sequences,
      tokens: this.#tokens,
      positions: this.#positions,
    }
  }
}

/** Requests in, token events out: the loop that joins scheduler, KV pages and model. */
export class EngineCore {
  readonly #runner: StepRunner
  readonly #scheduler: Scheduler
  readonly #blocks: BlockManager
  readonly #vocabSize: number
  readonly #ropeKey: RopeKey | undefined
  readonly #cache: CacheFacts
  readonly #pooling: PoolingLimits | undefined
  readonly #speculation: Speculation | undefined
  /** Events that wait for the next step(): ends of sequences that ended between steps. */
  #pending: TokenEvent[] = []
  #promptTokens = 0
  #cachedTokens = 0
  #generatedTokens = 0
  #steps = 0
  readonly #prefill = new Phase()
  readonly #decode = new Phase()

  constructor(
    runner: StepRunner,
    scheduler: Scheduler,
    blocks: BlockManager,
    model: {
      vocabSize: number
      ropeKey?: RopeKey | undefined
      pooling?: PoolingLimits
    } & CacheFacts,
    speculation?: Speculation,
  ) {
    this.#speculation = speculation
    this.#runner = runner
    this.#scheduler = scheduler
    this.#blocks = blocks
    this.#vocabSize = model.vocabSize
    this.#ropeKey = model.ropeKey
    this.#cache = model
    this.#pooling = model.pooling
  }

  get hasWork(): boolean {
    return (
      this.#scheduler.numRunning > 0 || this.#scheduler.numWaiting > 0 || this.#pending.length > 0
    )
  }

  /** Queues a sequence. @throws ConfigError when it is empty, can never fit, or a parameter is out of range */
  add(
    id: number,
    ids: Int32Array,
    params: GenerateParams,
    { grammar, thinking }: { grammar?: SequenceGrammar; thinking?: Thinking } = {},
  ): void {
    checkParams(params, this.#vocabSize)
    checkTokens(ids, this.#vocabSize)
    const ropeKey = this.#ropeKey
    this.#scheduler.add(new Sequence(id, ids, params, { ropeKey, grammar, thinking }))
  }

  /** Queues a text that is to become a vector or a score. @throws ConfigError as add() does */
  pool(id: number, ids: Int32Array, params: PoolParams): void {
    checkTokens(ids, this.#vocabSize)
    const pooling = this.#pooling
    if (pooling === undefined) throw new ConfigError("this engine pools no states")
    checkPoolParams(params, ids.length, pooling)
    const pooler = new Pooler(params, pooling.isEncoder)
    this.#scheduler.add(new Sequence(id, ids, NO_SAMPLING, { ropeKey: this.#ropeKey, pooler }))
  }

  /** Ends a sequence now: it takes part in no further step. Its last event comes with the next step(). */
  abort(id: number): void {
    if (this.#scheduler.remove(id)) this.#pending.push({ id, token: -1, finish: "abort" })
  }

  abortAll(): void {
    for (const id of this.#scheduler.ids()) this.abort(id)
  }

  /**
   * Computes one step and returns what came of it: an event per token, the last of a sequence with its end. When the step fails, the sequences
   * that took part in it end with an error; the others go on.
   */
  step(): TokenEvent[] {
    const events = this.#pending
    this.#pending = []
    const start = performance.now()
    this.#speculation?.propose(this.#scheduler.running, this.#scheduler.maxLength)
    const batch = this.#scheduler.schedule()
    if (batch.seqs.length === 0) {
      const held = this.#scheduler.running.find((seq) => !isReady(seq))
      if (this.#scheduler.isRestoring) this.#blocks.tiers?.wait(SHORT_WAIT_MS)
      else if (held !== undefined) held.grammar?.wait(SHORT_WAIT_MS)
      else if (this.#scheduler.numRunning + this.#scheduler.numWaiting > 0)
        throw new KtError("the scheduler found nothing to compute although sequences wait")
      return events
    }
    for (const seq of batch.seqs) {
      if (seq.startedAt !== undefined) continue
      seq.startedAt = start
      if (seq.params.tellsProgress === true) events.push(progressOf(seq, start))
    }
    const isDecode = batch.seqs.every(({ numGenerated }) => numGenerated > 0)
    const phase = isDecode ? this.#decode : this.#prefill
    phase.add(batch.seqs)
    try {
      this.#finishStep(batch, this.#runner.run(batch), events)
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error)
      for (const { id } of batch.seqs) {
        if (this.#scheduler.remove(id))
          events.push({ id, token: -1, finish: "error", error: message })
      }
    }
    this.#steps++
    phase.seconds += (performance.now() - start) / 1000
    return events
  }

  /** Forgets every known prefix on all tiers; sequences that run go on. */
  clearCache(): void {
    this.#blocks.clear()
  }

  stats(): EngineStats {
    const { pageSize, prefixCache, tiers } = this.#blocks
    const below = tiers?.stats()
    const speculation = this.#speculation?.stats()
    const onDevice = prefixCache?.blocks().reduce((n, { page }) => n + (page >= 0 ? 1 : 0), 0) ?? 0
    return {
      waiting: this.#scheduler.numWaiting,
      running: this.#scheduler.numRunning,
      kvPagesTotal: this.#blocks.pages,
      kvPagesFree: this.#blocks.numFree,
      prefixCachePages: onDevice,
      cacheDeviceBytes: onDevice * (this.#cache.pageBytes ?? 0),
      cacheHostBytes: below?.hostBytes ?? 0,
      cacheHostLimitBytes: this.#cache.hostLimitBytes ?? 0,
      cacheDiskBytes: below?.diskBytes ?? 0,
      cacheDiskLimitBytes: this.#cache.diskLimitBytes ?? 0,
      cacheHostTokensTotal: (below?.hostHits ?? 0) * pageSize,
      cacheDiskTokensTotal: (below?.diskHits ?? 0) * pageSize,
      cacheDiskWritesTotal: below?.diskWrites ?? 0,
      cacheDiskDropsTotal: below?.diskDrops ?? 0,
      cacheDiskFailuresTotal: below?.diskFailures ?? 0,
      promptTokensTotal: this.#promptTokens,
      cachedTokensTotal: this.#cachedTokens,
      generatedTokensTotal: this.#generatedTokens,
      stepsTotal: this.#steps,
      preemptionsTotal: this.#scheduler.numPreemptions,
      prefillSecondsTotal: this.#prefill.seconds,
      decodeSecondsTotal: this.#decode.seconds,
      prefillWork: this.#prefill.work(),
      decodeWork: this.#decode.work(),
      draftedTokensTotal: speculation?.draftedTokensTotal ?? 0,
      acceptedTokensTotal: speculation?.acceptedTokensTotal ?? 0,
      stepTimes: this.#runner.times ?? NO_STEPS,
      residentBytes: process.memoryUsage.rss(),
    }
  }

  #finishStep(batch: Batch, output: StepOutput, events: TokenEvent[]): void {
    const { seqs } = batch
    const ended = performance.now()
    // before commit, which moves numComputed
    const wanted = seqs.map(wantsToken)
    for (const [i, seq] of seqs.entries()) {
      const drafted = draftOf(seq)
      if (drafted === 0) continue
      seq.numAccepted = output.more?.[i]?.length ?? 0
      this.#speculation?.observe(seq, drafted, seq.numAccepted)
    }
    this.#scheduler.commit(batch)
    for (let i = 0; i < seqs.length; i++) {
      const seq = seqs[i] as Sequence
      if (seq.params.tellsProgress === true && seq.numGenerated === 0)
        events.push(progressOf(seq, ended))
      if (!wanted[i]) continue
      if (seq.pooler !== undefined) {
        events.push(this.#finishPooled(seq, seq.pooler, ended))
        continue
      }
      let event = this.#accept(seq, output.tokens[i] as number, output.logprobs[i], ended)
      events.push(event)
      for (const { token, logprobs } of output.more?.[i] ?? []) {
        // the last guesses may go on after the end
        if (event.finish !== undefined) break
        event = this.#accept(seq, token, logprobs, ended)
        events.push(event)
      }
    }
  }

  #finishPooled(seq: Sequence, pooler: Pooler, now: number): TokenEvent {
    const { id } = seq
    this.#scheduler.remove(id)
    const first = this.#firstOf(seq, now)
    return { id, token: -1, finish: "stop", pooled: pooler.result(), first }
  }

  #accept(
    seq: Sequence,
    token: number,
    logprobs: TokenLogprobs | undefined,
    now: number,
  ): TokenEvent {
    seq.append(token)
    this.#generatedTokens++
    const finish = this.#finishReason(seq, token)
    if (finish !== undefined) this.#scheduler.remove(seq.id)
    return {
      id: seq.id,
      token,
      ...(logprobs === undefined ? {} : { logprob: logprobs.logprob, topLogprobs: logprobs.top }),
      ...(finish === undefined ? {} : { finish }),
      ...(finish === undefined || seq.drafted === 0
        ? {}
        : { drafted: seq.drafted, accepted: seq.accepted }),
      ...(seq.numGenerated > 1 ? {} : { first: this.#firstOf(seq, now) }),
      ...(seq.numGenerated > 1 || seq.params.promptLogprobs === undefined
        ? {}
        : { promptLogprobs: seq.promptLogprobs }),
    }
  }

  #firstOf(seq: Sequence, now: number): NonNullable<TokenEvent["first"]> {
    this.#promptTokens += seq.promptLength
    this.#cachedTokens += seq.numCached
    const started = seq.startedAt ?? now
    return {
      promptTokens: seq.promptLength,
      cachedTokens: seq.numCached,
      queueMs: started - seq.arrivedAt,
      prefillMs: now - started,
    }
  }

  #finishReason(seq: Sequence, token: number): FinishReason | undefined {
    const { params } = seq
    if (params.ignoreEos !== true && params.stopTokens.includes(token)) return "stop"
    if (seq.grammar?.isTerminated === true) return "stop"
    if (seq.numGenerated >= params.maxTokens) return "length"
    return seq.length >= this.#scheduler.maxLength ? "length" : undefined
  }
}

function progressOf(seq: Sequence, now: number): TokenEvent {
  const { id, promptLength: total, numCached: cached, numComputed, startedAt = now } = seq
  const processed = Math.max(cached, Math.min(total, numComputed))
  return { id, token: -1, progress: { total, cached, processed, ms: now - startedAt } }
}
