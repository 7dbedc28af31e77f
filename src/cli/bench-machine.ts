import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { bestLimits, leastSeconds, type Limits, type ModelWork } from "./bench-limits.ts"
import { limitsOf, workOf } from "./bench-model.ts"
import { benchEngine, counts } from "./bench-table.ts"
import { engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { formatBytes, table, write, writeJson } from "./output.ts"

/** What `--json` prints: rates of the machine, and what a step of the model takes of them. */
export interface ModelLimits {
  readonly limits: Limits
  readonly work: ModelWork
}

const PROMPT = 512
/** The best counts: a machine that others use too is slow at times, never fast. */
const ROUNDS = 2

export const limits = defineCommand({
  name: "bench limits",
  summary: "Measure what this machine could do at most with a model, without loading it",
  details: `The rates of reading and of the arithmetic that the model's weights need, and from them the most tokens/s: a step
takes at least as long as reading its weights (of experts those that tokens go to) and as computing its products. Keys
and values are not counted here; kt bench and the page's view of the machine count them.`,
  positionals: [MODEL_POSITIONAL],
  engine: benchEngine,
  flags: {
    streams: {
      type: "string",
      short: "s",
      hint: "n,…",
      default: "1,8",
      help: "sequences generated at once",
    },
    threads: {
      type: "integer",
      short: "t",
      min: 0,
      max: 1024,
      default: 0,
      aliases: ["cpu_infer"],
      help: "threads; 0 = the physical cores",
    },
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt bench limits model.gguf", says: "with all cores, one sequence and eight" },
    { command: "kt bench limits model.gguf -t 1 --json", says: "with one, for other tools" },
  ],
  async run(invocation) {
    const { flags } = invocation
    const streams = counts("--streams", flags.streams, 1)
    const config = engineOptions(invocation, undefined, { threads: flags.threads })
    const work = await workOf(config)
    const machine = bestLimits(Array.from({ length: ROUNDS }, () => limitsOf(config, work)))
    if (flags.json) return writeJson({ limits: machine, work } satisfies ModelLimits)
    const most = (sequences: number, tokens: number): string => {
      const seconds = leastSeconds(work, machine, { sequences, tokens, depth: 0, kvBytes: 0 })
      return ((sequences * tokens) / seconds).toFixed(1)
    }
    const rows = [
      ["threads, ISA", `${machine.threads}, ${machine.isa}`],
      ["weights", formatBytes(work.bytes + work.expertBytes)],
      ["reading", `${(machine.readBytes / 1e9).toFixed(1)} GB/s`],
      ...Object.entries(machine.rates).map(([kind, rate]) => [
        kind,
        `${(rate / 1e9).toFixed(0)} GOP/s`,
      ]),
      [`pp${PROMPT}`, `${most(1, PROMPT)} tokens/s`],
      ...streams.map((n) => [`tg${n > 1 ? ` x${n}` : ""}`, `${most(n, 1)} tokens/s`]),
    ]
    await write(table(["LIMIT", "VALUE"], rows))
  },
})
