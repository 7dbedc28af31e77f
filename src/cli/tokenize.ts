import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { readText } from "./files.ts"
import { loadTokenizer } from "./load-tokenizer.ts"
import { write, writeJson } from "./output.ts"

export const tokenize = defineCommand({
  name: "tokenize",
  summary: "Show the tokens of a text",
  details: `Pieces are spelled as in the vocabulary (Ġ or ▁ for a space). --json prints
{"ids":[…],"pieces":[…]}. GGUF files that hold only a vocabulary will do.`,
  positionals: [MODEL_POSITIONAL],
  engine: ["model", "modelPath"],
  flags: {
    file: { type: "string", hint: "file", help: "the text; - or nothing for stdin" },
    prompt: { type: "string", short: "p", hint: "text", help: "the text itself" },
    special: { type: "boolean", default: true, help: "add the model's start (and end) token" },
    "parse-special": {
      type: "boolean",
      help: "read control tokens that are written out, such as <|im_end|>",
    },
    ...JSON_FLAG,
  },
  examples: [
    { command: 'kt tokenize -p "Hello world"', says: "ids and pieces, one a line" },
    {
      command: "kt tokenize model.gguf --file text.txt --no-special --json",
      says: "for other tools",
    },
  ],
  async run(invocation) {
    const { flags } = invocation
    const { model, modelPath } = engineOptions(invocation)
    const tokenizer = await loadTokenizer(model, modelPath)
    const text = flags.prompt ?? readText(flags.file ?? "-")
    const options = { addSpecial: flags.special, parseSpecial: flags["parse-special"] }
    const ids = [...tokenizer.encode(text, options)]
    const pieces = ids.map((id) => tokenizer.tokenText(id))
    if (flags.json) return writeJson({ ids, pieces })
    await write(
      ids.map((id, i) => `${String(id).padStart(7)}  ${JSON.stringify(pieces[i])}\n`).join(""),
    )
  },
})
