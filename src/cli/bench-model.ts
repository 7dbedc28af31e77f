import type { EngineConfig } from "../config.ts"
import { engineConfig } from "../config.ts"
import { buildModel } from "../engine/build.ts"
import { Engine } from "../engine/engine.ts"
import { GREEDY } from "../engine/params.ts"
import { KtError } from "../errors.ts"
import type { StepTimes } from "../worker/protocol.ts"
import {
  bestLimits,
  kindsOf,
  leastSeconds,
  type Limits,
  measureLimits,
  type ModelWork,
  modelWork,
} from "./bench-limits.ts"
import { canRun, choosePeer, type Peer, type PeerChoice, runPeer } from "./bench-peer.ts"

export interface BenchCase {
  /** pp: prompt processing; tg: token generation. */
  readonly kind: "pp" | "tg"
  readonly tokens: number
  /** Sequences at once; their tokens are counted together. */
  readonly streams: number
  /** Positions that are there before. */
  readonly depth: number
}

export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

/** Another program's rates. */
export interface PeerResult extends Spread {
  readonly program: string
  readonly flags: readonly string[]
  readonly threads: number
  /** Median over repetitions of our rate divided by this one. */
  readonly ratio: number
}

/** A line of the result; rates are tokens/s. */
export interface BenchRow extends Spread {
  readonly test: string
  readonly threads: number
  /** What the machine's own limit would give while the median was reached, by the share; absent where several devices
   * compute, whose limits do not add up to one. */
  readonly limit?: number
  /** Of the limit as it was beside each repetition: the median over them. */
  readonly share?: number
  /** Where a step's time went in the last repetition. */
  readonly step?: MeanStep
  readonly peers?: readonly PeerResult[]
  /** Against the better of the peers. */
  readonly ratio?: number
}

export interface BenchOptions {
  readonly cases: readonly BenchCase[]
  readonly repetitions: number
  readonly peers: readonly Peer[]
  readonly log: (line: string) => void
}

/** Seconds for each of the machine's limits, before and after each repetition: they move within seconds where others use it. */
const LIMIT_SECONDS = 0.1

/** Tokens generated before those that are timed: the others' programs load and warm up right before theirs. */
export const WARM_TOKENS = 16

export function caseName({ kind, tokens, streams, depth }: BenchCase): string {
  const many = streams > 1 ? ` x${streams}` : ""
  return `${kind}${tokens}${many}${depth > 0 ? ` @${depth}` : ""}`
}

/** Measures one model at one thread count: ours and each peer in turns, repetition by repetition. */
export async function benchModel(options: EngineConfig, bench: BenchOptions): Promise<BenchRow[]> {
  const { cases, repetitions, peers, log } = bench
  const work = await workOf(options)
  const longest = Math.max(...cases.map(({ tokens }) => tokens)) + 1
  const streams = Math.max(...cases.map((one) => one.streams))
  // the scheduler starts a sequence only where one more page for each that runs remains
  const pages = streams * (Math.ceil((longest + 1) / options.pageSize) + 1)
  const config = engineConfig({
    ...options,
    contextLength: longest,
    kvCacheTokens: pages * options.pageSize,
    maxBatchSize: streams,
    // every prompt is computed
    prefixCache: false,
  })
  using engine = await Engine.create(config)
  const { threads, kvCacheBytes, kvCacheTokens } = engine.info
  const kvBytes = kvCacheBytes / kvCacheTokens
  const rows: BenchRow[] = []
  for (const one of cases) {
    const warm = one.kind === "pp" ? one : { ...one, tokens: Math.min(one.tokens, WARM_TOKENS) }
    const run = {
      warm: () => void runOnce(engine, warm),
      rate: () => runOnce(engine, one),
      ...limitRun(engine, work, one, kvBytes),
    }
    run.rate()
    const chosen = await choices(peers, options.model, one, threads)
    const measured: Measured = { ours: [], peers: chosen.map((peer) => ({ ...peer, rates: [] })) }
    for (let r = 0; r < repetitions; r++) {
      const runs = [
        () => void measured.ours.push(repeat(run)),
        ...measured.peers.map(({ peer, choice, rates }) => async () => {
          rates.push(await runPeer(peer, peerRun(options.model, one), choice))
        }),
      ]
      for (let i = 0; i < runs.length; i++) await runs[(i + r) % runs.length]?.()
      log(repetitionLine(one, threads, r, measured))
    }
    rows.push(rowOf(one, threads, measured))
  }
  return rows
}

/** What a case does again and again. */
export interface Run {
  readonly warm: () => void
  /** Tokens/s. */
  readonly rate: () => number
  readonly times: () => StepTimes
  /** Tokens/s that the machine would reach just now; absent where several devices compute. */
  readonly limits?: () => Limits
  readonly limit: (limits: Limits) => number
}

/** One repetition: our rate, and what the machine would have reached just then, the better of before and after. */
export function repeat({ warm, rate, times, limits, limit }: Run): Repetition {
  const before = limits?.()
  warm()
  const first = times()
  const ours = rate()
  const step = meanStep(first, times())
  const own = { rate: ours, ...(step === undefined ? {} : { step }) }
  if (limits === undefined || before === undefined) return own
  return { ...own, limit: limit(bestLimits([before, limits()])) }
}

/** Milliseconds of a launched step: the GPU's, the CPU's kernels, waiting for each other, and the rest. */
export interface MeanStep {
  readonly gpu: number
  readonly cpu: number
  readonly sync: number
  readonly host: number
}

function meanStep(before: StepTimes, after: StepTimes): MeanStep | undefined {
  const steps = after.steps - before.steps
  if (steps === 0 || after.gpuSeconds === before.gpuSeconds) return undefined
  const ms = (key: Exclude<keyof StepTimes, "steps">): number =>
    ((after[key] - before[key]) * 1000) / steps
  return {
    gpu: ms("gpuSeconds"),
    cpu: ms("cpuSeconds"),
    sync: ms("syncSeconds"),
    host: ms("hostSeconds"),
  }
}

/** Tokens/s. */
export interface Repetition {
  readonly rate: number
  /** Of steps that a GPU takes part in, launched as graphs. */
  readonly step?: MeanStep
  readonly limit?: number
}

/** Rates of one case. */
export interface Measured {
  readonly ours: Repetition[]
  readonly peers: readonly { peer: Peer; choice: PeerChoice; rates: number[] }[]
}

export function repetitionLine(
  one: BenchCase,
  threads: number,
  repetition: number,
  { ours, peers }: Measured,
): string {
  const { rate, limit, step } = ours.at(-1) as Repetition
  const most = limit === undefined ? "" : `, limit ${limit.toFixed(1)}`
  const theirs = peers.map(({ rates }) => `, peer ${rates.at(-1)!.toFixed(1)}`)
  return `${caseName(one)} -t ${threads}, repetition ${repetition + 1}: ${rate.toFixed(1)} tokens/s${most}${theirs.join("")}${stepText(step)}`
}

function stepText(step: MeanStep | undefined): string {
  if (step === undefined) return ""
  const { gpu, cpu, sync, host } = step
  const parts = [
    `GPU ${gpu.toFixed(2)}`,
    ...(cpu > 0 ? [`CPU ${cpu.toFixed(2)}`, `waiting ${sync.toFixed(2)}`] : []),
    `host ${host.toFixed(2)}`,
  ]
  return `, a step of ${(gpu + cpu + sync + host).toFixed(2)} ms: ${parts.join(", ")}`
}

/** What makes each peer fastest that can run the case at all; several streams at once none of them can. */
export async function choices(
  peers: readonly Peer[],
  model: string,
  one: BenchCase,
  threads: number,
): Promise<{ readonly peer: Peer; readonly choice: PeerChoice }[]> {
  const run = peerRun(model, one)
  const able = one.streams > 1 ? [] : peers.filter((peer) => canRun(peer, run))
  const found: { peer: Peer; choice: PeerChoice }[] = []
  for (const peer of able) {
    // enough to tell flags apart
    const short = { ...run, depth: 0, tokens: Math.min(run.tokens, run.kind === "tg" ? 16 : 128) }
    found.push({ peer, choice: await choosePeer(peer, short, threads) })
  }
  return found
}

export function peerRun(
  model: string,
  { kind, tokens, depth }: BenchCase,
  repetitions = 1,
): Parameters<typeof runPeer>[1] {
  return { model, kind, tokens, depth, repetitions }
}

export function rowOf(one: BenchCase, threads: number, { ours, peers }: Measured): BenchRow {
  const spread = spreadOf(ours.map(({ rate }) => rate))
  const shares = ours.flatMap(({ rate, limit }) => (limit === undefined ? [] : [rate / limit]))
  const share = median(shares)
  const step = ours.at(-1)?.step
  const row = {
    test: caseName(one),
    threads,
    ...spread,
    ...(step === undefined ? {} : { step }),
    ...(shares.length === 0 ? {} : { limit: spread.median / share, share }),
  }
  if (peers.length === 0) return row
  const results = peers.map(({ peer, choice, rates }) => ({
    program: peer.program,
    flags: [...choice.flags, ...peer.args],
    threads: choice.threads,
    ...spreadOf(rates),
    ratio: median(
      ours.flatMap(({ rate }, r) => (rates[r] === undefined ? [] : [rate / (rates[r] as number)])),
    ),
  }))
  return { ...row, peers: results, ratio: Math.min(...results.map(({ ratio }) => ratio)) }
}

/** Tokens/s that the machine would reach in a case. */
export function limitOf(
  config: EngineConfig,
  work: ModelWork,
  limits: Limits,
  { kind, tokens, streams, depth }: BenchCase,
  kvBytes: number,
): number {
  if (kind === "tg") {
    const step = { sequences: streams, tokens: 1, depth: depth + (tokens - 1) / 2, kvBytes }
    return streams / leastSeconds(work, limits, step)
  }
  let seconds = 0
  for (let at = 0; at < tokens; at += config.maxBatchTokens) {
    const chunk = Math.min(config.maxBatchTokens, tokens - at)
    const step = { sequences: 1, tokens: chunk, depth: depth + at, kvBytes }
    seconds += leastSeconds(work, limits, step)
  }
  return tokens / seconds
}

/** Tokens/s of a prompt until its first token is there, or of tokens after prompts of one, as llama-bench counts. */
function runOnce(engine: Engine, { kind, tokens, streams }: BenchCase): number {
  const started = performance.now()
  for (let s = 1; s <= streams; s++) {
    const ids = randomIds(kind === "pp" ? tokens : 1, engine.info.vocabSize)
    addSequence(engine, s, ids, kind === "pp" ? 1 : tokens)
  }
  runToEnd(engine)
  return (streams * tokens) / ((performance.now() - started) / 1000)
}

export function randomIds(count: number, vocabSize: number): Int32Array {
  return new Int32Array(count).map(() => Math.floor(Math.random() * vocabSize))
}

export function addSequence(engine: Engine, id: number, ids: Int32Array, maxTokens: number): void {
  engine.add(id, ids, { ...GREEDY, maxTokens, ignoreEos: true })
}

/** Prompt tokens that were known from before. @throws KtError where a step fails */
export function runToEnd(engine: Engine): number {
  let cached = 0
  while (engine.hasWork)
    for (const event of engine.step()) {
      if (event.finish === "error") throw new KtError(event.error ?? "the step failed")
      cached += event.first?.cachedTokens ?? 0
    }
  return cached
}

export async function workOf(options: EngineConfig): Promise<ModelWork> {
  const { config, weights } = await buildModel(options)
  try {
    return modelWork(config, weights, options.precision)
  } finally {
    weights.close()
  }
}

/** How a case's limit is measured: on the device that all of the engine's weights are on. */
export function limitRun(
  engine: Engine,
  work: ModelWork,
  one: BenchCase,
  kvBytes: number,
): Pick<Run, "times" | "limits" | "limit"> {
  const { config } = engine
  const limit = (limits: Limits): number => limitOf(config, work, limits, one, kvBytes)
  const devices = [...new Set(engine.details().modules.map(({ device }) => device))]
  const times = (): StepTimes => engine.stats().stepTimes
  if (devices.length > 1) return { times, limit }
  const device = devices[0] ?? engine.info.device
  return { times, limits: () => limitsOf({ ...config, device }, work), limit }
}

/** The machine's limits for the work of a model, which a cache may hold whole. */
export function limitsOf({ threads, device }: EngineConfig, work: ModelWork): Limits {
  return measureLimits({
    threads,
    ...(device === undefined ? {} : { device }),
    seconds: LIMIT_SECONDS,
    kinds: kindsOf(work),
    workingSet: work.bytes + work.expertBytes,
  })
}

function spreadOf(values: readonly number[]): Spread {
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) }
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  return sorted.length % 2 === 1
    ? sorted[Math.floor(middle)]!
    : (sorted[middle - 1]! + sorted[middle]!) / 2
}
