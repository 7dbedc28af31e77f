import { RequestError } from "../errors.ts"
import { reasoningAtEnd, THINK_TAGS } from "../tokenizer/chat-formats.ts"
import type { ChatFormat, ReasoningFormat, ToolCallFormat } from "../tokenizer/chat-formats.ts"
import type {
  EngineClient,
  GenerateParams,
  PromptProgress,
  ThinkingParams,
} from "../worker/protocol.ts"
import {
  type GenerationOptions,
  type RequestContext,
  type ServerContext,
  startGeneration,
} from "./context.ts"
import { closingText, goingOn, unfinishedAnswer, writtenText } from "./continue.ts"
import {
  type ChoiceTimings,
  type ChoiceUsage,
  fitTokens,
  type Generation,
  type SoFar,
  type TokenLogprob,
} from "./generate.ts"
import { randomId } from "./ids.ts"
import type { ModelSettings } from "./models/library.ts"
import { forChoice, generateParams, type SamplingRequest } from "./sampling.ts"
import { SlotBook } from "./slots.ts"
import {
  afterReasoning,
  type AnswerFormat,
  callsInText,
  grammarText,
  oneCall,
} from "./tools/answer-grammar.ts"
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
  /** Which tool must be called: its name, or "required" for any of them. */
  readonly toolChoice?: "auto" | "required" | { readonly name: string }
  /** Calls have the arguments of their schemas, whether or not there must be one. */
  readonly strictTools?: boolean
  /** What the content must be. */
  readonly content?: AnswerFormat | undefined
  /** "none" leaves reasoning in the content, as the model marks it. */
  readonly reasoning: "auto" | "none"
  /** The last message is an answer's beginning; the model goes on where it ends. */
  readonly continues?: boolean
  /** Reasoning ends after so many tokens; of models whose template has marks for it. */
  readonly thinkingBudget?: number | undefined
  /** What the model is made to think last, before the mark that ends it. */
  readonly lastThought?: string | undefined
  /** End the prompt with the beginning of an answer; default true. */
  readonly addGenerationPrompt?: boolean
}

/** A conversation as the model gets it, and how its answer is read. */
export interface ChatPrompt {
  readonly text: string
  readonly ids: Int32Array
  /** Text that the answer starts with because the prompt ends with it. */
  readonly prefix: string
  /** Control tokens whose text the parser needs. */
  readonly keepToken: (id: number) => boolean
  /** One for each choice. */
  readonly parser: () => AnswerParser
  /** What the whole answer must match, as GenerateParams has it. */
  readonly grammar: string | undefined
  /** The answer's beginning, where the prompt ends with it: the grammar's too. */
  readonly written?: string
  /** A bound on the reasoning. */
  readonly thinking?: ThinkingParams | undefined
  /** A call's id: the model's own where it wrote one. */
  readonly callId: (written: string | undefined) => string
}

/** A prompt whose answer is text and nothing else. */
export function plainPrompt(ids: Int32Array, content?: AnswerFormat): ChatPrompt {
  const format = { reasoning: undefined, toolCalls: undefined }
  return {
    text: "",
    ids,
    prefix: "",
    keepToken: () => false,
    parser: () => answerParser(format),
    grammar: content === undefined ? undefined : grammarText(content),
    callId: (written) => written ?? randomId(24),
  }
}

/** A created model's messages come before the conversation, its system prompt where that has none. */
export function withOwnMessages(
  settings: ModelSettings | undefined,
  given: readonly TemplateMessage[],
): readonly TemplateMessage[] {
  if (settings === undefined) return given
  const { system, messages = [] } = settings
  const [first, ...rest] = given
  const hasSystem = first?.role === "system" || first?.role === "developer"
  const head: readonly TemplateMessage[] =
    first !== undefined && hasSystem
      ? [first]
      : system === undefined
        ? []
        : [{ role: "system", content: system }]
  return [...head, ...messages, ...(hasSystem ? rest : given)]
}

/** Template → text → token ids. RequestError 400 when the template refuses the messages. */
export function chatPrompt(
  context: Pick<ServerContext, "tokenizer" | "config" | "settings">,
  given: readonly TemplateMessage[],
  options: ChatOptions,
): ChatPrompt {
  const { tokenizer, config } = context
  const unfinished = options.continues === true ? unfinishedAnswer(given) : undefined
  const messages = withOwnMessages(
    context.settings,
    options.continues === true ? given.slice(0, -1) : given,
  )
  const known: ChatFormat = tokenizer.chatFormat ?? { reasoning: undefined, toolCalls: undefined }
  const tools = options.tools ?? []
  // a model that was not made for tools is told of them in words
  const isGeneric = tools.length > 0 && known.toolCalls === undefined
  const told = isGeneric ? withoutToolRoles(describeTools(messages, tools)) : messages
  let text = renderOr400(tokenizer, told, {
    vars: { ...config.templateVars, ...options.vars },
    ...(tools.length > 0 && !isGeneric ? { tools } : {}),
    ...(options.addGenerationPrompt === false ? { addGenerationPrompt: false } : {}),
  })
  const reasoning = known.reasoning ?? (config.forceThink ? THINK_TAGS : undefined)
  const format: ChatFormat = {
    reasoning: options.reasoning === "none" ? undefined : reasoning,
    toolCalls: isGeneric ? GENERIC_FORMAT : known.toolCalls,
  }
  const place = reasoning === undefined ? "none" : reasoningAtEnd(text, reasoning)
  let isOpen = place === "open"
  let prefix = ""
  if (config.forceThink && reasoning !== undefined && unfinished === undefined) {
    if (!isOpen) text += reasoning.start
    isOpen = true
    prefix = reasoning.start
  }
  const separates = format.reasoning !== undefined
  const written = unfinished === undefined ? "" : writtenText(unfinished, format.reasoning, isOpen)
  text += written
  const parameters: ToolParameters = new Map(
    tools.map(({ function: { name, parameters } }) => [name, parameters ?? {}]),
  )
  const grammar = grammarOf(
    options,
    format.toolCalls,
    parameters,
    reasoning,
    isOpen ? "open" : place,
  )
  const decoder = new TextDecoder()
  // reasoning that stays in the content keeps its marks
  const marked: ChatFormat = { ...format, reasoning }
  return {
    text,
    ids: tokenizer.encodePrompt(text),
    prefix: separates ? "" : prefix,
    keepToken: (id) => isMarker(marked, decoder.decode(tokenizer.tokenBytes(id))),
    parser: () =>
      goingOn(written, () =>
        answerParser(format, {
          ...(tools.length > 0 ? { tools: parameters } : {}),
          reasoningOpen: separates && isOpen,
        }),
      ),
    grammar,
    written,
    thinking: thinkingOf(
      options.thinkingBudget ?? config.thinkingBudget,
      options.lastThought,
      reasoning,
      tokenizer,
      text,
    ),
    // Mistral's templates refuse ids that are not nine letters and digits
    callId: (written) =>
      written ??
      (known.toolCalls?.name.startsWith("mistral") === true ? randomId(9) : `call_${randomId(24)}`),
  }
}

/** RequestError 400 where a tool that must be called is not there. */
function grammarOf(
  options: ChatOptions,
  calls: ToolCallFormat | undefined,
  tools: ToolParameters,
  reasoning: ReasoningFormat | undefined,
  place: "open" | "closed" | "none",
): string | undefined {
  const format = answerFormat(options, calls, tools)
  return format === undefined ? undefined : grammarText(afterReasoning(format, reasoning, place))
}

function answerFormat(
  { toolChoice = "auto", strictTools = false, content }: ChatOptions,
  calls: ToolCallFormat | undefined,
  tools: ToolParameters,
): AnswerFormat | undefined {
  if (toolChoice === "auto") {
    if (calls === undefined || tools.size === 0 || !strictTools) return content
    const inText = callsInText(calls, tools)
    if (content === undefined || inText === undefined) return content ?? inText
    return { type: "or", elements: [content, oneCall(calls, tools)] }
  }
  if (calls === undefined || tools.size === 0)
    throw new RequestError(400, "tool_choice: there are no tools to choose from", {
      code: "invalid_value",
      param: "tool_choice",
    })
  if (toolChoice === "required") return oneCall(calls, tools)
  const schema = tools.get(toolChoice.name)
  if (schema === undefined)
    throw new RequestError(400, `tool_choice ${toolChoice.name}: there is no such tool`, {
      code: "invalid_value",
      param: "tool_choice",
    })
  return oneCall(calls, new Map([[toolChoice.name, schema]]))
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

/** Adds what the output must match, and how much of it may be reasoning. */
export function constrain(
  params: GenerateParams,
  { grammar, written = "", thinking }: Pick<ChatPrompt, "grammar" | "written" | "thinking">,
): GenerateParams {
  return {
    ...params,
    ...(grammar === undefined ? {} : { grammar }),
    ...(grammar === undefined || written === "" ? {} : { grammarWritten: written }),
    ...(thinking === undefined ? {} : { thinking }),
  }
}

function thinkingOf(
  budget: number,
  lastThought: string | undefined,
  reasoning: ReasoningFormat | undefined,
  tokenizer: ServerTokenizer,
  prompt: string,
): ThinkingParams | undefined {
  if (!Number.isFinite(budget) || reasoning === undefined) return undefined
  const { open, close } = reasoning
  const isOpen = reasoningAtEnd(prompt, reasoning) === "open"
  const end = (lastThought ?? "") + closingText(reasoning)
  const closing = tokenizer.encode(end, { addSpecial: false, parseSpecial: true })
  return { budget, open: open.trimEnd(), close, isOpen, closing: [...closing] }
}

export interface AnswerRequest {
  readonly sampling: SamplingRequest
  /** What is asked for; undefined for all that the context leaves. */
  readonly maxTokens: number | undefined
  /** The field that a prompt which does not fit is blamed on. */
  readonly param: string
  readonly stop?: readonly string[]
  /** Choices; default 1. */
  readonly count?: number
  /** Only the first call of an answer is passed on. */
  readonly oneCall?: boolean
  /** llama.cpp's slot of the first choice. */
  readonly idSlot?: number | undefined
  /** It goes on when the client has gone. */
  readonly outlivesClient?: boolean
}

/** Starts the answers to a prompt. RequestError 400, 429, 503 as `fitTokens`, `generateParams` and `generate` have it. */
export async function startAnswer(
  context: ServerContext,
  c: RequestContext,
  prompt: ChatPrompt,
  request: AnswerRequest,
): Promise<{ readonly generation: Generation; readonly events: AsyncIterable<ChatEvent> }> {
  const { client, config, tokenizer } = context
  const { ids } = prompt
  const { sampling, param, stop = [], count = 1, oneCall = false } = request
  const maxTokens = fitTokens(client, ids.length, request.maxTokens, param)
  const free = generateParams(sampling, maxTokens, config.defaults, tokenizer)
  const params = constrain(free, prompt)
  // the prompt is the same for all
  const { promptLogprobs: _, tellsProgress: __, ...others } = params
  const sequences = Array.from({ length: count }, (_, i) => ({
    ids,
    params: forChoice(i === 0 ? params : others, i),
  }))
  const generation = inSlot(client, request.idSlot, ids, (told) =>
    startGeneration(context, c, sequences, stop, {
      keepToken: prompt.keepToken,
      outlivesClient: request.outlivesClient === true,
      ...told,
    }),
  )
  if (params.grammar !== undefined && request.outlivesClient !== true) await generation.accepted()
  return { generation, events: chatEvents(generation, prompt, count, oneCall) }
}

/** Starts what takes place in a slot, if one is named. */
function inSlot(
  client: EngineClient,
  id: number | undefined,
  ids: Int32Array,
  start: (told: Pick<GenerationOptions, "onToken" | "onEnd">) => Generation,
): Generation {
  if (id === undefined || id < 0) return start({})
  const book = SlotBook.of(client)
  const slot = book.take(id)
  const generated: number[] = []
  try {
    return start({
      onToken: (choice, token) => void (choice === 0 && generated.push(token)),
      onEnd: () => book.settle(slot, ids, generated),
    })
  } catch (error) {
    book.giveBack(slot)
    throw error
  }
}

export type ChatEvent =
  | {
      readonly type: "parts"
      readonly choice: number
      readonly parts: readonly AnswerPart[]
      readonly logprobs: readonly TokenLogprob[]
      /** Where asked for, with the first choice's first event: of the prompt's tokens from the second on. */
      readonly prompt?: readonly TokenLogprob[] | undefined
      /** Where asked for, how far the prompt is computed. */
      readonly progress?: PromptProgress | undefined
      /** Tokens of the choice so far; undefined where the text ends. */
      readonly completionTokens: number | undefined
      readonly sofar?: (() => SoFar) | undefined
    }
  | {
      readonly type: "end"
      readonly choice: number
      readonly finishReason: "stop" | "length" | "tool_calls"
      readonly stopString: string | undefined
      readonly usage: ChoiceUsage
      readonly timings: ChoiceTimings
    }

/** What an event without a text has of one. */
const NONE = {
  prompt: undefined,
  progress: undefined,
  sofar: undefined,
  completionTokens: undefined,
}

/** A generation's text as parts of answers. */
async function* chatEvents(
  generation: Generation,
  prompt: ChatPrompt,
  count: number,
  oneCall: boolean,
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
    const {
      prompt: given,
      progress,
      sofar,
      completionTokens,
    } = event.type === "text" ? event : NONE
    let parts = event.type === "text" ? parser.push(event.text) : parser.flush()
    if (oneCall) parts = parts.filter((part) => !("index" in part) || part.index === 0)
    if (parts.some(({ type }) => type === "call")) hasCalls[choice] = true
    const isTold = parts.length > 0 || given !== undefined || progress !== undefined
    if (isTold || (event.type === "end" && held.length > 0))
      yield {
        type: "parts",
        choice,
        parts,
        logprobs: held.splice(0),
        prompt: given,
        progress,
        completionTokens,
        sofar,
      }
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
