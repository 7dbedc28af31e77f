/**
 * What crossing into the library costs: a bare call, a whole op on a tiny row, a descriptor, a view. These guard against a
 * slower bun:ffi. `bun bench/ffi.bench.ts [--ms TIME] [--json FILE]`
 */
import { parseArgs } from "node:util"

import { Bench } from "tinybench"

import { Backend } from "../src/native/backend.ts"
import { nativeView } from "../src/native/memory.ts"
import { rmsNorm } from "../src/ops/index.ts"
import { F32 } from "../src/tensor/dtype.ts"
import { Tensor } from "../src/tensor/tensor.ts"
import { medianSeconds, report } from "./report.ts"

const { values: flags } = parseArgs({
  options: { ms: { type: "string", default: "300" }, json: { type: "string" } },
})
/** A task repeats its operation, since one takes less than the clock resolves. */
const REPEAT = 1000
const backend = new Backend({ threads: 1 })
const x = Tensor.from(backend, new Float32Array(8).fill(1), [1, 8], { persistent: true })
const weight = Tensor.from(backend, new Float32Array(8).fill(1), [8], { persistent: true })
const out = Tensor.allocate(backend, F32, [1, 8])

const operations: Record<string, () => unknown> = {
  "call without arguments": () => backend.library.kt_abi_version(),
  "op on a row of 8": () => rmsNorm(x, weight, 1e-5, 0, out),
  "descriptor of a view": () => x.reshape([8]),
  "op with its output": () => rmsNorm(x, weight, 1e-5),
  "view of native memory": () => nativeView(x.data, 32),
}
const bench = new Bench({ time: Number(flags.ms), warmup: true })
for (const [name, run] of Object.entries(operations)) {
  bench.add(name, () => {
    for (let i = 0; i < REPEAT; i++) run()
    backend.resetStep()
  })
}
await bench.run()
const rows = Object.keys(operations).map((operation) => ({
  operation,
  ns: ((medianSeconds(bench, operation) / REPEAT) * 1e9).toFixed(1),
}))
report(rows, flags.json, { isa: backend.isa })
backend[Symbol.dispose]()
