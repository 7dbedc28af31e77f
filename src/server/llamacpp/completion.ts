import { RequestError } from "../../errors.ts"
import { openaiErrorBody } from "../api-error.ts"
import { constrain } from "../chat.ts"
import {
  aborting,
  type App,
  document,
  jsonContent,
  type RequestContext,
  type ServerContext,
  type ServerRoot,
  startGeneration,
  streamOptions,
  useModel,
} from "../context.ts"
import { fitTokens, type Generation, type GenerationEvent, type TokenLogprob } from "../generate.ts"
import { infillPrompt } from "../infill.ts"
import { chatLogprobs, timingsOf } from "../openai/format.ts"
import { errorSchema } from "../openai/schema.ts"
import { readBody } from "../request.ts"
import { extraSampling, generateParams } from "../sampling.ts"
import { stopStrings } from "../schema.ts"
import { SlotBook } from "../slots.ts"
import { eventResponse } from "../stream.ts"
import { grammarText, jsonFormat } from "../tools/answer-grammar.ts"
import {
  completionRequestSchema,
  completionResponseSchema,
  infillRequestSchema,
  type LlamaCompletionRequest,
} from "./schema.ts"
import { idsOf } from "./tokens.ts"

/** llama.cpp's own routes, /completion and /infill. */
export function addCompletion(app: App, root: ServerRoot): void {
  document(app, {
    method: "post",
    path: "/completion",
    summary: "Continue a text",
    tags: ["llama.cpp"],
    request: { body: jsonContent(completionRequestSchema, "Prompt and sampling") },
    responses: {
      200: jsonContent(completionResponseSchema, "The text, or with stream: true its events"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/completion", async (c) => {
    const body = await readBody(c, completionRequestSchema)
    const context = await useModel(root, c, body.model)
    const ids = idsOf(context.tokenizer, body.prompt, "prompt", {
      addSpecial: true,
      parseSpecial: true,
    })
    return complete(context, c, body, ids, "prompt")
  })

  document(app, {
    method: "post",
    path: "/infill",
    summary: "Fill the hole between two texts",
    tags: ["llama.cpp"],
    request: { body: jsonContent(infillRequestSchema, "What is around the hole, and sampling") },
    responses: {
      200: jsonContent(completionResponseSchema, "The text, or with stream: true its events"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/infill", async (c) => {
    const body = await readBody(c, infillRequestSchema)
    const context = await useModel(root, c, body.model)
    const { input_prefix: prefix, input_suffix: suffix, prompt } = body
    const files = body.input_extra ?? []
    const ids = infillPrompt(context, {
      prefix,
      suffix,
      prompt: prompt ?? "",
      files: files.map(({ filename, text }) => ({ name: filename ?? "tmp", text })),
      maxTokens: predicted(context, body),
      param: "input_prefix",
    })
    return complete(context, c, { ...body, prompt: prompt ?? "" }, ids, "input_prefix")
  })
}

/** Tokens asked for; undefined for all that the context leaves. */
function predicted(
  { config }: ServerContext,
  { n_predict }: Pick<LlamaCompletionRequest, "n_predict">,
): number | undefined {
  const asked = n_predict ?? config.defaults.maxTokens ?? -1
  return asked < 0 ? undefined : Math.max(1, asked)
}

async function complete(
  context: ServerContext,
  c: RequestContext,
  body: LlamaCompletionRequest,
  ids: Int32Array,
  param: string,
): Promise<Response> {
  const { client, config, tokenizer } = context
  const maxTokens = fitTokens(client, ids.length, predicted(context, body), param)
  const sampling = {
    temperature: body.temperature,
    topK: body.top_k,
    topP: body.top_p,
    minP: body.min_p,
    repetitionPenalty: body.repeat_penalty,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    seed: body.seed,
    ignoreEos: body.ignore_eos,
    logitBias: biasOf(body.logit_bias),
    logprobs: wantsTokens(body) ? (body.n_probs ?? 0) : undefined,
    extra: extraSampling(body),
  }
  const params = constrain(generateParams(sampling, maxTokens, config.defaults, tokenizer), {
    grammar: grammarOf(body),
  })
  const book = SlotBook.of(client)
  const asked = body.id_slot ?? -1
  if (asked >= book.slots.length)
    throw new RequestError(400, `id_slot ${asked}: there are ${book.slots.length} slots`, {
      code: "invalid_value",
      param: "id_slot",
    })
  const slot = book.take(asked)
  const generated: number[] = []
  const start = (): Generation =>
    startGeneration(context, c, [{ ids, params }], stopStrings(body.stop), {
      onToken: (_, token) => generated.push(token),
      onEnd: () => book.settle(slot, ids, generated),
    })
  let generation: Generation
  try {
    generation = start()
  } catch (error) {
    book.giveBack(slot)
    throw error
  }
  if (params.grammar !== undefined) await generation.accepted()
  const answer: Answer = { context, body, generation, idSlot: slot.id }
  if (body.stream !== true) return c.json(await whole(answer))
  return eventResponse(
    pieces(answer),
    streamOptions(context, c, openaiErrorBody, aborting(generation)),
  )
}

interface Answer {
  readonly context: ServerContext
  readonly body: LlamaCompletionRequest
  readonly generation: Generation
  readonly idSlot: number
}

/** Token ids come with the log-probabilities. */
function wantsTokens(body: LlamaCompletionRequest): boolean {
  return body.return_tokens === true || (body.n_probs ?? 0) > 0
}

/** `false` forbids a token. */
function biasOf(bias: LlamaCompletionRequest["logit_bias"]): Record<string, number> | undefined {
  if (bias === undefined || bias === null) return undefined
  if (!Array.isArray(bias)) return bias
  return Object.fromEntries(
    bias.map(([id, value]) => [String(id), value === false ? Number.NEGATIVE_INFINITY : value]),
  )
}

function grammarOf({ grammar, json_schema }: LlamaCompletionRequest): string | undefined {
  if (json_schema !== undefined && json_schema !== null) return grammarText(jsonFormat(json_schema))
  return grammar ? grammarText({ type: "grammar", grammar }) : undefined
}

async function whole(answer: Answer): Promise<unknown> {
  let content = ""
  const tokens: TokenLogprob[] = []
  for await (const event of answer.generation) {
    if (event.type === "end") return { ...ending(answer, event), content, ...shown(answer, tokens) }
    content += event.text
    tokens.push(...event.logprobs)
  }
  throw new RangeError("the answer has no end")
}

async function* pieces(answer: Answer): AsyncGenerator<{ data: unknown }> {
  for await (const event of answer.generation) {
    if (event.type === "end") yield { data: { ...ending(answer, event), content: "", tokens: [] } }
    else {
      const { text, logprobs } = event
      yield {
        data: {
          index: 0,
          content: text,
          stop: false,
          id_slot: answer.idSlot,
          ...shown(answer, logprobs),
        },
      }
    }
  }
}

function shown(
  { body, context }: Answer,
  tokens: readonly TokenLogprob[],
): Record<string, unknown> {
  const probabilities = (body.n_probs ?? 0) > 0
  return {
    tokens: body.return_tokens === true ? tokens.map(({ token }) => token) : [],
    ...(probabilities
      ? { completion_probabilities: chatLogprobs(context.tokenizer, tokens).content }
      : {}),
  }
}

function ending(
  { body, context, idSlot }: Answer,
  event: GenerationEvent & { type: "end" },
): object {
  const { usage, timings, finishReason, stopString } = event
  const type = finishReason === "length" ? "limit" : stopString === undefined ? "eos" : "word"
  const { predicted_per_second, prompt_per_second, ...times } = timingsOf([
    { prompt: 0, usage, timings },
  ])
  return {
    index: 0,
    stop: true,
    id_slot: idSlot,
    model: context.model.name,
    prompt: body.prompt,
    stop_type: type,
    stopping_word: stopString ?? "",
    tokens_predicted: usage.completionTokens,
    tokens_evaluated: usage.promptTokens,
    tokens_cached: usage.cachedTokens,
    truncated: false,
    timings: { ...times, prompt_per_second, predicted_per_second },
  }
}
