import { FormatError, UsageError } from "../errors.ts"
import {
  type ChatMessage,
  ChatTemplate,
  type RenderOptions,
  type TemplateTokenizer,
} from "../tokenizer/chat-template.ts"
import { defineCommand } from "./args/spec.ts"
import { engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { readJson, readText } from "./files.ts"
import { loadTokenizer } from "./load-tokenizer.ts"
import { logger } from "./log.ts"
import { write } from "./output.ts"

export const template = defineCommand({
  name: "template",
  summary: "Write a conversation as the prompt that the model's chat template makes of it",
  details: `Prints the prompt exactly and nothing else, without a line break of its own.
The messages file holds an array of {"role":…,"content":…}, or an object with "messages"
and perhaps "tools".`,
  positionals: [MODEL_POSITIONAL],
  engine: ["model", "modelPath"],
  flags: {
    messages: { type: "string", hint: "file", help: "JSON file with the messages; - for stdin" },
    tools: {
      type: "string",
      hint: "file",
      help: "JSON file with function schemas as OpenAI has them",
    },
    template: { type: "string", hint: "file", help: "Jinja file instead of the model's template" },
    vars: { type: "string", hint: "file", help: "JSON object with further variables" },
    "generation-prompt": {
      type: "boolean",
      default: true,
      help: "end with the start of an answer",
    },
  },
  examples: [
    { command: "kt template --messages chat.json", says: "with the default model's template" },
    { command: "kt template --template chat.jinja --messages chat.json", says: "without a model" },
  ],
  async run(invocation) {
    const { flags } = invocation
    if (flags.messages === undefined)
      throw new UsageError("--messages is missing: a JSON file with the conversation")
    const { messages, tools: inline } = readMessages(flags.messages)
    const tools = flags.tools === undefined ? inline : arrayOf(flags.tools, readJson(flags.tools))
    const needsModel =
      flags.template === undefined || invocation.args.length > 0 || invocation.given.has("model")
    const tokenizer = needsModel ? await modelTokenizer(invocation) : undefined
    const options: RenderOptions = {
      messages,
      tools,
      addGenerationPrompt: flags["generation-prompt"],
      vars: flags.vars === undefined ? undefined : recordOf(flags.vars, readJson(flags.vars)),
    }
    await write(chooseTemplate(flags.template, tokenizer, (tools?.length ?? 0) > 0).render(options))
  },
})

async function modelTokenizer(
  invocation: Parameters<typeof engineOptions>[0],
): Promise<TemplateTokenizer> {
  const { model, modelPath } = engineOptions(invocation)
  return loadTokenizer(model, modelPath)
}

/** The file's template with the model's special tokens, the file's alone, or the model's own. */
function chooseTemplate(
  file: string | undefined,
  tokenizer: TemplateTokenizer | undefined,
  hasTools: boolean,
): ChatTemplate {
  if (file === undefined && tokenizer !== undefined) {
    const name = hasTools && tokenizer.chatTemplates.has("tool_use") ? "tool_use" : "default"
    return ChatTemplate.of(tokenizer, { name, warn: (line) => logger("template").warn(line) })
  }
  const source = file as string
  const text = readText(source)
  if (tokenizer === undefined) return new ChatTemplate(text, { source })
  const { bosId, eosId, padId } = tokenizer
  const own = {
    bosId,
    eosId,
    padId,
    tokenText: (id: number) => tokenizer.tokenText(id),
    chatTemplates: new Map([["default", text]]),
  }
  return ChatTemplate.of(own, { source })
}

function readMessages(file: string): { messages: ChatMessage[]; tools: unknown[] | undefined } {
  const json = readJson(file)
  if (Array.isArray(json)) return { messages: checkMessages(file, json), tools: undefined }
  const { messages, tools } = recordOf(file, json)
  return {
    messages: checkMessages(file, arrayOf(`${file}: "messages"`, messages)),
    tools: tools === undefined || tools === null ? undefined : arrayOf(`${file}: "tools"`, tools),
  }
}

function checkMessages(file: string, messages: readonly unknown[]): ChatMessage[] {
  return messages.map((message, i) => {
    const role = (message as { role?: unknown } | null)?.role
    if (typeof role !== "string")
      throw new FormatError(
        file,
        `message ${i} has no "role": ${JSON.stringify(message)?.slice(0, 80)}`,
      )
    return message as ChatMessage
  })
}

function arrayOf(file: string, json: unknown): unknown[] {
  if (!Array.isArray(json)) throw new FormatError(file, "is not a JSON array")
  return json
}

function recordOf(file: string, json: unknown): Record<string, unknown> {
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new FormatError(file, "is not a JSON object")
  return json as Record<string, unknown>
}
