import { ConfigError, UsageError } from "../errors.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { COMPUTE_KEYS, engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { Evaluator, logProbability } from "./evaluator.ts"
import { readText } from "./files.ts"
import { loadTokenizer } from "./load-tokenizer.ts"
import { logger } from "./log.ts"
import { write, writeJson } from "./output.ts"
import { progressBar } from "./progress.ts"

export const perplexity = defineCommand({
  name: "perplexity",
  summary: "Measure how well a model predicts a text",
  details: `The text is cut into windows of --ctx tokens that do not overlap; each is evaluated alone,
and predictions in its second half count, as llama-perplexity does it. --json prints
{"ppl":…,"tokens":…} (tokens: predictions that count) and the number of windows.`,
  positionals: [MODEL_POSITIONAL],
  engine: COMPUTE_KEYS,
  flags: {
    file: { type: "string", hint: "file", help: "the text; - for stdin" },
    ctx: { type: "integer", min: 8, max: 1_048_576, default: 512, help: "tokens of a window" },
    windows: { type: "integer", min: 1, help: "stop after this many windows" },
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt perplexity model.gguf --file text.txt", says: "windows of 512 tokens" },
    {
      command: "kt perplexity model.gguf --file text.txt --precision f32 --json",
      says: "float throughout",
    },
  ],
  async run(invocation) {
    const { file, ctx, windows: limit, json } = invocation.flags
    if (file === undefined) throw new UsageError("--file is missing: the text to measure on")
    const options = engineOptions(invocation)
    const text = readText(file)
    const tokenizer = await loadTokenizer(options.model, options.modelPath)
    const ids = tokenizer.encode(text)
    const windows = Math.min(Math.floor(ids.length / ctx), limit ?? Infinity)
    if (windows === 0)
      throw new ConfigError(`${file}: ${ids.length} tokens do not fill a window of ${ctx}`)
    const { bosId } = tokenizer
    // the start token stands where the model's own tokenizer puts one
    const first = bosId !== undefined && tokenizer.encode("")[0] === bosId ? bosId : undefined
    using evaluator = await Evaluator.open(options, ctx, (w) => logger("rules").warn(w))
    using bar = progressBar("windows")
    let sum = 0
    let tokens = 0
    for (let w = 0; w < windows; w++) {
      const window = ids.slice(w * ctx, (w + 1) * ctx)
      if (first !== undefined) window[0] = first
      const from = Math.floor(ctx / 2)
      evaluator.forward(
        window,
        0,
        (position) => position >= from && position < ctx - 1,
        (position, row) => {
          sum -= logProbability(row, window[position + 1] as number)
          tokens++
        },
      )
      bar.update(w + 1, windows)
      logger("perplexity").debug(
        `window ${w + 1} of ${windows}: ${Math.exp(sum / tokens).toFixed(4)}`,
      )
    }
    const ppl = Math.exp(sum / tokens)
    if (json) return writeJson({ ppl, tokens, windows })
    await write(
      `perplexity ${ppl.toFixed(4)} over ${tokens} tokens in ${windows} windows of ${ctx}\n`,
    )
  },
})
