import { RequestError } from "../errors.ts"
import { reasoningAtEnd, THINK_TAGS } from "../tokenizer/chat-formats.ts"
import type { ChatFormat } from "../tokenizer/chat-formats.ts"
import type { ServerContext } from "./context.ts"
import type { ChoiceTimings, ChoiceUsage, Generation, TokenLogprob } from "./generate.ts"
import { answerParser, isMarker } from "./tools/answer-parser.ts"
import type { AnswerParser, AnswerPart, ToolParameters } from "./tools/answer.ts"
import { describeTools, GENERIC_FORMAT, withoutToolRoles } from "./tools/generic.ts"
import type { RenderOptions, ServerTokenizer, TemplateMessage } from "./types.ts"

/** A tool as requests have it (OpenAI's and Ollama's form). */
export interface Tool {
  readonly type: string
  readonly function: {
    readonly name: string
    readonly description?: string | null | undefined
    readonly parameters?: Readonly<Record<string, unknown>> | null | undefined
  }
}

export interface ChatOptions {
  readonly tools?: readonly Tool[] | null | undefined
  /** Extra variables for the template. */
  readonly vars?: Readonly<Record<string, unknown>>
  /** "none" leaves reasoning in the content, as the model marks it. */
  readonly reasoning: "auto" | "none"
}

/** A conversation as the model gets it, and how its answer is read. */
export interface ChatPrompt {
  readonly ids: Int32Array
  /** Text that the answer starts with because the prompt ends with it. */
  readonly prefix: string
  /** Control tokens whose text the parser needs. */
  readonly keepToken: (id: number) => boolean
  /** One for each choice. */
  readonly parser: () => AnswerParser
  /** A call's id: the model's own where it wrote one. */
  readonly callId: (written: string | undefined) => string
}

/** A prompt whose answer is text and nothing else. */
export function plainPrompt(ids: Int32Array): ChatPrompt {
  const format = { reasoning: undefined, toolCalls: undefined }
  return {
    ids,
    prefix: "",
    keepToken: () => false,
    parser: () => answerParser(format),
    callId: (written) => written ?? newId(24),
  }
}

function newId(length: number): string {
  return crypto.randomUUID().replaceAll("-", "").slice(0, length)
}

/** Template → text → token ids. RequestError 400 when the template refuses the messages. */
export function chatPrompt(
  context: Pick<ServerContext, "tokenizer" | "config">,
  messages: readonly TemplateMessage[],
  options: ChatOptions,
): ChatPrompt {
  const { tokenizer, config } = context
  const known: ChatFormat = tokenizer.chatFormat ?? { reasoning: undefined, toolCalls: undefined }
  const tools = options.tools ?? []
  // a model that was not made for tools is told of them in words
  const isGeneric = tools.length > 0 && known.toolCalls === undefined
  const told = isGeneric ? withoutToolRoles(describeTools(messages, tools)) : messages
  let text = renderOr400(tokenizer, told, {
    ...(options.vars === undefined ? {} : { vars: options.vars }),
    ...(tools.length > 0 && !isGeneric ? { tools } : {}),
  })
  const reasoning = known.reasoning ?? (config.forceThink ? THINK_TAGS : undefined)
  const format: ChatFormat = {
    reasoning: options.reasoning === "none" ? undefined : reasoning,
    toolCalls: isGeneric ? GENERIC_FORMAT : known.toolCalls,
  }
  let isOpen = reasoning !== undefined && reasoningAtEnd(text, reasoning) === "open"
  let prefix = ""
  if (config.forceThink && reasoning !== undefined) {
    if (!isOpen) text += reasoning.start
    isOpen = true
    prefix = reasoning.start
  }
  const separates = format.reasoning !== undefined
  const parameters: ToolParameters = new Map(
    tools.map(({ function: { name, parameters } }) => [name, parameters ?? {}]),
  )
  const decoder = new TextDecoder()
  return {
    ids: tokenizer.encodePrompt(text),
    prefix: separates ? "" : prefix,
    keepToken: (id) => isMarker(format, decoder.decode(tokenizer.tokenBytes(id))),
    parser: () =>
      answerParser(format, {
        ...(tools.length > 0 ? { tools: parameters } : {}),
        reasoningOpen: separates && isOpen,
      }),
    // Mistral's templates refuse ids that are not nine letters and digits
    callId: (written) =>
      written ??
      (known.toolCalls?.name.startsWith("mistral") === true ? newId(9) : `call_${newId(24)}`),
  }
}

function renderOr400(
  tokenizer: ServerTokenizer,
  messages: readonly TemplateMessage[],
  options: RenderOptions,
): string {
  try {
    return tokenizer.renderChat(messages, { addGenerationPrompt: true, ...options })
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw new RequestError(400, `messages: the model's chat template refuses them: ${reason}`, {
      code: "chat_template_error",
      param: "messages",
      cause: error,
    })
  }
}

export type ChatEvent =
  | {
      readonly type: "parts"
      readonly choice: number
      readonly parts: readonly AnswerPart[]
      readonly logprobs: readonly TokenLogprob[]
    }
  | {
      readonly type: "end"
      readonly choice: number
      readonly finishReason: "stop" | "length" | "tool_calls"
      readonly stopString: string | undefined
      readonly usage: ChoiceUsage
      readonly timings: ChoiceTimings
    }

/** A generation's text as parts of answers. */
export async function* chatEvents(
  generation: Generation,
  prompt: ChatPrompt,
  count: number,
  /** `oneCall`: only the first call of an answer is passed on. */
  options: { readonly oneCall?: boolean } = {},
): AsyncGenerator<ChatEvent> {
  const parsers = Array.from({ length: count }, () => prompt.parser())
  const hasCalls = Array.from({ length: count }, () => false)
  /** Log-probabilities of text that is held back; they go with the text that comes next. */
  const pending: TokenLogprob[][] = Array.from({ length: count }, () => [])
  for await (const event of generation) {
    const { choice } = event
    const parser = parsers[choice]
    const held = pending[choice]
    if (parser === undefined || held === undefined) throw new RangeError(`choice ${choice}`)
    if (event.type === "text") held.push(...event.logprobs)
    let parts = event.type === "text" ? parser.push(event.text) : parser.flush()
    if (options.oneCall === true)
      parts = parts.filter((part) => !("index" in part) || part.index === 0)
    if (parts.some(({ type }) => type === "call")) hasCalls[choice] = true
    if (parts.length > 0 || (event.type === "end" && held.length > 0))
      yield { type: "parts", choice, parts, logprobs: held.splice(0) }
    if (event.type === "text") continue
    const calls = hasCalls[choice] === true && event.finishReason === "stop"
    yield { ...event, finishReason: calls ? "tool_calls" : event.finishReason }
  }
}

/** An answer's parts put together. */
export interface ChatMessage {
  content: string
  reasoning: string
  readonly calls: { readonly id: string | undefined; readonly name: string; arguments: string }[]
}

export function addParts(message: ChatMessage, parts: readonly AnswerPart[]): void {
  for (const part of parts) {
    switch (part.type) {
      case "content":
        message.content += part.text
        break
      case "reasoning":
        message.reasoning += part.text
        break
      case "call":
        message.calls.push({ id: part.id, name: part.name, arguments: "" })
        break
      case "arguments": {
        const call = message.calls[part.index]
        if (call !== undefined) call.arguments += part.text
      }
    }
  }
}
