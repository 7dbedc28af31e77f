/**
 * What constrained output costs: one stream's time per token with a grammar that allows nearly every token, and without,
 * in turns; and the longest gap of a stream that runs while another request comes: without a grammar, with the model's
 * first one, and with others.
 *
 * `bun bench/grammar.bench.ts MODEL [--threads N] [--tokens N] [--rounds N] [--json FILE]`
 */
import { parseArgs } from "node:util"

import { median } from "../src/cli/bench-model.ts"
import { openSession } from "../src/cli/session.ts"
import { engineConfig } from "../src/config.ts"
import { GREEDY } from "../src/engine/params.ts"
import { tokenTable } from "../src/server/token-table.ts"
import type { GenerateParams } from "../src/worker/protocol.ts"
import { report } from "./report.ts"
import { PROMPT } from "./stream.ts"

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: "0" },
    tokens: { type: "string", default: "96" },
    rounds: { type: "string", default: "9" },
    json: { type: "string" },
  },
})
const [model] = positionals
if (model === undefined) throw new Error("which model? bun bench/grammar.bench.ts MODEL")
const tokens = Number(flags.tokens)

const PARAMS: GenerateParams = { ...GREEDY, maxTokens: tokens, stopTokens: [0], ignoreEos: true }

const { client, tokenizer } = await openSession(
  engineConfig({
    model,
    threads: Number(flags.threads),
    contextLength: 2048,
    kvCacheTokens: 4096,
    prefixCache: false,
    streamIntervalMs: 0,
  }),
)
client.setVocabulary(tokenTable(tokenizer))

/** When the tokens of an answer came, into `came` while they do. */
async function times(grammar?: string, came: number[] = []): Promise<number[]> {
  const params = grammar === undefined ? PARAMS : { ...PARAMS, grammar }
  for await (const events of client.generate(PROMPT, params)) {
    const [event] = events
    if (event?.finish === "error") throw new Error(event.error)
    for (const _ of events) came.push(performance.now())
  }
  return came
}

/** Any text but one letter, in words of another grammar each. */
const grammarOf = (name: number): string =>
  JSON.stringify({
    type: "structural_tag",
    format: { type: "regex", pattern: `[^\\u{${(0x2460 + name).toString(16)}}]*` },
  })

function perToken(came: readonly number[]): number {
  return ((came.at(-1) as number) - (came[0] as number)) / (came.length - 1)
}

/** The longest gap of a running stream from the moment when another request comes, and its median step before. */
async function gap(grammar?: string): Promise<{ ms: number; steps: number }> {
  const came: number[] = []
  const running = times(undefined, came)
  while (came.length < tokens / 4) await Bun.sleep(1)
  const since = performance.now()
  await times(grammar)
  await running
  const gaps = came.slice(1).map((at, i) => ({ at, ms: at - (came[i] as number) }))
  const before = gaps.filter(({ at }) => at < since).map(({ ms }) => ms)
  const after = gaps.filter(({ at }) => at >= since).map(({ ms }) => ms)
  const ms = Math.max(...after)
  return { ms, steps: ms / median(before) }
}

try {
  await gap()
  const without = []
  for (let i = 0; i < 5; i++) without.push(await gap())
  const first = await gap(grammarOf(0))
  const later = []
  for (let i = 1; i <= 5; i++) later.push(await gap(grammarOf(i)))
  const rounds = []
  for (let i = 0; i < Number(flags.rounds); i++)
    rounds.push({ free: perToken(await times()), bound: perToken(await times(grammarOf(9))) })
  const shown = (gaps: readonly { ms: number; steps: number }[]): string =>
    `${median(gaps.map(({ ms }) => ms)).toFixed(1)} ms, ${median(gaps.map(({ steps }) => steps)).toFixed(1)} steps`
  report(
    [
      {
        vocabulary: client.info.vocabSize,
        "ms a token": median(rounds.map(({ free }) => free)).toFixed(2),
        "with a grammar": median(rounds.map(({ bound }) => bound)).toFixed(2),
        "grammar's part": median(rounds.map(({ free, bound }) => bound / free - 1)).toFixed(3),
        "gap, no grammar": shown(without),
        "first grammar": shown([first]),
        "later ones": shown(later),
      },
    ],
    flags.json,
    { threads: client.info.threads, isa: client.info.isa, model },
  )
} finally {
  await client.close()
}
