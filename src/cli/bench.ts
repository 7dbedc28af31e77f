import { UsageError } from "../errors.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { type BenchCase, benchModel, type BenchRow } from "./bench-model.ts"
import { benchEngine, counts, PEER_FLAGS, peersOf, report } from "./bench-table.ts"
import { engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { logger } from "./log.ts"
import { write, writeJson } from "./output.ts"

export const bench = defineCommand({
  name: "bench",
  summary: "Measure prompt processing and generation against the machine's own limit",
  details: `pp512 is a prompt of 512 tokens, tg64 the generation of 64, in tokens/s; "tg64 x8" is that of 8 sequences at
once, counted together. The limit is measured in the same run: the longer of reading (weights, of experts those that tokens
go to, keys and values) and computing (products at the rate of the weights' type, attention). --peer runs llama-bench, or
a program with its flags and JSON, on the same model in turns with ours, repetition by repetition; of -fa 0 and 1, -rtr 0
and 1 (with -fmoe 1) and half the threads for generation, what it knows and is fastest with. --json prints {"rows":[…]}.`,
  positionals: [MODEL_POSITIONAL],
  engine: benchEngine,
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
    streams: {
      type: "string",
      short: "s",
      hint: "n,…",
      default: "1",
      help: "sequences generated at once",
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
    ...PEER_FLAGS,
    ...JSON_FLAG,
  },
  subCommands: {
    limits: async () => (await import("./bench-machine.ts")).limits,
    roofline: async () => (await import("./bench-roofline.ts")).roofline,
    sweep: async () => (await import("./bench-sweep.ts")).sweep,
    serve: async () => (await import("./bench-serve.ts")).benchServe,
  },
  examples: [
    { command: "kt bench model.gguf -p 512 -n 64 -t 1,2 -r 5", says: "the usual table" },
    {
      command: "kt bench model.gguf --peer ./llama-bench --peer ./other/llama-bench",
      says: "side by side with other programs, with the ratios",
    },
    { command: "kt bench model.gguf -p 0 -s 1,8", says: "one sequence against eight at once" },
    { command: "kt bench sweep model.gguf", says: "against the length of the context" },
    { command: "kt bench limits model.gguf", says: "what the machine could do with it" },
    { command: "kt bench roofline -t 1,2", says: "what the machine itself can do" },
    { command: "kt bench serve http://127.0.0.1:10002", says: "a running server under load" },
  ],
  async run(invocation) {
    const { flags } = invocation
    const streams = counts("--streams", flags.streams, 1)
    const cases: BenchCase[] = [
      ...counts("--prompt", flags.prompt, 0).map((tokens): BenchCase => ({
        kind: "pp",
        tokens,
        streams: 1,
        depth: 0,
      })),
      ...counts("--gen", flags.gen, 0).flatMap((tokens) =>
        streams.map((count): BenchCase => ({ kind: "tg", tokens, streams: count, depth: 0 })),
      ),
    ].filter(({ tokens }) => tokens > 0)
    if (cases.length === 0) throw new UsageError("-p 0 -n 0 leaves nothing to measure")
    const threads = flags.threads === undefined ? [0] : counts("--threads", flags.threads, 1)
    const peers = await peersOf(flags)
    const { repetitions } = flags
    const log = (line: string): void => logger("bench").info(line)
    const rows: BenchRow[] = []
    for (const count of threads) {
      const options = engineOptions(invocation, undefined, { threads: count })
      rows.push(...(await benchModel(options, { cases, repetitions, peers, log })))
    }
    if (flags.json) return writeJson({ rows })
    await write(report(rows))
  },
})
