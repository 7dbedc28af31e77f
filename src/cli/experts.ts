import { writeFileSync } from "node:fs"

import { Engine } from "../engine/engine.ts"
import { ConfigError, UsageError } from "../errors.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { addSequence, runToEnd } from "./bench-model.ts"
import { COMPUTE_KEYS, engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { readText } from "./files.ts"
import { loadTokenizer } from "./load-tokenizer.ts"
import { logger } from "./log.ts"
import { table, write, writeJson } from "./output.ts"
import { progressBar } from "./progress.ts"

const record = defineCommand({
  name: "experts record",
  summary: "Count how often a model's experts are chosen for a text",
  details: `The text is computed in windows of --window tokens. The file that is written says for each layer how often each of
its experts was chosen; --expert-stats of kt plan and kt serve takes it to put the experts that are used most on the GPU.`,
  positionals: [MODEL_POSITIONAL],
  engine: COMPUTE_KEYS,
  flags: {
    file: { type: "string", hint: "file", help: "the text; - for stdin" },
    out: { type: "string", hint: "file", help: "where the counts go" },
    window: { type: "integer", min: 8, max: 65_536, default: 512, help: "tokens of a window" },
    tokens: { type: "integer", min: 8, help: "stop after so many tokens" },
    ...JSON_FLAG,
  },
  examples: [
    {
      command: "kt experts record model.gguf --file text.txt --out experts.json",
      says: "what a text of the kind that is going to be computed uses",
    },
    {
      command: "kt plan model.gguf --vram 24G --expert-stats experts.json",
      says: "the most used ones on the GPU",
    },
  ],
  async run(invocation) {
    const { file, out, window, tokens: limit, json } = invocation.flags
    if (file === undefined) throw new UsageError("--file is missing: the text to compute")
    if (out === undefined) throw new UsageError("--out is missing: where the counts go")
    const options = engineOptions(invocation, undefined, {
      contextLength: window + 1,
      maxBatchSize: 1,
      prefixCache: false,
    })
    const text = readText(file)
    const tokenizer = await loadTokenizer(options.model, options.modelPath)
    const ids = tokenizer.encode(text).subarray(0, limit)
    if (ids.length < 2) throw new ConfigError(`${file}: ${ids.length} tokens are no text`)
    using engine = await Engine.create(options, {
      onLog: (level, line) => logger("engine")[level === "info" ? "info" : "warn"](line),
    })
    const before = new Map(engine.details().experts.map(({ path, counts }) => [path, counts]))
    if (before.size === 0) throw new ConfigError(`${options.model}: the model has no experts`)
    {
      using bar = progressBar("tokens")
      for (let at = 0; at < ids.length; at += window) {
        const part = ids.slice(at, at + window)
        addSequence(engine, at + 1, part, 1)
        runToEnd(engine)
        bar.update(at + part.length, ids.length)
      }
    }
    const layers = engine.details().experts.map(({ path, counts }) => {
      // what warming up chose says nothing
      const own = counts.map((count, i) => count - (before.get(path)?.[i] ?? 0))
      return [path, own] as const
    })
    writeFileSync(
      out,
      `${JSON.stringify({ tokens: ids.length, layers: Object.fromEntries(layers) })}\n`,
    )
    if (json) return writeJson({ tokens: ids.length, layers: Object.fromEntries(layers) })
    const rows = layers.map(([path, counts]) => [path, counts.length, ...halves(counts)])
    await write(table(["LAYER", "EXPERTS", "HALF OF THE USES", "9 OF 10", "NEVER"], rows))
  },
})

/** The experts, most used first, that make half and nine tenths of all uses, and those that were not used. */
function halves(counts: readonly number[]): [number, number, number] {
  const all = counts.reduce((a, b) => a + b, 0)
  const sorted = counts.toSorted((a, b) => b - a)
  const enough = (share: number): number => {
    let sum = 0
    return sorted.findIndex((count) => (sum += count) >= share * all) + 1
  }
  return [enough(0.5), enough(0.9), counts.filter((count) => count === 0).length]
}

export const experts = defineCommand({
  name: "experts",
  summary: "Find out which experts of a model are used",
  flags: {},
  examples: [
    {
      command: "kt experts record model.gguf --file text.txt --out experts.json",
      says: "count them for a text",
    },
  ],
  subCommands: { record: async () => record },
  run: async () => {},
})
