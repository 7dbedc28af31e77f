/**
 * Experts of one layer: GB/s of expert weights read against the machine's read bandwidth for few tokens, GOP/s against its
 * int8 dot rate for many. Every step's tokens choose other experts, evenly distributed.
 * `bun bench/moe.bench.ts [--shape NAME] [--types Q4_K,Q6_K] [--layout blocks|packed|both] [--tokens 1,2,8,512]
 *  [--threads N] [--isa LEVEL] [--ms TIME] [--json FILE]`; types are gate's and up's, then down's.
 */
import { parseArgs } from "node:util"

import { Bench } from "tinybench"

import { Backend } from "../src/native/backend.ts"
import { fusedExperts, measure, packWeight } from "../src/ops/index.ts"
import * as dtypes from "../src/tensor/dtype.ts"
import { type DTypeInfo, rowBytes } from "../src/tensor/dtype.ts"
import { Tensor } from "../src/tensor/tensor.ts"
import { randomArray } from "../test/ops/harness.ts"
import { randomWeight } from "../test/ops/weights.ts"
import { medianSeconds, report } from "./report.ts"

interface Shape {
  readonly experts: number
  readonly k: number
  readonly hidden: number
  readonly inter: number
}

/** `experts` is what fits in memory where the model has more. */
const SHAPES: Readonly<Record<string, Shape>> = {
  "qwen3-30b-a3b": { experts: 128, k: 8, hidden: 2048, inter: 768 },
  "qwen3-235b-a22b": { experts: 64, k: 8, hidden: 4096, inter: 1536 },
  "deepseek-v3": { experts: 32, k: 8, hidden: 7168, inter: 2048 },
  "gpt-oss-20b": { experts: 32, k: 4, hidden: 2880, inter: 2880 },
  mixtral: { experts: 8, k: 2, hidden: 4096, inter: 14336 },
}

const { values: flags } = parseArgs({
  options: {
    shape: { type: "string", default: "qwen3-30b-a3b" },
    types: { type: "string", default: "Q4_K,Q6_K" },
    layout: { type: "string", default: "both" },
    tokens: { type: "string", default: "1,8,512" },
    threads: { type: "string", default: "0" },
    isa: { type: "string" },
    ms: { type: "string", default: "1000" },
    json: { type: "string" },
  },
})

function typeNamed(name: string | undefined): DTypeInfo {
  const found = Object.values(dtypes).find(
    (value): value is DTypeInfo =>
      typeof value === "object" && "blockSize" in value && value.name === name,
  )
  if (found === undefined) throw new Error(`no type ${name}`)
  return found
}

const shape = SHAPES[flags.shape]
if (shape === undefined) throw new Error(`--shape is one of ${Object.keys(SHAPES).join(", ")}`)
const { experts, k, hidden, inter } = shape
const [wide, narrow = wide] = flags.types.split(",").map(typeNamed) as [DTypeInfo, DTypeInfo?]
const counts = flags.tokens.split(",").map(Number)

/** One random expert's matrix, again for every expert: the values do not matter, the addresses do. */
function stack(backend: Backend, dtype: DTypeInfo, rows: number, cols: number): Tensor {
  const one = randomWeight(backend, dtype, [1, rows, cols], rows)
  const out = Tensor.allocate(backend, dtype, [experts, rows, cols])
  const bytes = out.bytes()
  const source = one.bytes()
  for (let e = 0; e < experts; e++) bytes.set(source, e * source.length)
  one[Symbol.dispose]()
  return out
}

/** The ids of one step: k different experts a token. */
function choose(tokens: number, seed: number): Int32Array<ArrayBuffer> {
  const ids = new Int32Array(tokens * k)
  for (let t = 0; t < tokens; t++) {
    const scores = randomArray(experts, seed * 1009 + t)
    const order = Array.from(scores.keys()).sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0))
    ids.set(order.slice(0, k), t * k)
  }
  return ids
}

const backend = new Backend({
  threads: Number(flags.threads),
  ...(flags.isa === undefined ? {} : { isa: flags.isa }),
})
const read = measure(backend, "read")
const dot = measure(backend, "intDot")
const rows: object[] = []
const blocks = {
  gate: stack(backend, wide, inter, hidden),
  up: stack(backend, wide, inter, hidden),
  down: stack(backend, narrow, hidden, inter),
}
const expertBytes = 2 * inter * rowBytes(wide, hidden) + hidden * rowBytes(narrow, inter)
for (const layout of ["blocks", "packed"]) {
  if (flags.layout !== "both" && flags.layout !== layout) continue
  const w =
    layout === "blocks"
      ? blocks
      : {
          gate: packWeight(blocks.gate) ?? blocks.gate,
          up: packWeight(blocks.up) ?? blocks.up,
          down: packWeight(blocks.down) ?? blocks.down,
        }
  for (const tokens of counts) {
    const steps = Array.from({ length: tokens > 64 ? 3 : 16 }, (_, i) => choose(tokens, i + 1))
    const active = steps.map((ids) => new Set(ids).size).reduce((a, b) => a + b) / steps.length
    const calls = steps.map((ids) => ({
      x: Tensor.from(backend, randomArray(tokens * hidden, 3), [tokens, hidden], {
        persistent: true,
      }),
      ids: Tensor.from(backend, ids, [tokens, k], { persistent: true }),
      weights: Tensor.from(backend, randomArray(tokens * k, 4), [tokens, k], { persistent: true }),
      ...w,
      act: "silu" as const,
    }))
    const out = Tensor.allocate(backend, dtypes.F32, [tokens, hidden])
    let next = 0
    const bench = new Bench({ time: Number(flags.ms), warmupTime: 100, warmupIterations: 2 })
    bench.add("step", () => {
      fusedExperts(calls[next++ % calls.length] as (typeof calls)[0], out)
    })
    await bench.run()
    const seconds = medianSeconds(bench, "step")
    const gigabytes = (active * expertBytes) / seconds / 1e9
    const gigaops = (2 * 3 * hidden * inter * k * tokens) / seconds / 1e9
    rows.push({
      layout,
      tokens,
      "active experts": active.toFixed(1),
      ms: (seconds * 1e3).toFixed(3),
      "GB/s": gigabytes.toFixed(1),
      "of read": (gigabytes / (read / 1e9)).toFixed(2),
      "GOP/s": gigaops.toFixed(0),
      "of dot": (gigaops / (dot / 1e9)).toFixed(2),
    })
    out[Symbol.dispose]()
  }
}
const gb = (value: number): string => (value / 1e9).toFixed(1)
report(rows, flags.json, {
  shape: flags.shape,
  types: flags.types,
  isa: backend.isa,
  threads: backend.threads,
  "read GB/s": gb(read),
  "dot GOP/s": gb(dot),
})
process.stdout.write(
  `${flags.shape} ${flags.types} ${backend.isa} ${backend.threads} threads: read ${gb(read)} GB/s, dot ${gb(dot)} GOP/s\n`,
)
backend[Symbol.dispose]()
