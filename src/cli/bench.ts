import { UsageError } from "../errors.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { type BenchCase, benchModel, type BenchRow } from "./bench-model.ts"
import { COMPUTE_KEYS, engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { logger } from "./log.ts"
import { table, write, writeJson } from "./output.ts"

/** More would be a typing error. */
const MAX_TOKENS = 131_072

export const bench = defineCommand({
  name: "bench",
  summary: "Measure prompt processing and generation against the machine's own limit",
  details: `pp512 is a prompt of 512 tokens, tg64 the generation of 64, in tokens/s. The limit is measured in
the same run: for generation, read bandwidth divided by the bytes of weights that a token touches; for
prompts, the rate of int8 dot products divided by 2 operations per active parameter (embeddings
left out). --peer runs llama-bench, or a program with its flags and JSON, on the same model in turns with
ours, repetition by repetition, who begins changing each time. --json prints {"rows":[…]}.`,
  positionals: [MODEL_POSITIONAL],
  engine: COMPUTE_KEYS.filter((key) => key !== "threads"),
  flags: {
    prompt: {
      type: "string",
      short: "p",
      hint: "n,…",
      default: "512",
      help: "prompt lengths; 0 = none",
    },
    gen: {
      type: "string",
      short: "n",
      hint: "n,…",
      default: "64",
      help: "tokens to generate; 0 = none",
    },
    threads: {
      type: "string",
      short: "t",
      hint: "n,…",
      aliases: ["cpu_infer"],
      help: "thread counts (default: the physical cores)",
    },
    repetitions: {
      type: "integer",
      short: "r",
      min: 1,
      max: 1000,
      default: 5,
      help: "repetitions of each",
    },
    peer: { type: "string", hint: "program", help: "llama-bench, or what takes its flags" },
    "peer-args": {
      type: "string",
      hint: "flags",
      default: "",
      help: "further flags for it, as one word",
    },
    ...JSON_FLAG,
  },
  subCommands: { roofline: async () => (await import("./roofline.ts")).roofline },
  examples: [
    { command: "kt bench model.gguf -p 512 -n 64 -t 1,2 -r 5", says: "the usual table" },
    {
      command: 'kt bench model.gguf --peer ./llama-bench --peer-args "-fa 1"',
      says: "side by side with another program, with the ratios",
    },
    { command: "kt bench roofline -t 1,2", says: "what the machine itself can do" },
  ],
  async run(invocation) {
    const { flags } = invocation
    const cases: BenchCase[] = [
      ...counts("--prompt", flags.prompt, 0).map((tokens): BenchCase => ({ kind: "pp", tokens })),
      ...counts("--gen", flags.gen, 0).map((tokens): BenchCase => ({ kind: "tg", tokens })),
    ].filter(({ tokens }) => tokens > 0)
    if (cases.length === 0) throw new UsageError("-p 0 -n 0 leaves nothing to measure")
    const threads = flags.threads === undefined ? [0] : counts("--threads", flags.threads, 1)
    const rows: BenchRow[] = []
    for (const count of threads) {
      const options = engineOptions(invocation, undefined, { threads: count })
      const peer =
        flags.peer === undefined
          ? undefined
          : {
              program: flags.peer,
              args: flags["peer-args"].split(/\s+/).filter((arg) => arg !== ""),
            }
      const { repetitions } = flags
      const log = (line: string): void => logger("bench").info(line)
      rows.push(...(await benchModel(options, { cases, repetitions, peer, log })))
    }
    if (flags.json) return writeJson({ rows })
    await write(report(rows))
  },
})

function report(rows: readonly BenchRow[]): string {
  const head = ["TEST", "THREADS", "MEDIAN t/s", "MIN", "MAX", "LIMIT", "SHARE"]
  const hasPeer = rows.some(({ peer }) => peer !== undefined)
  if (hasPeer) head.push("PEER t/s", "RATIO")
  const cells = rows.map((row) => [
    row.test,
    row.threads,
    row.median.toFixed(1),
    row.min.toFixed(1),
    row.max.toFixed(1),
    row.limit.toFixed(1),
    `${(row.share * 100).toFixed(1)} %`,
    ...(hasPeer ? [row.peer?.median.toFixed(1) ?? "", row.ratio?.toFixed(2) ?? ""] : []),
  ])
  return table(head, cells)
}

/** "1,2" as numbers. */
export function counts(flag: string, text: string, min: number): number[] {
  return text.split(",").map((word) => {
    const count = word.trim() === "" ? Number.NaN : Number(word)
    if (Number.isInteger(count) && count >= min && count <= MAX_TOKENS) return count
    throw new UsageError(
      `${flag} ${text}: expected integers in ${min}..${MAX_TOKENS} with commas between`,
    )
  })
}
