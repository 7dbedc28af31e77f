import { type EngineConfig, engineConfig } from "../config.ts"
import { Engine } from "../engine/engine.ts"
import { KtError } from "../errors.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import {
  addSequence,
  type BenchCase,
  type BenchOptions,
  type BenchRow,
  choices,
  limitRun,
  type Measured,
  peerRun,
  randomIds,
  repeat,
  repetitionLine,
  rowOf,
  runToEnd,
  WARM_TOKENS,
  workOf,
} from "./bench-model.ts"
import { runPeer } from "./bench-peer.ts"
import { benchEngine, counts, PEER_FLAGS, peersOf, report } from "./bench-table.ts"
import { engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { logger } from "./log.ts"
import { write, writeJson } from "./output.ts"

export const sweep = defineCommand({
  name: "bench sweep",
  summary: "Measure a prompt's chunk and generation against the length of the context",
  details: `For each length the context is computed once and then found in the prefix cache, so that only the
chunk, or the generated tokens, are timed. The limit counts keys and values read and attention's products too.
--peer programs run with -d (or -gp, generation only) where they have it, in turns with ours at each length.
--json prints {"rows":[…]}.`,
  positionals: [MODEL_POSITIONAL],
  engine: benchEngine,
  flags: {
    ctx: {
      type: "string",
      short: "c",
      hint: "n,…",
      default: "512,2048,8192,32768",
      help: "lengths of context",
    },
    prompt: { type: "string", short: "p", hint: "n", default: "512", help: "chunk; 0 = none" },
    gen: { type: "string", short: "n", hint: "n", default: "32", help: "tokens to generate" },
    threads: {
      type: "integer",
      short: "t",
      min: 0,
      max: 1024,
      default: 0,
      aliases: ["cpu_infer"],
      help: "threads; 0 = the physical cores",
    },
    repetitions: {
      type: "integer",
      short: "r",
      min: 1,
      max: 1000,
      default: 3,
      help: "repetitions of each",
    },
    ...PEER_FLAGS,
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt bench sweep model.gguf", says: "512 to 32768 positions" },
    { command: "kt bench sweep model.gguf -c 8192 -p 0 -n 64", says: "generation at 8192" },
  ],
  async run(invocation) {
    const { flags } = invocation
    const depths = counts("--ctx", flags.ctx, 1).toSorted((a, b) => a - b)
    const kinds = [
      ...counts("--prompt", flags.prompt, 0).map((tokens) => ({ kind: "pp" as const, tokens })),
      ...counts("--gen", flags.gen, 0).map((tokens) => ({ kind: "tg" as const, tokens })),
    ].filter(({ tokens }) => tokens > 0)
    const cases = depths.flatMap((depth) => kinds.map((one) => ({ ...one, streams: 1, depth })))
    const { threads, repetitions } = flags
    const rows = await sweepModel(engineOptions(invocation, undefined, { threads }), {
      cases,
      repetitions,
      peers: await peersOf(flags),
      log: (line) => logger("bench").info(line),
    })
    if (flags.json) return writeJson({ rows })
    await write(report(rows))
  },
})

/** Measures cases, whose depths do not fall, one after another. */
async function sweepModel(options: EngineConfig, bench: BenchOptions): Promise<BenchRow[]> {
  const { cases, repetitions, peers, log } = bench
  const work = await workOf(options)
  const { pageSize } = options
  const longest = Math.max(...cases.map(({ tokens, depth }) => tokens + depth)) + 1
  const pages = Math.ceil((longest + 1) / pageSize) + 1
  // the context's pages stay while a chunk or an answer takes others
  const most = Math.ceil((Math.max(...cases.map(({ tokens }) => tokens)) + 1) / pageSize) + 1
  const config = engineConfig({
    ...options,
    contextLength: longest,
    kvCacheTokens: (pages + 2 * most) * pageSize,
    maxBatchSize: 1,
    prefixCache: true,
  })
  using engine = await Engine.create(config)
  const { threads, kvCacheBytes, kvCacheTokens, vocabSize } = engine.info
  const context = randomIds(longest, vocabSize)
  const rows: BenchRow[] = []
  for (const one of cases) {
    const chosen = await choices(peers, options.model, one, threads)
    const measured: Measured = { ours: [], peers: chosen.map((peer) => ({ ...peer, rates: [] })) }
    extend(engine, context, one)
    const warm = { ...one, tokens: Math.min(one.tokens, WARM_TOKENS) }
    const run = {
      warm: () => void runAt(engine, context, warm),
      rate: () => runAt(engine, context, one),
      ...limitRun(engine, work, one, kvCacheBytes / kvCacheTokens),
    }
    for (let r = 0; r < repetitions; r++) {
      measured.ours.push(repeat(run))
      for (const { peer, choice, rates } of measured.peers)
        rates.push(await runPeer(peer, peerRun(options.model, one, 1), choice))
      log(repetitionLine(one, threads, r, measured))
    }
    rows.push(rowOf(one, threads, measured))
  }
  return rows
}

/** Computes the context once, which leaves its whole pages in the prefix cache, and warms up what is timed. */
function extend(engine: Engine, context: Int32Array, one: BenchCase): void {
  addSequence(engine, 1, context.subarray(0, one.depth + 1), 1)
  runToEnd(engine)
  runAt(engine, context, one)
}

/** Tokens/s of a chunk after the context, or of tokens generated there. */
function runAt(engine: Engine, context: Int32Array, { kind, tokens, depth }: BenchCase): number {
  const isPrompt = kind === "pp"
  const ids = new Int32Array(depth + (isPrompt ? tokens : 1))
  ids.set(context.subarray(0, depth))
  ids.set(randomIds(ids.length - depth, engine.info.vocabSize), depth)
  const started = performance.now()
  addSequence(engine, 1, ids, isPrompt ? 1 : tokens)
  const cached = runToEnd(engine)
  const seconds = (performance.now() - started) / 1000
  if (depth - cached >= 64)
    throw new KtError(`of ${depth} positions the prefix cache held ${cached} only`)
  return tokens / seconds
}
