import { uniform } from "../engine/random.ts"
import { complete, type Sample, type Target } from "./bench-serve-client.ts"

/** What requests look like. */
export interface Mix {
  /** Prompt lengths and how often each is drawn. */
  readonly prompts: readonly { readonly tokens: number; readonly weight: number }[]
  /** Tokens that all prompts begin with. */
  readonly sharedTokens: number
  readonly genTokens: number
}

/** A closed loop keeps so many requests under way; an open one sends so many a second, whatever has come back. */
export type Load =
  | { readonly kind: "closed"; readonly concurrency: number; readonly requests: number }
  | { readonly kind: "open"; readonly rate: number; readonly seconds: number }

export interface LoadResult {
  readonly samples: readonly Sample[]
  readonly errors: readonly string[]
  /** From the first request to the last answer. */
  readonly seconds: number
}

/** Numbers in 0 ≤ x < 1. */
type Draw = () => number

function draws(seed: number): Draw {
  let n = 0
  return () => uniform(seed, n++)
}

/** Sends one load to a server. Prompts come from `seed`, so that each server gets the same. */
export async function runLoad(
  target: Target,
  mix: Mix,
  load: Load,
  seed: number,
): Promise<LoadResult> {
  const random = draws(seed)
  // the shared beginning is of the mix and not of the round: later rounds find it where it is kept
  const shared = ids(draws(mix.sharedTokens), target.vocabSize, mix.sharedTokens)
  const next = (): readonly number[] => {
    const own = Math.max(1, drawn(mix, random) - shared.length)
    return [...shared, ...ids(random, target.vocabSize, own)]
  }
  const samples: Sample[] = []
  const errors: string[] = []
  const send = async (prompt: readonly number[]): Promise<void> => {
    try {
      samples.push(await complete(target, prompt, mix.genTokens))
    } catch (error) {
      errors.push(error instanceof Error ? error.message : String(error))
    }
  }
  const started = performance.now()
  if (load.kind === "closed") await closed(load.concurrency, load.requests, () => send(next()))
  else await open(load.rate, load.seconds, random, () => send(next()))
  return { samples, errors, seconds: (performance.now() - started) / 1000 }
}

async function closed(
  concurrency: number,
  requests: number,
  send: () => Promise<void>,
): Promise<void> {
  let left = requests
  const client = async (): Promise<void> => {
    while (left-- > 0) await send()
  }
  await Promise.all(Array.from({ length: concurrency }, client))
}

/** Arrivals at random (a Poisson process), as independent users have them. */
async function open(
  rate: number,
  seconds: number,
  random: Draw,
  send: () => Promise<void>,
): Promise<void> {
  const running: Promise<void>[] = []
  const started = performance.now()
  let due = 0
  for (;;) {
    due += -Math.log(1 - random()) / rate
    if (due > seconds) break
    const wait = due * 1000 - (performance.now() - started)
    if (wait > 0) await Bun.sleep(wait)
    running.push(send())
  }
  await Promise.all(running)
}

function drawn({ prompts }: Mix, random: Draw): number {
  let at = random() * prompts.reduce((sum, { weight }) => sum + weight, 0)
  for (const { tokens, weight } of prompts) {
    at -= weight
    if (at < 0) return tokens
  }
  return prompts.at(-1)?.tokens ?? 1
}

/** The first ids of a vocabulary are its control tokens and bytes, as a rule. */
function ids(random: Draw, vocabSize: number, count: number): number[] {
  const first = vocabSize > 1024 ? 512 : 0
  return Array.from({ length: count }, () => first + Math.floor(random() * (vocabSize - first)))
}

/** What was seen of a load, in ms, requests and tokens. */
export interface LoadStats {
  readonly requests: number
  readonly errors: number
  /** Requests answered a second. */
  readonly requestRate: number
  /** Generated tokens a second, of all requests together. */
  readonly tokenRate: number
  readonly ttft: Percentiles
  /** Mean time between a request's tokens. */
  readonly tpot: Percentiles
  readonly longestGap: Percentiles
  readonly total: Percentiles
  /** Requests a second that kept to both bounds. */
  readonly goodput: number
}

export interface Percentiles {
  readonly p50: number
  readonly p90: number
  readonly p99: number
}

/** Of several rounds together. Bounds in ms; infinite for none. */
export function loadStats(
  rounds: readonly LoadResult[],
  bounds: { readonly ttft: number; readonly tpot: number },
): LoadStats {
  const samples = rounds.flatMap((round) => round.samples)
  const seconds = rounds.reduce((sum, round) => sum + round.seconds, 0)
  const tpotOf = ({ ttft, total, tokens }: Sample): number =>
    tokens > 1 ? (total - ttft) / (tokens - 1) : 0
  const good = samples.filter((one) => one.ttft <= bounds.ttft && tpotOf(one) <= bounds.tpot)
  return {
    requests: samples.length,
    errors: rounds.reduce((sum, round) => sum + round.errors.length, 0),
    requestRate: samples.length / seconds,
    tokenRate: samples.reduce((sum, { tokens }) => sum + tokens, 0) / seconds,
    ttft: percentiles(samples.map(({ ttft }) => ttft)),
    tpot: percentiles(samples.map(tpotOf)),
    longestGap: percentiles(samples.map(({ longestGap }) => longestGap)),
    total: percentiles(samples.map(({ total }) => total)),
    goodput: good.length / seconds,
  }
}

/** By nearest rank; NaN of nothing. */
function percentiles(values: readonly number[]): Percentiles {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (share: number): number =>
    sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
}
