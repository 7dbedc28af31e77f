/**
 * Microseconds to draw one token, per sampler and vocabulary; logits as sharp as a language model's and nearly flat.
 * `bun bench/sampling.bench.ts [--threads N] [--ms TIME]`
 */
import { parseArgs } from "node:util"

import { Bench } from "tinybench"

import { Backend } from "../src/native/backend.ts"
import { argmax, SamplingBatch, SamplingState } from "../src/ops/index.ts"
import { Tensor } from "../src/tensor/tensor.ts"
import type { SamplingParams } from "../src/worker/protocol.ts"
import { randomArray } from "../test/ops/harness.ts"
import { OFF } from "../test/reference/sampling.ts"
import { medianSeconds, report } from "./report.ts"

const { values: flags } = parseArgs({
  options: {
    threads: { type: "string", default: "0" },
    ms: { type: "string", default: "60" },
    json: { type: "string" },
  },
})

const SAMPLERS: Readonly<Record<string, Partial<SamplingParams>>> = {
  "server's defaults": { temperature: 0.8, topK: 40, topP: 0.95, minP: 0.05 },
  "llama.cpp's order": {
    temperature: 0.8,
    topK: 40,
    topP: 0.95,
    minP: 0.05,
    samplers: [
      "penalties",
      "dry",
      "top_n_sigma",
      "top_k",
      "typ_p",
      "top_p",
      "min_p",
      "xtc",
      "temperature",
    ],
  },
  "temperature alone": {},
  "top-p 0.95": { topP: 0.95 },
  "typical 0.9": { typicalP: 0.9 },
  "top-n-sigma 1": { topNSigma: 1 },
  "xtc after min-p": { minP: 0.05, xtcProbability: 1 },
  "dynamic temperature": { dynatempRange: 0.5 },
  "mirostat 1": { mirostat: 1 },
  "mirostat 2": { mirostat: 2 },
  "penalties, 4K history": { repetitionPenalty: 1.1, topK: 40 },
  "dry, 4K history": { dryMultiplier: 0.8, dryPenaltyLastN: -1, topK: 40 },
}

const threads = Number(flags.threads)
using backend = new Backend(threads > 0 ? { threads } : {})
using batch = new SamplingBatch(backend)
const prompt = Array.from({ length: 4096 }, (_, i) => (i * i) % 997)
const rows: Record<string, string>[] = []
for (const vocabulary of [49_152, 151_936]) {
  for (const [shape, logits] of [
    // half of the probability in a few tokens: cubes of a normal spread
    ["sharp", randomArray(vocabulary, 1).map((x) => x ** 3 * 14)],
    ["flat", randomArray(vocabulary, 2, 0.5)],
  ] as const) {
    backend.resetStep()
    const tensor = Tensor.from(backend, logits, [1, vocabulary])
    const out = Tensor.from(backend, new Int32Array(1), [1])
    const bench = new Bench({ time: Number(flags.ms), warmupTime: 20 })
    let step = 0
    bench.add("greedy", () => void argmax(tensor, out))
    const states: SamplingState[] = []
    for (const [name, params] of Object.entries(SAMPLERS)) {
      const state = new SamplingState(backend, { ...OFF, ...params }, prompt)
      states.push(state)
      bench.add(name, () => {
        const uniform = (step++ * 0.618034) % 1
        batch.sample(tensor, [state], [{ uniform, xtc: 0.5 }], out)
      })
    }
    await bench.run()
    for (const task of bench.tasks)
      rows.push({
        vocabulary: String(vocabulary),
        logits: shape,
        sampler: task.name,
        us: (medianSeconds(bench, task.name) * 1e6).toFixed(1),
      })
    for (const state of states) state[Symbol.dispose]()
  }
}
report(rows, flags.json, { isa: backend.isa, threads: backend.threads })
