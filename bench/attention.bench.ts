/**
 * Paged attention: GB/s of K and V read by decode against the machine's read bandwidth, GFLOP/s of prefill against its
 * FMA rate. `bun bench/attention.bench.ts [--threads N] [--isa LEVEL] [--ms TIME] [--json FILE]`
 */
import { parseArgs } from "node:util"

import { Bench } from "tinybench"

import { KT_MEASURE_FMA, KT_MEASURE_READ } from "../src/native/abi.generated.ts"
import { Backend } from "../src/native/backend.ts"
import { pagedAttention } from "../src/ops/attention.ts"
import { F16, F32 } from "../src/tensor/dtype.ts"
import { Tensor } from "../src/tensor/tensor.ts"

interface Shape {
  readonly heads: number
  readonly kvHeads: number
  readonly dim: number
}

const SHAPES: readonly Shape[] = [
  { heads: 9, kvHeads: 3, dim: 64 },
  { heads: 32, kvHeads: 8, dim: 128 },
]
const PAGE_SIZE = 32
/** Caches of as many layers as exceed every cache of the processor, used in turn as a model's are. */
const CACHE_BYTES = 192 << 20

const { values: flags } = parseArgs({
  options: {
    threads: { type: "string", default: "0" },
    isa: { type: "string" },
    ms: { type: "string", default: "500" },
    json: { type: "string" },
  },
})
const backend = new Backend({
  threads: Number(flags.threads),
  ...(flags.isa === undefined ? {} : { isa: flags.isa }),
})

/** The machine's own rate, or undefined where the library cannot measure it. */
function measure(what: number, bytes: number): number | undefined {
  const out = new Float64Array(new ArrayBuffer(8))
  return backend.library.kt_measure(backend.ctx, what, bytes, 0.5, out) === 0 ? out[0] : undefined
}

function filled(shape: readonly number[], dtype: typeof F16 | typeof F32): Tensor {
  const tensor = Tensor.allocate(backend, dtype, shape)
  const bytes = tensor.bytes()
  const count = bytes.length / dtype.blockBytes
  const values =
    dtype === F16
      ? new Float16Array(bytes.buffer, bytes.byteOffset, count)
      : new Float32Array(bytes.buffer, bytes.byteOffset, count)
  for (let i = 0; i < count; i++) values[i] = ((i * 2654435761) % 1000) / 1000 - 0.5
  return tensor
}

interface Row {
  readonly name: string
  /** Work of one call: bytes of K and V, or floating-point operations. */
  readonly work: number
  readonly unit: "GB/s" | "GFLOP/s"
  readonly limit: number | undefined
}

const persistent = { persistent: true }
const ints = (...values: number[]): Tensor =>
  Tensor.from(backend, Int32Array.from(values), [values.length], persistent)

/** One call of `queries` tokens at the end of `length`, of the layers in turn. */
function task(
  { heads, kvHeads, dim }: Shape,
  length: number,
  queries: number,
  layers: number,
): () => void {
  const pages = Math.ceil(length / PAGE_SIZE)
  const caches = Array.from({ length: layers }, () => [
    filled([pages, kvHeads, PAGE_SIZE, dim], F16),
    filled([pages, kvHeads, PAGE_SIZE, dim], F16),
  ])
  const q = filled([queries, heads, dim], F32)
  const out = Tensor.allocate(backend, F32, [queries, heads, dim])
  const order = Array.from({ length: pages }, (_, i) => (i * 7919) % pages)
  const table = Tensor.from(backend, Int32Array.from(order), [1, pages], persistent)
  const [starts, lens] = [ints(0, queries), ints(length)]
  const options = { scale: 1 / Math.sqrt(dim) }
  let layer = 0
  return () => {
    const [k, v] = caches[layer++ % layers] as [Tensor, Tensor]
    pagedAttention(q, k, v, table, starts, lens, options, out)
  }
}

const read = measure(KT_MEASURE_READ, 256 << 20)
const fma = measure(KT_MEASURE_FMA, 0)
const report: Record<string, string | number>[] = []

for (const shape of SHAPES) {
  const bench = new Bench({ time: Number(flags.ms), warmupTime: 100 })
  const rows: Row[] = []
  const label = `${shape.heads}/${shape.kvHeads} heads of ${shape.dim}`
  for (const length of [512, 2048, 8192]) {
    const bytes = 2 * 2 * length * shape.kvHeads * shape.dim
    const name = `decode at ${length}, ${label}`
    rows.push({ name, work: bytes, unit: "GB/s", limit: read })
    bench.add(name, task(shape, length, 1, Math.ceil(CACHE_BYTES / bytes)))
  }
  for (const length of [512, 2048]) {
    const name = `prefill of ${length}, ${label}`
    const pairs = (length * (length + 1)) / 2
    rows.push({ name, work: 4 * pairs * shape.heads * shape.dim, unit: "GFLOP/s", limit: fma })
    bench.add(name, task(shape, length, length, 1))
  }
  await bench.run()
  for (const { name, work, unit, limit } of rows) {
    const result = bench.getTask(name)?.result
    if (result === undefined || !("latency" in result)) throw new Error(`${name} did not run`)
    // the best run is the kernel's, the median what a busy machine makes of it
    const ms = result.latency.min
    const rate = work / ms / 1e6
    report.push({
      name,
      best_us: Math.round(ms * 1000),
      median_us: Math.round(result.latency.p50 * 1000),
      rate: Number(rate.toFixed(1)),
      unit,
      limit: limit === undefined ? "not measured" : Number((limit / 1e9).toFixed(1)),
      share: limit === undefined ? "" : `${((100 * rate * 1e9) / limit).toFixed(0)} %`,
    })
  }
}
process.stdout.write(`${backend.isa}, ${backend.threads} threads\n`)
for (const row of report) process.stdout.write(`${Object.values(row).join("\t")}\n`)
if (flags.json !== undefined)
  await Bun.write(
    flags.json,
    JSON.stringify(
      { isa: backend.isa, threads: backend.threads, bun: Bun.version, rows: report },
      null,
      2,
    ),
  )
backend[Symbol.dispose]()
