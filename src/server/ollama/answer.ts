import { RequestError } from "../../errors.ts"
import { ollamaErrorBody } from "../api-error.ts"
import {
  type RequestContext,
  type ServerContext,
  startGeneration,
  streamOptions,
} from "../context.ts"
import { fitTokens, type Generation, type GenerationEvent } from "../generate.ts"
import { type ChatLogprob, chatLogprobs } from "../openai/format.ts"
import { generateParams } from "../sampling.ts"
import { stopStrings } from "../schema.ts"
import { ndjsonResponse } from "../stream.ts"
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

/** Puts text where the route has it: `message.content` or `response`. */
export type TextField = (text: string) => Record<string, unknown>

/** Generates from `ids` and answers as one object or as lines. */
export async function respond(
  context: ServerContext,
  c: RequestContext,
  request: AnswerRequest,
  prompt: { readonly ids: Int32Array; readonly prefix: string; readonly param: string },
  field: TextField,
): Promise<Response> {
  const { client, config, tokenizer } = context
  const options: OllamaOptions = request.options ?? {}
  const predict = options.num_predict ?? config.defaults.maxTokens ?? -1
  if (predict === 0) {
    throw new RequestError(400, "options.num_predict 0: must be at least 1, or -1 for no limit", {
      code: "invalid_value",
      param: "options.num_predict",
    })
  }
  const maxTokens = fitTokens(
    client,
    prompt.ids.length,
    predict < 0 ? undefined : predict,
    prompt.param,
  )
  const params = generateParams(
    {
      temperature: options.temperature,
      topK: options.top_k,
      topP: options.top_p,
      minP: options.min_p,
      repetitionPenalty: options.repeat_penalty,
      presencePenalty: options.presence_penalty,
      frequencyPenalty: options.frequency_penalty,
      seed: options.seed,
      logprobs: request.logprobs === true ? (request.top_logprobs ?? 0) : undefined,
    },
    maxTokens,
    config.defaults,
    tokenizer,
  )
  const generation = startGeneration(
    context,
    c,
    [{ ids: prompt.ids, params }],
    stopStrings(options.stop),
  )
  const write = new AnswerWriter(context, request, c.get("arrivedMs"), field)
  if (request.stream === false) return Response.json(await write.whole(generation, prompt.prefix))
  const lines = write.lines(generation, prompt.prefix)
  return ndjsonResponse(lines, streamOptions(context, c, generation, ollamaErrorBody))
}

/** The answer to an empty prompt, which asks only that the model be loaded. */
export function loaded(request: AnswerRequest, field: TextField): Response {
  if (request.keep_alive === 0 || request.keep_alive === "0") {
    throw new RequestError(400, "keep_alive 0: the model stays loaded while the server runs", {
      code: "unsupported_value",
      param: "keep_alive",
    })
  }
  return Response.json({ ...head(request), ...field(""), done: true, done_reason: "load" })
}

function head(request: AnswerRequest): { readonly model: string; readonly created_at: string } {
  return { model: request.model, created_at: new Date().toISOString() }
}

class AnswerWriter {
  readonly #context: ServerContext
  readonly #request: AnswerRequest
  readonly #arrivedMs: number
  readonly #field: TextField

  constructor(context: ServerContext, request: AnswerRequest, arrivedMs: number, field: TextField) {
    this.#context = context
    this.#request = request
    this.#arrivedMs = arrivedMs
    this.#field = field
  }

  async whole(generation: Generation, prefix: string): Promise<unknown> {
    let text = prefix
    const logprobs: unknown[] = []
    for await (const event of generation) {
      if (event.type === "text") {
        text += event.text
        logprobs.push(...this.#logprobs(event))
      } else {
        return {
          ...head(this.#request),
          ...this.#field(text),
          ...(this.#request.logprobs === true ? { logprobs } : {}),
          ...this.#end(event),
        }
      }
    }
    throw new RequestError(500, "the answer has no end", { code: "internal_error" })
  }

  async *lines(generation: Generation, prefix: string): AsyncGenerator<unknown> {
    if (prefix !== "") yield { ...head(this.#request), ...this.#field(prefix), done: false }
    for await (const event of generation) {
      if (event.type === "text") {
        yield {
          ...head(this.#request),
          ...this.#field(event.text),
          ...(this.#request.logprobs === true ? { logprobs: this.#logprobs(event) } : {}),
          done: false,
        }
      } else {
        yield { ...head(this.#request), ...this.#field(""), ...this.#end(event) }
      }
    }
  }

  /** Ollama's entries are OpenAI's, without an empty list of alternatives. */
  #logprobs(event: GenerationEvent & { type: "text" }): readonly ChatLogprob[] {
    if (this.#request.logprobs !== true) return []
    const { content } = chatLogprobs(this.#context.tokenizer, event.logprobs)
    if ((this.#request.top_logprobs ?? 0) > 0) return content
    return content.map(({ token, logprob, bytes }) => ({ token, logprob, bytes }))
  }

  #end(event: GenerationEvent & { type: "end" }): Record<string, unknown> {
    const { usage, timings } = event
    return {
      done: true,
      done_reason: event.finishReason,
      total_duration: nanoseconds(performance.now() - this.#arrivedMs),
      // The model is loaded before the server answers at all.
      load_duration: 0,
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
