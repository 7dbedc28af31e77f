import { KtError } from "../errors.ts"
import type { KVPool } from "../kvcache/pool.ts"
import type { StatePool } from "../kvcache/state-pool.ts"
import type { ModelConfig } from "../models/config.ts"
import type { Backend } from "../native/backend.ts"
import type { BatchStates, ForwardBatch } from "../nn/forward-batch.ts"
import { embedding, logprobs, onDevice } from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import type { PoolParams, StepTimes } from "../worker/protocol.ts"
import type { FurtherToken, StepOutput, StepRunner, TokenLogprobs } from "./core.ts"
import { FixedInts } from "./fixed-ints.ts"
import { scoreOf } from "./pooling.ts"
import { Sampler } from "./sampler.ts"
import { type Batch, draftOf, MAX_PROMPT_ROWS, promptRowsOf, wantsToken } from "./scheduler.ts"
import type { RopeKey, Sequence } from "./sequence.ts"
import { MAX_GRAPH_SEQS, type StepGraphs } from "./step-graphs.ts"

/** A model that computes: logits [R, vocab] F32 of the batch's logitsRows. */
export interface RunnableModel {
  forward(batch: ForwardBatch): Tensor
}

/** A model whose states can be had; encoders have no logits. */
export interface StatesModel {
  /** The last layer's output [R, hidden] of the batch's logitsRows; the others go on from it. */
  states(batch: ForwardBatch): Tensor
  normed(states: Tensor): Tensor
  /** Logits of a classification head, [R, labels]. */
  classify(states: Tensor): Tensor
  logits?(states: Tensor): Tensor
  readonly config: Pick<ModelConfig, "classifier">
}

export interface RunnerLimits {
  readonly maxBatchSize: number
  readonly maxBatchTokens: number
  readonly contextLength: number
  /** Guessed tokens that a step may check; 0 where absent. */
  readonly maxDraftTokens?: number
}

/** What models have that are on several devices or keep states. */
export interface RunnerParts {
  /** For models whose layers keep a state per sequence. */
  readonly states?: StatePool | undefined
  /** All devices that compute, that of the logits first. */
  readonly devices?: readonly Backend[]
  /** What draws tokens; by default what computes the logits. */
  readonly sampling?: Backend
  /** Steps that generate are computed by these; of models on one device. */
  readonly graphs?: StepGraphs | undefined
  /** Of models whose rotations depend on the length: lengths of one key are computed alike. */
  readonly ropeKey?: RopeKey | undefined
}

/** Of one sequence in a step: its state is kept at two lengths at most before the end. */
const MAX_SEGMENTS = 3

/** Writes a batch into fixed buffers, runs the model over it and samples; allocates nothing native per step. */
export class ModelRunner implements StepRunner {
  readonly #backend: Backend
  readonly #devices: readonly Backend[]
  /** The devices, and what draws tokens where that is none of them. */
  readonly #inStep: readonly Backend[]
  readonly #model: Partial<RunnableModel & StatesModel>
  readonly #pool: KVPool
  readonly #sampler: Sampler
  readonly #maxPages: number
  readonly #inputIds: FixedInts
  readonly #positions: FixedInts
  readonly #slotMapping: FixedInts
  readonly #blockTables: FixedInts
  readonly #queryStart: FixedInts
  readonly #seqLens: FixedInts
  readonly #logitsRows: FixedInts
  /** Of encoders, and of batches with texts that are pooled. */
  readonly #tokenTypes: FixedInts
  /** Rows of states that go on to the logits. */
  readonly #generatedRows: FixedInts
  readonly #states: StatePool | undefined
  readonly #segmentStart: FixedInts
  readonly #segmentSource: FixedInts
  readonly #segmentTarget: FixedInts
  readonly #ropeLengths: Int32Array
  /** Whose pages a row of the block tables holds, since which admission, and how many. */
  readonly #rowSeq: (Sequence | undefined)[]
  readonly #rowEpoch: Int32Array
  readonly #rowPages: Int32Array
  readonly #rows: Sequence[] = []
  readonly #tokens: Int32Array
  /** What the buffers hold: sequences (a guess counts as one), rows whose logits are wanted, segments of states. */
  #numSeqs = 0
  #numRows = 0
  #numSegments = 0
  #phase: ForwardBatch["phase"] = "decode"
  #hasTypes = false
  /** Rows of the step before those that give log-probabilities of prompts. */
  #firstPromptRow = 0
  readonly #graphs: StepGraphs | undefined
  readonly #ropeKey: RopeKey | undefined

  constructor(
    backend: Backend,
    model: RunnableModel | StatesModel,
    pool: KVPool,
    limits: RunnerLimits,
    { states, devices = [backend], sampling = backend, graphs, ropeKey }: RunnerParts = {},
  ) {
    const { maxBatchSize, maxBatchTokens, contextLength } = limits
    this.#devices = devices
    this.#inStep = devices.includes(sampling) ? devices : [...devices, sampling]
    const others = devices.filter((device) => device !== backend)
    const ints = (length: number): FixedInts => new FixedInts(backend, length, others)
    const maxRows = maxBatchSize + (limits.maxDraftTokens ?? 0)
    this.#backend = backend
    this.#model = model
    this.#pool = pool
    this.#sampler = new Sampler(sampling, maxRows)
    this.#maxPages = Math.ceil(contextLength / pool.pageSize)
    this.#inputIds = ints(maxBatchTokens)
    this.#positions = ints(maxBatchTokens)
    this.#slotMapping = ints(maxBatchTokens)
    this.#blockTables = ints(maxRows * this.#maxPages)
    this.#queryStart = ints(maxRows + 1)
    this.#seqLens = ints(maxRows)
    this.#logitsRows = ints(Math.max(maxRows, maxBatchTokens))
    this.#tokenTypes = ints(maxBatchTokens)
    this.#generatedRows = ints(maxRows + MAX_PROMPT_ROWS)
    this.#states = states
    const maxSegments = states === undefined ? 0 : maxBatchSize * MAX_SEGMENTS
    this.#segmentStart = ints(maxSegments + 1)
    this.#segmentSource = ints(Math.max(maxSegments, 1))
    this.#segmentTarget = ints(Math.max(maxSegments, 1))
    this.#ropeLengths = new Int32Array(maxBatchTokens)
    this.#rowSeq = new Array<Sequence | undefined>(maxRows).fill(undefined)
    this.#rowEpoch = new Int32Array(maxRows)
    this.#rowPages = new Int32Array(maxRows)
    this.#tokens = new Int32Array(maxBatchSize)
    this.#graphs = graphs
    this.#ropeKey = ropeKey
  }

  get times(): StepTimes | undefined {
    return this.#graphs?.times
  }

  run(batch: Batch): StepOutput {
    this.#graphs?.stepBegins()
    try {
      this.#write(batch)
      if (batch.seqs.some(({ pooler }) => pooler !== undefined))
        return this.#poolStates(batch, this.#input(batch))
      const { forward } = this.#model
      if (forward === undefined) throw new KtError("the model generates nothing")
      const bucket = this.#bucketOf(batch)
      if (this.#graphs === undefined || bucket === undefined)
        return this.#sample(batch, forward.call(this.#model, this.#input(batch)))
      const chooses =
        this.#sampler.backend === this.#backend && this.#sampler.drawsGreatest(batch.seqs)
      const logits = this.#graphs.run(chooses ? `${bucket} greedy` : bucket, () => {
        const all = forward.call(this.#model, this.#input(batch))
        if (chooses) this.#sampler.chooseGreatest(all)
        return all
      })
      return this.#sample(batch, logits, chooses)
    } finally {
      // what a device still reads must not be written by the next step
      for (const device of this.#inStep) {
        device.synchronize()
        device.resetStep()
      }
      this.#graphs?.stepEnds()
    }
  }

  /** Names all that the calls of a step that generates depend on; undefined: it is no such step. */
  #bucketOf({ seqs, numTokens }: Batch): string | undefined {
    const count = this.#numSeqs
    if (count > MAX_GRAPH_SEQS || count !== seqs.length || numTokens !== count) return undefined
    if (this.#numRows !== count || this.#firstPromptRow !== count) return undefined
    if (this.#states !== undefined && this.#numSegments !== count) return undefined
    for (const seq of seqs) if (draftOf(seq) > 0 || !wantsToken(seq)) return undefined
    const ropeKey = this.#ropeKey
    if (ropeKey === undefined) return String(count)
    const key = ropeKey(this.#ropeLengths[0] as number)
    for (let t = 1; t < numTokens; t++)
      if (ropeKey(this.#ropeLengths[t] as number) !== key) return undefined
    return `${count} rope ${key}`
  }

  /** Fills the input buffers. */
  #write(batch: Batch): void {
    const { seqs } = batch
    const { pageSize } = this.#pool
    const ids = this.#inputIds.values
    const positions = this.#positions.values
    const slots = this.#slotMapping.values
    const queryStart = this.#queryStart.values
    let token = 0
    let rows = 0
    let s = 0
    let decode = true
    let prefill = true
    this.#hasTypes = false
    for (const seq of seqs) {
      const { pages, numComputed, numScheduled, tokens } = seq
      const drafted = draftOf(seq)
      if (numScheduled === 1 || drafted > 0) prefill = false
      else decode = false
      for (let p = numComputed; p < numComputed + numScheduled; p++) {
        // A guess is computed as the next token of a sequence of its own with the same pages, which is how it would be
        // computed later: so not a bit of its logits differs.
        if (p === numComputed || drafted > 0) {
          queryStart[s] = token
          this.#seqLens.values[s] = drafted > 0 ? p + 1 : numComputed + numScheduled
          this.#writePages(s++, seq)
        }
        ids[token] = tokens[p] as number
        positions[token] = p
        slots[token] = (pages[Math.floor(p / pageSize)] as number) * pageSize + (p % pageSize)
        this.#ropeLengths[token] = seq.ropeLength(p)
        token++
      }
      if (seq.pooler !== undefined) {
        const end = numComputed + numScheduled
        const [from, to] = seq.pooler.wanted(numComputed, end, seq.length)
        for (let p = from; p < to; p++) this.#logitsRows.values[rows++] = token - end + p
        this.#hasTypes = true
      } else if (wantsToken(seq)) {
        for (let back = drafted; back >= 0; back--)
          this.#logitsRows.values[rows++] = token - 1 - back
      }
    }
    queryStart[s] = token
    this.#firstPromptRow = rows
    let start = 0
    for (const seq of seqs) {
      for (let i = 0; i < promptRowsOf(seq); i++) this.#logitsRows.values[rows++] = start + i
      start += seq.numScheduled
    }
    // models and kernels know no empty tensors: a step that wants no logits computes one row for nobody
    if (rows === 0) this.#logitsRows.values[rows++] = token - 1
    this.#numSeqs = s
    this.#numRows = rows
    this.#phase = decode ? "decode" : prefill ? "prefill" : "mixed"
    this.#numSegments = this.#states === undefined ? 0 : this.#writeSegments(batch)
    if (this.#hasTypes) this.#writeTypes(batch)
  }

  /** The tensors over what write() wrote live as long as the step. */
  #input({ numTokens }: Batch): ForwardBatch {
    const seqs = this.#numSeqs
    const sizes = {
      phase: this.#phase,
      numTokens,
      numSeqs: seqs,
      ropeLengths: this.#ropeLengths.subarray(0, numTokens),
      kvCache: this.#pool.layers,
    }
    const elsewhere = this.#devices.length > 1 ? new Map<Backend, ForwardBatch>() : undefined
    const inputs = this.#devices.map((device) => {
      const input: ForwardBatch = {
        ...sizes,
        inputIds: this.#inputIds.view([numTokens], device),
        positions: this.#positions.view([numTokens], device),
        slotMapping: this.#slotMapping.view([numTokens], device),
        blockTables: this.#blockTables.view([seqs, this.#maxPages], device),
        queryStart: this.#queryStart.view([seqs + 1], device),
        seqLens: this.#seqLens.view([seqs], device),
        logitsRows: this.#logitsRows.view([this.#numRows], device),
        ...(this.#hasTypes ? { tokenTypes: this.#tokenTypes.view([numTokens], device) } : {}),
        states: this.#statesOn(device),
        ...(elsewhere === undefined ? {} : { elsewhere }),
      }
      elsewhere?.set(device, input)
      return input
    })
    return inputs[0] as ForwardBatch
  }

  /** 1 for tokens of the second text of a pair. */
  #writeTypes({ seqs }: Batch): void {
    const types = this.#tokenTypes.values
    let token = 0
    for (const { pooler, numComputed, numScheduled } of seqs) {
      const second = pooler?.params.secondFrom ?? Number.POSITIVE_INFINITY
      for (let p = numComputed; p < numComputed + numScheduled; p++)
        types[token++] = p >= second ? 1 : 0
    }
  }

  /** A step with texts that are pooled: their states are read, those of others go on to the logits. */
  #poolStates(batch: Batch, input: ForwardBatch): StepOutput {
    const model = this.#model
    if (model.states === undefined || model.normed === undefined)
      throw new KtError("the model's states cannot be had")
    const states = model.states(input)
    const dim = states.dim(1)
    const normed = batch.seqs.some(({ pooler }) => pooler && pooler.params.pooling !== "rank")
      ? model.normed(states).toFloat32Array()
      : new Float32Array(0)
    let row = 0
    let generated = 0
    for (const seq of batch.seqs) {
      const { pooler, numComputed, numScheduled, length } = seq
      if (pooler === undefined) {
        if (!wantsToken(seq)) continue
        for (let left = draftOf(seq); left >= 0; left--)
          this.#generatedRows.values[generated++] = row++
        continue
      }
      if (numComputed === 0) pooler.restart()
      const [from, to] = pooler.wanted(numComputed, numComputed + numScheduled, length)
      if (to > from && pooler.params.pooling === "rank")
        pooler.setScore(this.#score(states.narrow(0, row, 1), pooler.params))
      else pooler.add(normed.subarray(row * dim, (row + to - from) * dim), dim)
      row += to - from
    }
    this.#firstPromptRow = generated
    for (const seq of batch.seqs)
      for (let left = promptRowsOf(seq); left > 0; left--)
        this.#generatedRows.values[generated++] = row++
    if (generated === 0) return { tokens: this.#tokens, logprobs: [] }
    if (model.logits === undefined) throw new KtError("the model generates nothing")
    const rows = this.#generatedRows.view([generated])
    return this.#sample(batch, model.logits(embedding(states, rows)))
  }

  /** state [1, hidden] */
  #score(state: Tensor, { verdict }: PoolParams): number {
    const { classify, logits, config } = this.#model
    const classifier = config?.classifier
    if (classifier !== undefined && classify !== undefined) {
      const values = classify.call(this.#model, state).toFloat32Array()
      return scoreOf(values, classifier.label, classifier.score)
    }
    if (verdict === undefined || logits === undefined)
      throw new KtError("the model has no classification head")
    const all = logits.call(this.#model, state).toFloat32Array()
    return scoreOf(
      verdict.map((token) => all[token] as number),
      0,
      "softmax",
    )
  }

  /** Cuts the tokens where a sequence begins and where its state is to be kept, and counts the segments. */
  #writeSegments({ seqs, numTokens }: Batch): number {
    const start = this.#segmentStart.values
    const sources = this.#segmentSource.values
    const targets = this.#segmentTarget.values
    let segments = 0
    let token = 0
    for (const { numComputed, numScheduled, stateSource, stateSlot, stateSplits } of seqs) {
      let source = stateSource
      start[segments] = token
      for (const { at, slot } of stateSplits) {
        sources[segments] = source
        targets[segments] = slot
        source = slot
        start[++segments] = token + at - numComputed
      }
      sources[segments] = source
      targets[segments] = stateSlot
      segments++
      token += numScheduled
    }
    start[segments] = numTokens
    return segments
  }

  #statesOn(device: Backend): BatchStates | undefined {
    if (this.#states === undefined) return undefined
    const segments = this.#numSegments
    return {
      segments: {
        start: this.#segmentStart.view([segments + 1], device),
        source: this.#segmentSource.view([segments], device),
        target: this.#segmentTarget.view([segments], device),
      },
      layers: this.#states.layers,
    }
  }

  /** Brings a row of the block tables up to date: most steps add no page. */
  #writePages(row: number, seq: Sequence): void {
    const { pages, epoch } = seq
    if (this.#rowSeq[row] !== seq || this.#rowEpoch[row] !== epoch) {
      this.#rowSeq[row] = seq
      this.#rowEpoch[row] = epoch
      this.#rowPages[row] = 0
    }
    const start = row * this.#maxPages
    for (let i = this.#rowPages[row] as number; i < pages.length; i++)
      this.#blockTables.values[start + i] = pages[i] as number
    this.#rowPages[row] = pages.length
  }

  /** `chosen`: the greatest logits were chosen in the step. */
  #sample(batch: Batch, all: Tensor, chosen = false): StepOutput {
    const rows = this.#rows
    rows.length = 0
    for (const seq of batch.seqs) if (seq.pooler === undefined && wantsToken(seq)) rows.push(seq)
    this.#readPrompts(batch, all)
    if (rows.length === 0) return { tokens: this.#tokens, logprobs: [] }
    const logits = all.narrow(0, 0, this.#firstPromptRow)
    if (rows.some((seq) => draftOf(seq) > 0)) return this.#check(batch, logits)
    const drawn = this.#sampler.sample(logits, rows, 0, chosen)
    if (rows.length === batch.seqs.length) return drawn
    const logprobs = new Array<StepOutput["logprobs"][number]>(batch.seqs.length).fill(undefined)
    let row = 0
    for (let i = 0; i < batch.seqs.length; i++) {
      const seq = batch.seqs[i] as Sequence
      if (seq.pooler !== undefined || !wantsToken(seq)) continue
      this.#tokens[i] = drawn.tokens[row] as number
      logprobs[i] = drawn.logprobs[row++]
    }
    return { tokens: this.#tokens, logprobs }
  }

  /** Log-probabilities of the prompts' tokens, from the model's own distribution; the logits go with the step. */
  #readPrompts({ seqs }: Batch, logits: Tensor): void {
    let row = this.#firstPromptRow
    for (const seq of seqs) {
      const count = promptRowsOf(seq)
      const n = seq.params.promptLogprobs
      if (count === 0 || n === undefined) continue
      const next = seq.tokens.slice(seq.numComputed + 1, seq.numComputed + 1 + count)
      const { backend } = this.#sampler
      const own = onDevice(logits.narrow(0, row, count), backend)
      const out = logprobs(own, Tensor.from(backend, next, [count]), n)
      row += count
      backend.synchronize()
      const chances = out.token.toFloat32Array()
      const ids = out.topIds?.toInt32Array() ?? new Int32Array(0)
      const values = out.topLogprobs?.toFloat32Array() ?? new Float32Array(0)
      for (let i = 0; i < count; i++) {
        const top = Array.from({ length: n }, (_, j) => {
          return [ids[i * n + j] as number, values[i * n + j] as number] as const
        })
        // by position: what is computed again after it lost its pages is the same
        seq.promptLogprobs[seq.numComputed + i] = { logprob: chances[i] as number, top }
      }
    }
  }

  /** Draws each sequence's tokens as far as its guesses are what is drawn, and one more. */
  #check(batch: Batch, logits: Tensor): StepOutput {
    const { seqs } = batch
    const logprobs = new Array<TokenLogprobs | undefined>(seqs.length).fill(undefined)
    const more: FurtherToken[][] = []
    const best = this.#sampler.bestOf(logits, this.#rows)
    let row = 0
    for (const [i, seq] of seqs.entries()) {
      const further: FurtherToken[] = []
      more.push(further)
      if (seq.pooler !== undefined || !wantsToken(seq)) continue
      const drafted = draftOf(seq)
      for (let ahead = 0; ahead <= drafted; ahead++) {
        const drawn =
          best === undefined
            ? this.#sampler.sampleAhead(logits.narrow(0, row + ahead, 1), seq, ahead)
            : { token: best[row + ahead] as number, logprobs: undefined }
        if (ahead > 0) further.push(drawn)
        else {
          this.#tokens[i] = drawn.token
          logprobs[i] = drawn.logprobs
        }
        if (drawn.token !== seq.tokens[seq.length + ahead]) break
      }
      row += drafted + 1
    }
    return { tokens: this.#tokens, logprobs, more }
  }

  [Symbol.dispose](): void {
    for (const input of [
      this.#inputIds,
      this.#positions,
      this.#slotMapping,
      this.#blockTables,
      this.#queryStart,
      this.#seqLens,
      this.#logitsRows,
      this.#tokenTypes,
      this.#generatedRows,
      this.#segmentStart,
      this.#segmentSource,
      this.#segmentTarget,
    ])
      input[Symbol.dispose]()
    this.#sampler[Symbol.dispose]()
    this.#rowSeq.fill(undefined)
    this.#rows.length = 0
  }
}
