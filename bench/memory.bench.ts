/**
 * What a model takes of its devices beside what its plan says: of each GPU the least memory that was free between steps
 * of a prompt and of tokens after it, against what was free before.
 * `bun bench/memory.bench.ts MODEL [--gpu-memory BYTES] [--ctx N] [--prompt N] [--generate N] [--chunk-size N]`
 */
import { parseArgs } from "node:util"

import { addSequence } from "../src/cli/bench-model.ts"
import { engineConfig } from "../src/config.ts"
import { gpus } from "../src/engine/auto-place.ts"
import { freeBytes } from "../src/engine/backends.ts"
import { buildModel } from "../src/engine/build.ts"
import { Engine } from "../src/engine/engine.ts"
import { kvLayers, kvType } from "../src/engine/kv-layers.ts"
import { planRows } from "../src/engine/plan-report.ts"
import { planDevices } from "../src/engine/plan.ts"

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    "gpu-memory": { type: "string", default: "0" },
    ctx: { type: "string", default: "0" },
    prompt: { type: "string", default: "512" },
    generate: { type: "string", default: "16" },
    "chunk-size": { type: "string", default: "512" },
    threads: { type: "string", default: "0" },
  },
})

const config = engineConfig({
  model: positionals[0] ?? "",
  vramBytes: Number(flags["gpu-memory"]),
  contextLength: Number(flags.ctx),
  maxBatchTokens: Number(flags["chunk-size"]),
  threads: Number(flags.threads),
  maxBatchSize: 1,
  prefixCache: false,
})
const gib = (bytes: number): string => (bytes / 2 ** 30).toFixed(2)
const free = (): Map<string, number> =>
  new Map(gpus().map(({ name, memoryFreeBytes }) => [name, memoryFreeBytes]))

const built = await buildModel(config)
const limit = (device: string): number =>
  device === "cpu" ? freeBytes(device) : config.vramBytes || freeBytes(device)
const plan = planDevices(config, built, kvType(config, kvLayers(built.config)), limit)
const rows = planRows(built, plan)
built.weights.close()

const before = free()
const started = performance.now()
using engine = await Engine.create(config, {
  onLog: (level, line) => void (level === "warning" && console.log(line)),
})
const loaded = free()
console.log(`loaded in ${((performance.now() - started) / 1000).toFixed(1)} s`)
const least = new Map(loaded)
const vocabulary = built.config.vocab_size
const prompt = Int32Array.from(
  { length: Number(flags.prompt) },
  (_, i) => 300 + ((i * 7919) % (vocabulary - 400)),
)
addSequence(engine, 1, prompt, Number(flags.generate))
const begun = performance.now()
let [first, last, tokens] = [0, 0, 0]
const ids = new Set<number>()
while (engine.hasWork) {
  for (const { token, finish, error } of engine.step()) {
    if (finish === "error") throw new Error(error)
    last = performance.now()
    if (tokens++ === 0) first = last
    ids.add(token)
  }
  for (const [device, bytes] of free())
    least.set(device, Math.min(bytes, least.get(device) ?? bytes))
}
console.log(
  `prompt of ${prompt.length}: ${((first - begun) / 1000).toFixed(2)} s; ${tokens} tokens, ${ids.size} of them different, ${((tokens - 1) / ((last - first) / 1000)).toFixed(1)} tokens/s`,
)
for (const { device, what, weightBytes, kvBytes, workspaceBytes, totalBytes } of rows) {
  console.log(`${device}: ${what}`)
  console.log(
    `  planned ${gib(totalBytes)} GiB: weights ${gib(weightBytes)}, cache ${gib(kvBytes)}, workspace ${gib(workspaceBytes)}`,
  )
  const was = before.get(device)
  if (was === undefined) continue
  const taken = (at: ReadonlyMap<string, number>): string => gib(was - (at.get(device) ?? was))
  console.log(`  taken ${taken(loaded)} GiB after loading, at most ${taken(least)}`)
}
