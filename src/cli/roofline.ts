import { Backend, queryCpu } from "../native/backend.ts"
import { measure } from "../ops/index.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { counts } from "./bench.ts"
import { table, write, writeJson } from "./output.ts"

export interface Limits {
  readonly threads: number
  readonly isa: string
  /** Bytes/s from memory. */
  readonly readBytes: number
  /** int8 operations/s, two a multiply-add. */
  readonly intDot: number
  /** f32 operations/s. */
  readonly fma: number
}

/** What the machine itself can do with so many threads, now. */
export function measureLimits(threads: number, seconds = 0.3): Limits {
  using backend = new Backend({ threads })
  return {
    threads: backend.threads,
    isa: backend.isa,
    readBytes: measure(backend, "read", { seconds }),
    intDot: measure(backend, "intDot", { seconds }),
    fma: measure(backend, "fma", { seconds }),
  }
}

export const roofline = defineCommand({
  name: "bench roofline",
  summary: "Measure the machine's own limits: read bandwidth, int8 and f32 arithmetic",
  flags: {
    threads: {
      type: "string",
      short: "t",
      hint: "n,…",
      help: "thread counts (default: 1, 2, 4 … all cores)",
    },
    seconds: { type: "number", min: 0.01, max: 60, default: 0.5, help: "for each measurement" },
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt bench roofline", says: "for each thread count" },
    { command: "kt bench roofline -t 1,8 --json", says: "for two of them, for other tools" },
  ],
  async run({ flags }) {
    const threads =
      flags.threads === undefined
        ? doubling(queryCpu().physicalCores)
        : counts("--threads", flags.threads, 1)
    const limits = threads.map((count) => measureLimits(count, flags.seconds))
    if (flags.json) return writeJson({ limits })
    const rows = limits.map((l) => [
      l.threads,
      l.isa,
      (l.readBytes / 1e9).toFixed(1),
      (l.intDot / 1e9).toFixed(0),
      (l.fma / 1e9).toFixed(0),
    ])
    await write(table(["THREADS", "ISA", "READ GB/s", "INT8 GOP/s", "F32 GFLOP/s"], rows))
  },
})

function doubling(cores: number): number[] {
  const out: number[] = []
  for (let n = 1; n < cores; n *= 2) out.push(n)
  return [...out, cores]
}
