import { UsageError } from "../errors.ts"
import type { PoolParams } from "../worker/protocol.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { COMPUTE_KEYS, engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { readText } from "./files.ts"
import { write, writeJson } from "./output.ts"
import { openSession } from "./session.ts"

const POOLINGS = ["mean", "cls", "last"] as const

export const embed = defineCommand({
  name: "embed",
  summary: "Turn texts into vectors",
  details: `Texts are arguments, or the lines of a file or of stdin. Each becomes one line of output, a JSON array of
numbers; --json prints {"model":…,"embeddings":[[…],…],"tokens":…}. The model is one that was made for it
(bert, nomic_bert, Qwen3-Embedding), whose file says how its vectors are made, or any other: then they are
the last token's state. Vectors have the length 1, so that the sum of the products of two of them is
their similarity, from -1 to 1.`,
  positionals: [
    { ...MODEL_POSITIONAL },
    {
      name: "TEXT",
      help: "a text; several may follow (default: lines of --file or stdin)",
      many: true,
    },
  ],
  engine: [...COMPUTE_KEYS, "contextLength", "kvCacheTokens", "maxBatchSize"],
  flags: {
    file: { type: "string", short: "f", hint: "file", help: "a text a line; - for stdin" },
    pooling: {
      type: "enum",
      values: POOLINGS,
      help: "what of the tokens' states: their mean, the first or the last (default: the model's)",
    },
    normalize: {
      type: "boolean",
      default: true,
      help: "vectors of length 1; --no-normalize leaves them as the model makes them",
    },
    dimensions: {
      type: "integer",
      min: 1,
      help: "only the first so many values (for models trained so: Matryoshka)",
    },
    ...JSON_FLAG,
  },
  examples: [
    { command: 'kt embed bge-small.gguf "a cat" "a dog"', says: "two vectors, a line each" },
    {
      command: "kt embed bge-small.gguf --file lines.txt --json",
      says: "a text a line, as one object",
    },
    {
      command: 'kt embed nomic-embed.gguf "search_query: cats" --dimensions 256',
      says: "with the prefix that the model wants, and shorter",
    },
  ],
  async run(invocation) {
    const { flags, args } = invocation
    const texts = textsOf(args.slice(1), flags.file)
    const session = await openSession(engineOptions(invocation))
    try {
      const { client, tokenizer, metadata } = session
      const own = client.info.pooling?.pooling
      const made = own === "rank" ? undefined : own
      const pooling = POOLINGS.find((known) => known === flags.pooling) ?? made ?? "last"
      const { dimensions, normalize } = flags
      const params: PoolParams = {
        pooling,
        normalize,
        ...(dimensions === undefined ? {} : { dimensions }),
      }
      const results = await Promise.all(
        texts.map((text) => client.pool(tokenizer.encode(text), params)),
      )
      const embeddings = results.map(({ values }) => [...values])
      if (!flags.json)
        return await write(embeddings.map((vector) => `${JSON.stringify(vector)}\n`).join(""))
      const tokens = results.reduce((sum, { promptTokens }) => sum + promptTokens, 0)
      await writeJson({ model: metadata.name, pooling, embeddings, tokens })
    } finally {
      await session.client.close()
    }
  },
})

function textsOf(args: readonly string[], file: string | undefined): readonly string[] {
  if (args.length > 0 && file !== undefined)
    throw new UsageError("texts are given twice, as arguments and with --file")
  if (args.length > 0) return args
  if (file === undefined && process.stdin.isTTY)
    throw new UsageError("no text is given", {
      hint: 'kt embed MODEL "a text", --file or stdin',
    })
  const lines = readText(file ?? "-").split(/\r?\n/)
  const texts = lines.filter((line) => line !== "")
  if (texts.length === 0) throw new UsageError("no text is given: there are no lines")
  return texts
}
