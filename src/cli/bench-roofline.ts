import { Backend, queryCpu } from "../native/backend.ts"
import { measure } from "../ops/index.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { memorySet } from "./bench-limits.ts"
import { counts } from "./bench-table.ts"
import { table, write, writeJson } from "./output.ts"

/** Rates of so many threads together: bytes/s and operations/s. */
interface Roofline {
  readonly threads: number
  readonly isa: string
  /** From memory, from the last-level cache, and from each core's second-level cache; absent: the system does not tell sizes. */
  readonly readBytes: number
  readonly readL3?: number
  readonly readL2?: number
  readonly int4Dot: number
  readonly intDot: number
  readonly bf16Dot: number
  readonly fma: number
}

export const roofline = defineCommand({
  name: "bench roofline",
  summary: "Measure the machine's own limits: read bandwidth and arithmetic at each ISA level",
  details: `Reading is sequential, from 2 MiB pages, of sets that exceed the last-level cache, that fit into it,
and that fit into each core's L2. INT8 and INT4 are dot products of int8 activations with weights of 8 and of at most 4
bits by the fastest instructions that are exact: sums of 16 bits where they hold, VNNI, AMX tiles. A level without bf16
products has the rate of f32 there.`,
  flags: {
    threads: {
      type: "string",
      short: "t",
      hint: "n,…",
      help: "thread counts (default: 1, 2, 4 … all cores)",
    },
    isa: { type: "string", hint: "level,…", help: "ISA levels (default: all of this machine)" },
    seconds: { type: "number", min: 0.01, max: 60, default: 0.2, help: "for each measurement" },
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt bench roofline", says: "for each thread count and level" },
    { command: "kt bench roofline -t 1,8 --isa avx2 --json", says: "some of it, for other tools" },
  ],
  async run({ flags }) {
    const cpu = queryCpu()
    const threads =
      flags.threads === undefined
        ? doubling(cpu.physicalCores)
        : counts("--threads", flags.threads, 1)
    const isas = flags.isa === undefined ? cpu.isas : flags.isa.split(",")
    const limits = threads.flatMap((count) =>
      isas.map((isa) => measureRoofline(count, isa, flags.seconds)),
    )
    if (flags.json) return writeJson({ limits })
    const giga = (rate: number | undefined, digits = 0): string =>
      rate === undefined ? "" : (rate / 1e9).toFixed(digits)
    const rows = limits.map((l) => [
      l.threads,
      l.isa,
      giga(l.readBytes, 1),
      giga(l.readL3),
      giga(l.readL2),
      giga(l.int4Dot),
      giga(l.intDot),
      giga(l.bf16Dot),
      giga(l.fma),
    ])
    const head = ["THREADS", "ISA", "MEMORY GB/s", "L3", "L2", "INT4 GOP/s", "INT8", "BF16", "F32"]
    await write(table(head, rows))
  },
})

function measureRoofline(threads: number, isa: string, seconds: number): Roofline {
  const { l2Bytes, l3Bytes } = queryCpu()
  using backend = new Backend({ threads, isa, pinThreads: true })
  const read = (bytes: number): number => measure(backend, "read", { seconds, bytes })
  // three quarters: other things lie in a cache too
  const near = Math.floor(0.75 * l2Bytes) * threads
  const last = Math.max(Math.floor(0.75 * l3Bytes), 2 * near)
  return {
    threads: backend.threads,
    isa: backend.isa,
    readBytes: read(memorySet(l3Bytes)),
    ...(last < l3Bytes ? { readL3: read(last) } : {}),
    ...(l2Bytes > 0 ? { readL2: read(near) } : {}),
    int4Dot: measure(backend, "int4Dot", { seconds }),
    intDot: measure(backend, "intDot", { seconds }),
    bf16Dot: measure(backend, "bf16Dot", { seconds }),
    fma: measure(backend, "fma", { seconds }),
  }
}

function doubling(cores: number): number[] {
  const out: number[] = []
  for (let n = 1; n < cores; n *= 2) out.push(n)
  return [...out, cores]
}
