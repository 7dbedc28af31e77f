import { UsageError } from "../errors.ts"
import { answer, speedLine } from "./answer.ts"
import { JSON_FLAG, SAMPLING_FLAGS, SYSTEM_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { createdModel, ownMessages, stopsOf, withSettings } from "./created-model.ts"
import { engineOptions, givenModel, MODEL_POSITIONAL, SINGLE_KEYS } from "./engine-options.ts"
import { readText } from "./files.ts"
import { FOREIGN_FLAGS, PORT_FLAGS } from "./foreign-flags.ts"
import { logger } from "./log.ts"
import { write, writeJson } from "./output.ts"
import { samplingFrom } from "./sampling.ts"
import { openSession } from "./session.ts"

export const run = defineCommand({
  name: "run",
  summary: "Answer one prompt on stdout",
  details: `The prompt is behind the model, -p, a file, or stdin. It goes through the model's chat template unless --raw is given.`,
  positionals: [MODEL_POSITIONAL, { name: "PROMPT", help: "the prompt, as ollama run takes it" }],
  engine: SINGLE_KEYS,
  flags: {
    prompt: { type: "string", short: "p", hint: "text", help: "the prompt" },
    file: { type: "string", short: "f", hint: "file", help: "file with the prompt; - for stdin" },
    ...SYSTEM_FLAG,
    raw: { type: "boolean", help: "continue the prompt as it is, without a chat template" },
    "max-tokens": {
      type: "integer",
      short: "n",
      min: 1,
      aliases: ["max_new_tokens", "predict", "n-predict"],
      help: "longest answer in tokens (default: up to the end of the context)",
    },
    stop: {
      type: "list",
      short: "r",
      aliases: ["reverse-prompt"],
      hint: "text",
      help: "end the answer before this text",
    },
    seed: { type: "integer", min: 0, help: "same seed, same answer" },
    ...SAMPLING_FLAGS,
    ...JSON_FLAG,
  },
  foreign: { ...FOREIGN_FLAGS, ...PORT_FLAGS },
  examples: [
    { command: 'kt run -p "Why is the sky blue?"', says: "with the default model" },
    {
      command: 'git diff | kt run model.gguf -s "Write a commit message" -n 100',
      says: "from a pipe",
    },
    {
      command: 'kt run model.gguf --raw -p "Once upon a time" --temperature 0 --json',
      says: "with counts and times",
    },
  ],
  async run(invocation) {
    const { flags } = invocation
    const text = promptText([invocation.args[1], flags.prompt], flags.file)
    const own = createdModel(givenModel(invocation))
    const options = engineOptions(invocation, undefined, { maxBatchSize: 1 })
    const session = withSettings(await openSession(options, own?.name), own)
    try {
      const { tokenizer } = session
      const messages = ownMessages(own, [
        ...(flags.system === undefined ? [] : [{ role: "system", content: flags.system }]),
        { role: "user", content: text },
      ])
      const ids = flags.raw
        ? tokenizer.encode(text)
        : tokenizer.encodePrompt(tokenizer.renderChat(messages))
      const stop = new AbortController()
      process.once("SIGINT", () => stop.abort())
      const { modelPath } = session.client.info
      const { parameters } = own?.settings ?? {}
      const sampling = samplingFrom(flags, flags["max-tokens"], modelPath, parameters)
      const { seed, json } = flags
      const stops = stopsOf(own, flags.stop)
      const result = await answer(
        session,
        ids,
        { sampling, seed, stops, signal: stop.signal },
        (piece) => void (json || process.stdout.write(piece)),
      )
      if (!json) await write("\n")
      else {
        const { ids: tokenIds, ...rest } = result
        await writeJson({ model: session.metadata.name, ...rest, ids: tokenIds })
      }
      logger("run").info(speedLine(result))
    } finally {
      await session.client.close()
    }
  },
})

function promptText(given: readonly (string | undefined)[], file: string | undefined): string {
  const prompts = given.filter((one) => one !== undefined)
  if (prompts.length + (file === undefined ? 0 : 1) > 1)
    throw new UsageError("the prompt is given twice: behind the model, with --prompt or --file")
  if (prompts[0] !== undefined) return prompts[0]
  if (file === undefined && process.stdin.isTTY)
    throw new UsageError("the prompt is missing", {
      hint: 'give one with -p "…", --file or on stdin',
    })
  const text = readText(file ?? "-").replace(/\r?\n$/, "")
  if (text === "") throw new UsageError("the prompt is empty")
  return text
}
