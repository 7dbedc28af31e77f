import { RequestError } from "../../errors.ts"
import { ollamaErrorBody } from "../api-error.ts"
import {
  addParts,
  type ChatEvent,
  type ChatMessage,
  type ChatOptions,
  type ChatPrompt,
  startAnswer,
} from "../chat.ts"
import {
  aborting,
  type RequestContext,
  type ServerContext,
  type ServerRoot,
  streamOptions,
  useModel,
} from "../context.ts"
import type { TokenLogprob } from "../generate.ts"
import { keepAliveMs } from "../models/keep-alive.ts"
import { type ChatLogprob, chatLogprobs } from "../openai/format.ts"
import { extraSampling } from "../sampling.ts"
import { stopStrings } from "../schema.ts"
import { ndjsonResponse } from "../stream.ts"
import { type AnswerFormat, jsonFormat } from "../tools/answer-grammar.ts"
import type { ServerConfig } from "../types.ts"
import type { OllamaOptions } from "./schema.ts"

/** What /api/chat and /api/generate have in common. */
export interface AnswerRequest {
  /** As the client wrote it: it is repeated in each answer. */
  readonly model: string
  readonly stream?: boolean | null | undefined
  readonly options?: OllamaOptions | null | undefined
  readonly logprobs?: boolean | null | undefined
  readonly top_logprobs?: number | null | undefined
  readonly keep_alive?: string | number | null | undefined
}

/** Puts an answer, or a piece of one, where the route has it: into `message`, or `response` and `thinking`. */
export type AnswerField = (message: ChatMessage) => Record<string, unknown>

const NOTHING: ChatMessage = { content: "", reasoning: "", calls: [] }

/** What a request's `format` means. */
export function contentOf(
  format: string | Record<string, unknown> | null | undefined,
): AnswerFormat | undefined {
  if (format === undefined || format === null || format === "") return undefined
  return jsonFormat(typeof format === "string" ? { type: "object" } : format)
}

/** What a request's `think` means for template and answer. */
export function thinking(
  think: boolean | string | null | undefined,
  config: ServerConfig,
): Pick<ChatOptions, "vars" | "reasoning"> {
  const reasoning = config.reasoningFormat
  if (think === undefined || think === null) return { reasoning }
  if (typeof think === "string")
    return { vars: { enable_thinking: true, reasoning_effort: think }, reasoning }
  return { vars: { enable_thinking: think }, reasoning }
}

/** Generates from `ids` and answers as one object or as lines. */
export async function respond(
  context: ServerContext,
  c: RequestContext,
  request: AnswerRequest,
  prompt: ChatPrompt,
  param: string,
  field: AnswerField,
): Promise<Response> {
  const { config } = context
  const options: OllamaOptions = request.options ?? {}
  const predict = options.num_predict ?? config.defaults.maxTokens ?? -1
  if (predict === 0) {
    throw new RequestError(400, "options.num_predict 0: must be at least 1, or -1 for no limit", {
      code: "invalid_value",
      param: "options.num_predict",
    })
  }
  const { generation, events } = await startAnswer(context, c, prompt, {
    sampling: {
      temperature: options.temperature,
      topK: options.top_k,
      topP: options.top_p,
      minP: options.min_p,
      repetitionPenalty: options.repeat_penalty,
      presencePenalty: options.presence_penalty,
      frequencyPenalty: options.frequency_penalty,
      seed: options.seed,
      extra: extraSampling(options),
      logprobs: request.logprobs === true ? (request.top_logprobs ?? 0) : undefined,
    },
    maxTokens: predict < 0 ? undefined : predict,
    param,
    stop: stopStrings(options.stop),
  })
  const write = new AnswerWriter(context, request, c.get("arrivedMs"), field)
  if (request.stream === false) return Response.json(await write.whole(events, prompt.prefix))
  const lines = write.lines(events, prompt.prefix)
  return ndjsonResponse(lines, streamOptions(context, c, ollamaErrorBody, aborting(generation)))
}

/** The answer to an empty prompt, which asks only that the model be loaded, or with keep_alive 0 unloaded. */
export async function loadOrUnload(
  root: ServerRoot,
  c: RequestContext,
  request: AnswerRequest,
  field: AnswerField,
): Promise<Response> {
  const unload = keepAliveMs(request.keep_alive) === 0
  if (unload) await root.models.unload(root.models.find(request.model))
  else await useModel(root, c, request.model, { keepAlive: request.keep_alive, anyKind: true })
  const done_reason = unload ? "unload" : "load"
  return Response.json({ ...head(request), ...field(NOTHING), done: true, done_reason })
}

function head(request: AnswerRequest): { readonly model: string; readonly created_at: string } {
  return { model: request.model, created_at: new Date().toISOString() }
}

class AnswerWriter {
  readonly #context: ServerContext
  readonly #request: AnswerRequest
  readonly #arrivedMs: number
  readonly #field: AnswerField

  constructor(
    context: ServerContext,
    request: AnswerRequest,
    arrivedMs: number,
    field: AnswerField,
  ) {
    this.#context = context
    this.#request = request
    this.#arrivedMs = arrivedMs
    this.#field = field
  }

  async whole(events: AsyncIterable<ChatEvent>, prefix: string): Promise<unknown> {
    const message: ChatMessage = { content: prefix, reasoning: "", calls: [] }
    const logprobs: unknown[] = []
    for await (const event of events) {
      if (event.type === "parts") {
        addParts(message, event.parts)
        logprobs.push(...this.#logprobs(event.logprobs))
      } else {
        return {
          ...head(this.#request),
          ...this.#field(message),
          ...(this.#request.logprobs === true ? { logprobs } : {}),
          ...this.#end(event),
        }
      }
    }
    throw new RequestError(500, "the answer has no end", { code: "internal_error" })
  }

  /** Text as it comes; calls once they are complete, since their arguments are objects here. */
  async *lines(events: AsyncIterable<ChatEvent>, prefix: string): AsyncGenerator<unknown> {
    const line = (message: ChatMessage): Record<string, unknown> => ({
      ...head(this.#request),
      ...this.#field(message),
      done: false,
    })
    if (prefix !== "") yield line({ ...NOTHING, content: prefix })
    const all: ChatMessage = { content: "", reasoning: "", calls: [] }
    for await (const event of events) {
      if (event.type === "parts") {
        addParts(all, event.parts)
        const piece: ChatMessage = { content: all.content, reasoning: all.reasoning, calls: [] }
        all.content = ""
        all.reasoning = ""
        if (piece.content === "" && piece.reasoning === "") continue
        const logprobs = this.#logprobs(event.logprobs)
        yield { ...line(piece), ...(this.#request.logprobs === true ? { logprobs } : {}) }
      } else {
        if (all.calls.length > 0) yield line(all)
        yield { ...head(this.#request), ...this.#field(NOTHING), ...this.#end(event) }
      }
    }
  }

  /** Ollama's entries are OpenAI's, without an empty list of alternatives. */
  #logprobs(tokens: readonly TokenLogprob[]): readonly ChatLogprob[] {
    if (this.#request.logprobs !== true) return []
    const { content } = chatLogprobs(this.#context.tokenizer, tokens)
    if ((this.#request.top_logprobs ?? 0) > 0) return content
    return content.map(({ token, logprob, bytes }) => ({ token, logprob, bytes }))
  }

  #end(event: ChatEvent & { type: "end" }): Record<string, unknown> {
    const { usage, timings } = event
    return {
      done: true,
      done_reason: event.finishReason === "length" ? "length" : "stop",
      total_duration: nanoseconds(performance.now() - this.#arrivedMs),
      load_duration: nanoseconds(this.#context.loadMs),
      prompt_eval_count: usage.promptTokens,
      prompt_eval_duration: nanoseconds(timings.prefillMs),
      eval_count: usage.completionTokens,
      eval_duration: nanoseconds(timings.decodeMs),
    }
  }
}

function nanoseconds(ms: number): number {
  return Math.round(ms * 1e6)
}
