import type { EngineStats } from "./api.ts"

/** What was seen of one engine: columns of equal length, oldest first, as the charts take them. */
export interface History {
  /** Seconds since 1970. */
  times: number[]
  generated: (number | null)[]
  prompt: (number | null)[]
  running: number[]
  waiting: number[]
}

/** Ten minutes of an answer every two seconds. */
const MAX_POINTS = 300
/** After a longer pause nothing is known of the time between, and the charts show a gap. */
const MAX_GAP_S = 15

interface Seen {
  history: History
  last: { seconds: number; stats: EngineStats } | undefined
}

const seen = new Map<string, Seen>()

/** Adds what an engine said at a time (ms) to what is known of it. Counters that fall are those of another engine. */
export function record(model: string, stats: EngineStats, nowMs: number): History {
  const seconds = nowMs / 1000
  const known = seen.get(model)
  const before = known?.last
  const isNew =
    before !== undefined && stats.generatedTokensTotal < before.stats.generatedTokensTotal
  const start = isNew ? undefined : known
  const history = start?.history ?? {
    times: [],
    generated: [],
    prompt: [],
    running: [],
    waiting: [],
  }
  const elapsed = before === undefined || isNew ? 0 : seconds - before.seconds
  const rate = (key: "generatedTokensTotal" | "promptTokensTotal"): number | null =>
    before === undefined || elapsed <= 0 || elapsed > MAX_GAP_S
      ? null
      : Math.max(0, stats[key] - before.stats[key]) / elapsed
  const next: History = {
    times: [...history.times, seconds].slice(-MAX_POINTS),
    generated: [...history.generated, rate("generatedTokensTotal")].slice(-MAX_POINTS),
    prompt: [...history.prompt, rate("promptTokensTotal")].slice(-MAX_POINTS),
    running: [...history.running, stats.running].slice(-MAX_POINTS),
    waiting: [...history.waiting, stats.waiting].slice(-MAX_POINTS),
  }
  seen.set(model, { history: next, last: { seconds, stats } })
  return next
}

export function historyOf(model: string): History | undefined {
  return seen.get(model)?.history
}
