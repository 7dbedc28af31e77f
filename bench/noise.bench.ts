/**
 * What a neighbour on the machine costs: tokens a second of one stream alone, and beside a process that computes for a
 * moment every few milliseconds (as a server's main thread and its client do), in turns. The neighbour's share of all
 * cores is what nobody can win back.
 *
 * `bun bench/noise.bench.ts MODEL [--threads N] [--tokens N] [--rounds N] [--burst MS] [--every MS] [--json FILE]`
 */
import { parseArgs } from "node:util"

import { median } from "../src/cli/bench-model.ts"
import { engineConfig } from "../src/config.ts"
import { Engine } from "../src/engine/engine.ts"
import { report } from "./report.ts"
import { streamRate } from "./stream.ts"

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: "0" },
    tokens: { type: "string", default: "128" },
    rounds: { type: "string", default: "9" },
    burst: { type: "string", default: "0.2" },
    every: { type: "string", default: "4" },
    json: { type: "string" },
  },
})
const [model] = positionals
if (model === undefined) throw new Error("which model? bun bench/noise.bench.ts MODEL")
const tokens = Number(flags.tokens)
const burst = Number(flags.burst)
const every = Number(flags.every)

const NEIGHBOUR = `
  for (;;) {
    Bun.sleepSync(${every - burst})
    const start = performance.now()
    while (performance.now() - start < ${burst});
  }`

async function beside(engine: Engine): Promise<number> {
  const neighbour = Bun.spawn([process.execPath, "-e", NEIGHBOUR], {
    stdio: ["ignore", "ignore", "inherit"],
  })
  try {
    await Bun.sleep(150) // its own start is over by then
    return streamRate(engine, tokens)
  } finally {
    neighbour.kill()
    await neighbour.exited
  }
}

using engine = await Engine.create(
  engineConfig({ model, threads: Number(flags.threads), prefixCache: false }),
)
streamRate(engine, tokens)
const rows: { alone: number; beside: number }[] = []
for (let i = 0; i < Number(flags.rounds); i++)
  rows.push({ alone: streamRate(engine, tokens), beside: await beside(engine) })
const { threads, isa } = engine.info
report(
  [
    {
      "alone tok/s": median(rows.map((row) => row.alone)).toFixed(1),
      "beside tok/s": median(rows.map((row) => row.beside)).toFixed(1),
      "beside / alone": median(rows.map((row) => row.beside / row.alone)).toFixed(3),
      limit: (1 - burst / every / threads).toFixed(3),
    },
  ],
  flags.json,
  { model, threads, isa, tokens, burst, every },
)
