/**
 * Matrix products per weight type and layout: GB/s of weights read for one token against the machine's read bandwidth,
 * GOP/s for many tokens against its int8 dot rate.
 * `bun bench/ops.bench.ts [--threads N] [--isa LEVEL] [--ms TIME] [--tokens N] [--types Q4_K,Q8_0] [--json FILE]`
 */
import { parseArgs } from "node:util"

import { Bench } from "tinybench"

import { Backend } from "../src/native/backend.ts"
import { linear, measure, packWeight } from "../src/ops/index.ts"
import { F32, rowBytes } from "../src/tensor/dtype.ts"
import { Tensor } from "../src/tensor/tensor.ts"
import { randomArray } from "../test/ops/harness.ts"
import { PLAIN, QUANTIZED, randomWeight } from "../test/ops/weights.ts"
import { medianSeconds, report } from "./report.ts"

const ROWS = 4096
const COLS = 1536
/** As many matrices as exceed every cache of the processor, used in turn as a model's are. */
const WEIGHT_BYTES = 192 << 20

const { values: flags } = parseArgs({
  options: {
    threads: { type: "string", default: "0" },
    isa: { type: "string" },
    ms: { type: "string", default: "500" },
    tokens: { type: "string", default: "512" },
    types: { type: "string", default: "" },
    json: { type: "string" },
  },
})
const wanted = flags.types.split(",").filter((name) => name !== "")
const tokens = Number(flags.tokens)

interface Row {
  type: string
  layout: string
  "decode GB/s": string
  "of read": string
  "prefill GOP/s": string
  "of dot": string
}

const rows: Row[] = []
let machine = {}
for (const dtype of [...QUANTIZED, ...PLAIN]) {
  if (wanted.length > 0 && !wanted.includes(dtype.name)) continue
  // a backend of its own: rearranged weights live as long as it does
  const backend = new Backend({
    threads: Number(flags.threads),
    ...(flags.isa === undefined ? {} : { isa: flags.isa }),
  })
  machine = { isa: backend.isa, threads: backend.threads }
  const read = measure(backend, "read")
  const dot = measure(backend, "intDot")
  const bytes = rowBytes(dtype, COLS) * ROWS
  const blocks = Array.from({ length: Math.ceil(WEIGHT_BYTES / bytes) }, (_, i) =>
    randomWeight(backend, dtype, [ROWS, COLS], i),
  )
  const one = Tensor.from(backend, randomArray(COLS, 1), [1, COLS], { persistent: true })
  const many = Tensor.from(backend, randomArray(COLS * tokens, 1), [tokens, COLS], {
    persistent: true,
  })
  const oneOut = Tensor.allocate(backend, F32, [1, ROWS])
  const manyOut = Tensor.allocate(backend, F32, [tokens, ROWS])
  for (const layout of ["blocks", "packed"]) {
    const weights = layout === "blocks" ? blocks : blocks.map(packWeight)
    const first = weights[0]
    if (first === null || first === undefined) continue
    let next = 0
    const bench = new Bench({
      time: Number(flags.ms),
      warmup: true,
      warmupTime: 100,
      warmupIterations: 2,
    })
    bench.add("decode", () => {
      linear(one, weights[next++ % weights.length] as Tensor, null, oneOut)
    })
    bench.add("prefill", () => {
      linear(many, first, null, manyOut)
    })
    await bench.run()
    const gigabytes = bytes / medianSeconds(bench, "decode") / 1e9
    const gigaops = (2 * ROWS * COLS * tokens) / medianSeconds(bench, "prefill") / 1e9
    rows.push({
      type: dtype.name,
      layout,
      "decode GB/s": gigabytes.toFixed(1),
      "of read": (gigabytes / (read / 1e9)).toFixed(2),
      "prefill GOP/s": gigaops.toFixed(0),
      "of dot": (gigaops / (dot / 1e9)).toFixed(2),
    })
  }
  for (const weight of blocks) weight[Symbol.dispose]()
  backend[Symbol.dispose]()
}
report(rows, flags.json, machine)
