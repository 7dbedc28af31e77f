import { KtError, UsageError } from "../errors.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { openTarget, type Target } from "./bench-serve-client.ts"
import {
  type Load,
  type LoadResult,
  type LoadStats,
  loadStats,
  type Mix,
  type Percentiles,
  runLoad,
} from "./bench-serve-load.ts"
import { counts } from "./bench-table.ts"
import { logger } from "./log.ts"
import { table, write, writeJson } from "./output.ts"

/** Requests of a closed loop for each that is under way at once. */
const REQUESTS_EACH = 4

export const benchServe = defineCommand({
  name: "bench serve",
  summary: "Measure running servers under load: time to first token, time per token, throughput",
  details: `Sends streamed /v1/completions with random prompts to a server of any make, and to the --peer servers in turns,
round by round, each with the same prompts. --concurrency keeps that many requests under way (a closed loop); --rate sends so
many a second at random times, whatever has come back (an open loop). TTFT is from sending to the first text, TPOT the mean
time between a request's tokens, both in ms; goodput counts the requests a second that keep to --max-ttft and --max-tpot.
--json prints {"rows":[…]}.`,
  positionals: [{ name: "URL", help: "server, as http://127.0.0.1:10002", required: true }],
  flags: {
    peer: { type: "list", hint: "url", help: "another server to compare with (repeatable)" },
    prompt: {
      type: "string",
      short: "p",
      hint: "n[:weight],…",
      default: "512",
      help: "prompt lengths, and how often each is drawn",
    },
    shared: {
      type: "integer",
      min: 0,
      max: 1_048_576,
      default: 0,
      help: "tokens that all prompts begin with (prefix caches)",
    },
    gen: {
      type: "integer",
      short: "n",
      min: 2,
      max: 65_536,
      default: 64,
      help: "tokens to generate",
    },
    concurrency: {
      type: "string",
      short: "c",
      hint: "n,…",
      default: "1,8",
      help: "requests under way at once; 0 = none of these",
    },
    requests: {
      type: "integer",
      min: 1,
      max: 1_000_000,
      help: `requests a round (default ${REQUESTS_EACH} for each that is under way)`,
    },
    rate: { type: "string", hint: "n,…", help: "requests a second, sent whatever has come back" },
    seconds: { type: "number", min: 0.1, max: 86_400, default: 30, help: "how long at each rate" },
    rounds: { type: "integer", short: "r", min: 1, max: 1000, default: 3, help: "rounds of each" },
    "max-ttft": { type: "number", min: 0, help: "ms; slower requests are no goodput" },
    "max-tpot": { type: "number", min: 0, help: "ms; slower requests are no goodput" },
    "api-key": { type: "string", hint: "key", help: "key that the servers ask for" },
    seed: { type: "integer", min: 0, default: 1, help: "what prompts and times are drawn from" },
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt bench serve http://127.0.0.1:10002 -c 1,8,32", says: "three closed loops" },
    {
      command:
        "kt bench serve http://127.0.0.1:10002 --peer http://127.0.0.1:8080 -p 128:3,2048 --shared 64",
      says: "beside another server, with a mix of prompts",
    },
    {
      command:
        "kt bench serve http://127.0.0.1:10002 -c 0 --rate 0.5,1,2 --max-ttft 2000 --max-tpot 50",
      says: "how many users it can keep content",
    },
  ],
  async run({ args, flags }) {
    const key = flags["api-key"]
    const urls = [args[0] as string, ...flags.peer]
    const targets = await Promise.all(urls.map((url) => openTarget(url, key)))
    const mix: Mix = {
      prompts: promptMix(flags.prompt),
      sharedTokens: flags.shared,
      genTokens: flags.gen,
    }
    const loads = loadsOf(flags)
    const bounds = {
      ttft: flags["max-ttft"] ?? Number.POSITIVE_INFINITY,
      tpot: flags["max-tpot"] ?? Number.POSITIVE_INFINITY,
    }
    const rows: Row[] = []
    for (const [number, load] of loads.entries()) {
      // prompts of an earlier load would be found in the servers' caches
      const seed = flags.seed + number * flags.rounds
      const results = await inTurns(targets, mix, load, flags.rounds, seed)
      for (const [i, target] of targets.entries()) {
        const rounds = results[i] as readonly LoadResult[]
        const stats = loadStats(rounds, bounds)
        if (stats.requests === 0)
          throw new KtError(rounds.flatMap(({ errors }) => errors)[0] ?? "no request was answered")
        rows.push({ load: loadName(load), server: target.url, model: target.model, ...stats })
      }
    }
    if (flags.json) return writeJson({ rows })
    await write(report(rows))
  },
})

interface Row extends LoadStats {
  readonly load: string
  readonly server: string
  readonly model: string
}

/** Each round asks every server, and begins with another, so that none has the quiet minutes. */
async function inTurns(
  targets: readonly Target[],
  mix: Mix,
  load: Load,
  rounds: number,
  seed: number,
): Promise<LoadResult[][]> {
  const results: LoadResult[][] = targets.map(() => [])
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < targets.length; turn++) {
      const i = (round + turn) % targets.length
      const target = targets[i] as Target
      const result = await runLoad(target, mix, load, seed + round)
      results[i]?.push(result)
      const [error] = result.errors
      if (error !== undefined)
        logger("bench").warn(`${result.errors.length} requests failed, the first: ${error}`)
      const { tokenRate, ttft } = loadStats([result], { ttft: 0, tpot: 0 })
      logger("bench").info(
        `${loadName(load)} ${target.url}: ${tokenRate.toFixed(1)} tokens/s, TTFT ${ttft.p50.toFixed(0)} ms`,
      )
    }
  }
  return results
}

function loadsOf(flags: {
  readonly concurrency: string
  readonly requests: number | undefined
  readonly rate: string | undefined
  readonly seconds: number
}): Load[] {
  const closed = counts("--concurrency", flags.concurrency, 0)
    .filter((concurrency) => concurrency > 0)
    .map((concurrency): Load => {
      const requests = flags.requests ?? concurrency * REQUESTS_EACH
      return { kind: "closed", concurrency, requests }
    })
  const open = (flags.rate ?? "")
    .split(",")
    .filter((word) => word !== "")
    .map((word): Load => {
      const rate = Number(word)
      if (!(rate > 0) || rate > 100_000)
        throw new UsageError(`--rate ${flags.rate}: expected numbers above 0 with commas between`)
      return { kind: "open", rate, seconds: flags.seconds }
    })
  if (closed.length + open.length === 0)
    throw new UsageError("--concurrency 0 without --rate leaves nothing to measure")
  return [...closed, ...open]
}

function promptMix(text: string): Mix["prompts"] {
  return text.split(",").map((word) => {
    const [length = "", weight = "1"] = word.split(":")
    const one = { tokens: Number(length), weight: Number(weight) }
    if (Number.isInteger(one.tokens) && one.tokens > 0 && length !== "" && one.weight > 0)
      return one
    throw new UsageError(`--prompt ${text}: expected lengths as 512 or 512:3 with commas between`)
  })
}

function loadName(load: Load): string {
  return load.kind === "closed" ? `${load.concurrency} at once` : `${load.rate}/s`
}

/** The first server's figures, and below each load the others' with the ratio of the first to them. */
function report(rows: readonly Row[]): string {
  const head = [
    "LOAD",
    "SERVER",
    "REQUESTS",
    "ERRORS",
    "REQ/s",
    "TOKENS/s",
    "TTFT p50",
    "p90",
    "p99",
    "TPOT p50",
    "p90",
    "p99",
    "GAP p99",
    "GOODPUT/s",
  ]
  const times = ({ p50, p90, p99 }: Percentiles, digits: number): string[] =>
    [p50, p90, p99].map((ms) => ms.toFixed(digits))
  const lines = rows.map((row) => [
    row.load,
    row.server,
    row.requests,
    row.errors,
    row.requestRate.toFixed(2),
    row.tokenRate.toFixed(1),
    ...times(row.ttft, 0),
    ...times(row.tpot, 1),
    row.longestGap.p99.toFixed(0),
    row.goodput.toFixed(2),
  ])
  const first = rows[0]?.server
  const ratios = rows
    .filter(({ server }) => server !== first)
    .map((peer) => {
      const ours = rows.find(({ load, server }) => load === peer.load && server === first) as Row
      const of = (a: number, b: number): string => (a / b).toFixed(2)
      return [
        peer.load,
        peer.server,
        of(ours.tokenRate, peer.tokenRate),
        of(ours.ttft.p50, peer.ttft.p50),
        of(ours.tpot.p50, peer.tpot.p50),
      ]
    })
  const compared = table(["LOAD", `${first} TO`, "TOKENS/s ×", "TTFT p50 ×", "TPOT p50 ×"], ratios)
  return table(head, lines) + (ratios.length === 0 ? "" : `\n${compared}`)
}
