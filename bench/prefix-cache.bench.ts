/**
 * Time to the first token of a long prompt: computed, and with its prefix in the KV pool, in host memory and on disk.
 * `bun bench/prefix-cache.bench.ts --model FILE [--tokens N] [--rounds N] [--dir FOLDER] [--threads N] [--ram MiB] [--json FILE]`
 */
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"

import { engineConfig } from "../src/config.ts"
import { Engine } from "../src/engine/engine.ts"
import { GREEDY } from "../src/engine/params.ts"
import { report } from "./report.ts"

const { values: flags } = parseArgs({
  options: {
    model: { type: "string" },
    tokens: { type: "string", default: "8000" },
    rounds: { type: "string", default: "5" },
    dir: { type: "string", default: tmpdir() },
    threads: { type: "string", default: "0" },
    ram: { type: "string", default: "2048" },
    json: { type: "string" },
  },
})
const { model } = flags
if (model === undefined) throw new Error("--model FILE is missing")
const tokens = Number(flags.tokens)
const cacheDir = mkdtempSync(join(flags.dir, "kt-prefix-cache-bench-"))

const config = engineConfig({
  model,
  threads: Number(flags.threads),
  // one context: a second prompt takes the first one's pages
  contextLength: Math.ceil((tokens + 64) / 32) * 32,
  kvCacheTokens: Math.ceil((tokens + 64) / 32) * 32,
  maxBatchSize: 1,
  cacheRamMib: Number(flags.ram),
  cacheDir,
})

const PARAMS = { ...GREEDY, maxTokens: 4, ignoreEos: true }

interface Answer {
  readonly ids: readonly number[]
  readonly cached: number
  readonly seconds: number
}

let nextId = 1
function ask(engine: Engine, prompt: Int32Array): Answer {
  const ids: number[] = []
  let seconds = 0
  let cached = 0
  const start = performance.now()
  engine.add(nextId++, prompt, PARAMS)
  while (engine.hasWork) {
    for (const event of engine.step()) {
      if (event.finish === "error") throw new Error(event.error)
      if (ids.length === 0) seconds = (performance.now() - start) / 1000
      cached = event.first?.cachedTokens ?? cached
      ids.push(event.token)
    }
  }
  return { ids, cached, seconds }
}

const prompt = (seed: number): Int32Array =>
  Int32Array.from(
    { length: tokens },
    (_, i) => (i * 7919 + seed * 104_729 + ((i * i) % 97)) % 30_000,
  )

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] as number
}

/** Asks the system to forget what it keeps of the cache's files. False where it cannot be asked. */
function dropPageCache(): boolean {
  let all = true
  for (const file of readdirSync(cacheDir, { recursive: true, encoding: "utf8" })) {
    const path = join(cacheDir, file)
    if (!statSync(path).isFile()) continue
    const dd = ["dd", `of=${path}`, "oflag=nocache", "conv=notrunc,fdatasync", "count=0"]
    try {
      all &&= Bun.spawnSync(dd, { stdin: null, stdout: "ignore", stderr: "ignore" }).success
    } catch {
      return false
    }
  }
  return all
}

function check(name: string, got: Answer, want: Answer, cached: number): number {
  if (got.ids.join() !== want.ids.join()) throw new Error(`${name}: other tokens than computed`)
  if (got.cached < cached) throw new Error(`${name}: ${got.cached} tokens were known`)
  return got.seconds
}

try {
  const a = prompt(1)
  const b = prompt(2)
  const rounds = Number(flags.rounds)
  const known = tokens - config.pageSize
  const computed: number[] = []
  const device: number[] = []
  const host: number[] = []
  const cold: number[] = []
  const warm: number[] = []
  let first: Answer
  let megabytes = 0
  {
    using engine = await Engine.create(config)
    first = ask(engine, a)
    computed.push(first.seconds)
    for (let i = 0; i < rounds; i++) device.push(check("device", ask(engine, a), first, known))
    const second = ask(engine, b)
    computed.push(second.seconds)
    for (let i = 0; i < rounds; i++) {
      host.push(check("host memory", ask(engine, a), first, known))
      host.push(check("host memory", ask(engine, b), second, known))
    }
    megabytes = engine.stats().cacheDeviceBytes / 1e6
  }
  let isDropped = true
  for (let i = 0; i < rounds; i++) {
    for (const times of [cold, warm]) {
      if (times === cold) isDropped &&= dropPageCache()
      using engine = await Engine.create(config)
      times.push(check("disk", ask(engine, a), first, known))
      if (engine.stats().cacheDiskTokensTotal < known) throw new Error("the disk was not read")
    }
  }
  const row = (tier: string, times: readonly number[]): object => ({
    tier,
    "TTFT ms": Number((median(times) * 1000).toFixed(1)),
    "of computing": Number((median(times) / median(computed)).toFixed(4)),
    "GB/s": tier === "computed" ? "" : Number((megabytes / 1000 / median(times)).toFixed(2)),
  })
  report(
    [
      row("computed", computed),
      row("device", device),
      row("host memory", host),
      row(isDropped ? "disk, page cache dropped" : "disk", cold),
      row("disk, in the page cache", warm),
    ],
    flags.json,
    { model, tokens, megabytes },
  )
} finally {
  rmSync(cacheDir, { recursive: true, force: true })
}
