import type { GenerateParams } from "../../worker/protocol.ts"
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
import { chatLogprobs, promptProgress, timingsOf } from "../openai/format.ts"
import { errorSchema } from "../openai/schema.ts"
import { readBody } from "../request.ts"
import { extraSampling, generateParams, samplingFields } from "../sampling.ts"
import { stopStrings } from "../schema.ts"
import { type Slot, SlotBook } from "../slots.ts"
import { eventResponse } from "../stream.ts"
import { grammarText, jsonFormat } from "../tools/answer-grammar.ts"
import type { ServerTokenizer } from "../types.ts"
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
    const how = { addSpecial: true, parseSpecial: true }
    const prompts = promptsOf(body.prompt).map((one) =>
      idsOf(context.tokenizer, one, "prompt", how),
    )
    return complete(context, c, body, prompts, "prompt")
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
    return complete(context, c, { ...body, prompt: prompt ?? "" }, [ids], "input_prefix")
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

type Prompt = string | readonly (string | number)[]

/** One text or list with tokens in it; of a list of texts, or of such lists, each is one. */
function promptsOf(prompt: LlamaCompletionRequest["prompt"]): readonly Prompt[] {
  if (typeof prompt === "string") return [prompt]
  if (!Array.isArray(prompt)) return [prompt.prompt_string]
  const isOne = prompt.some((part) => typeof part === "number")
  if (isOne) return [prompt as (string | number)[]]
  return prompt.map((part) =>
    typeof part === "object" && !Array.isArray(part) ? part.prompt_string : (part as Prompt),
  )
}

async function complete(
  context: ServerContext,
  c: RequestContext,
  body: LlamaCompletionRequest,
  prompts: readonly Int32Array[],
  param: string,
): Promise<Response> {
  const { client, config, tokenizer } = context
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
    logitBias: biasOf(body.logit_bias, tokenizer),
    tellsProgress: body.stream === true && body.return_progress === true,
    logprobs: (body.n_probs ?? 0) > 0 ? (body.n_probs ?? 0) : undefined,
    extra: extraSampling(body),
  }
  const grammar = grammarOf(body)
  const sequences = prompts.map((ids) => {
    const maxTokens = fitTokens(client, ids.length, predicted(context, body), param)
    const free = generateParams(sampling, maxTokens, config.defaults, tokenizer)
    return { ids, params: constrain(free, { grammar }) }
  })
  const book = SlotBook.of(client)
  const asked = body.id_slot ?? -1
  const parts = sequences.map(({ ids, params }) => {
    const generated: number[] = []
    return { ids, params, generated, slot: book.take(asked) }
  })
  const start = (): Generation =>
    startGeneration(context, c, sequences, stopStrings(body.stop), {
      onToken: (choice, token) => parts[choice]?.generated.push(token),
      onEnd: () => {
        for (const { slot, ids, generated } of parts) book.settle(slot, ids, generated)
      },
    })
  let generation: Generation
  try {
    generation = start()
  } catch (error) {
    for (const { slot } of parts) book.giveBack(slot)
    throw error
  }
  if (grammar !== undefined) await generation.accepted()
  const answer: Answer = { context, body, generation, parts }
  if (body.stream !== true) {
    const all = await whole(answer)
    return c.json(all.length === 1 ? all[0] : all)
  }
  return eventResponse(
    pieces(answer),
    streamOptions(context, c, openaiErrorBody, aborting(generation)),
  )
}

type Ended = GenerationEvent & { type: "end" }

/** One of the texts that a request asks for. */
interface Part {
  readonly params: GenerateParams
  /** Tokens as they came, the one that ended the text included. */
  readonly generated: readonly number[]
  readonly slot: Slot
}

interface Answer {
  readonly context: ServerContext
  readonly body: LlamaCompletionRequest
  readonly generation: Generation
  /** By prompt. */
  readonly parts: readonly Part[]
}

function partOf({ parts }: Answer, choice: number): Part {
  const part = parts[choice]
  if (part === undefined) throw new RangeError(`choice ${choice}`)
  return part
}

/** `false` forbids a token; a text stands for its tokens. */
function biasOf(
  bias: LlamaCompletionRequest["logit_bias"],
  tokenizer: ServerTokenizer,
): Record<string, number> | undefined {
  if (bias === undefined || bias === null) return undefined
  const entries = Array.isArray(bias) ? bias : Object.entries(bias)
  const out: Record<string, number> = {}
  for (const [key, value] of entries) {
    const isId = typeof key === "number" || /^\d+$/.test(key)
    const ids = isId ? [Number(key)] : tokenizer.encode(key, { addSpecial: false })
    for (const id of ids) out[String(id)] = value === false ? Number.NEGATIVE_INFINITY : value
  }
  return out
}

function grammarOf({ grammar, json_schema }: LlamaCompletionRequest): string | undefined {
  if (json_schema !== undefined && json_schema !== null) return grammarText(jsonFormat(json_schema))
  return grammar ? grammarText({ type: "grammar", grammar }) : undefined
}

/** By prompt. */
async function whole(answer: Answer): Promise<Record<string, unknown>[]> {
  const { body } = answer
  const texts = answer.parts.map(() => "")
  const logprobs = answer.parts.map((): TokenLogprob[] => [])
  const done: Record<string, unknown>[] = []
  for await (const event of answer.generation) {
    const { choice } = event
    if (event.type === "text") {
      texts[choice] += event.text
      logprobs[choice]?.push(...event.logprobs)
      continue
    }
    const { generated } = partOf(answer, choice)
    const content = texts[choice] ?? ""
    const tokens = body.return_tokens === true ? generated.slice(0, wordsEnd(event)) : []
    done[choice] = chosen(body, {
      ...ending(answer, event, content.includes("\n")),
      content,
      tokens,
      ...probabilities(answer, logprobs[choice] ?? []),
    })
  }
  return done
}

async function* pieces(answer: Answer): AsyncGenerator<{ data: unknown }> {
  const { body } = answer
  const hasNewLine = answer.parts.map(() => false)
  const sent = answer.parts.map(() => 0)
  for await (const event of answer.generation) {
    const { choice } = event
    const { generated, slot } = partOf(answer, choice)
    if (event.type === "end") {
      const last = {
        ...ending(answer, event, hasNewLine[choice] === true),
        content: "",
        // those without a text, or with half a character, came with no piece
        tokens: generated.slice(sent[choice], wordsEnd(event)),
      }
      yield { data: chosen(body, last) }
    } else {
      const { text, logprobs, completionTokens, progress } = event
      const { usage, timings } = event.sofar()
      hasNewLine[choice] ||= text.includes("\n")
      const tokens = generated.slice(sent[choice], completionTokens)
      sent[choice] = completionTokens
      const piece = {
        index: choice,
        content: text,
        tokens,
        stop: false,
        id_slot: slot.id,
        tokens_predicted: completionTokens,
        tokens_evaluated: usage.promptTokens,
        ...(body.timings_per_token === true
          ? { timings: timingsOf([{ prompt: 0, usage, timings }]) }
          : {}),
        ...(progress === undefined ? {} : { prompt_progress: promptProgress(progress) }),
      }
      yield { data: { ...piece, ...probabilities(answer, logprobs) } }
    }
  }
}

/** Where the tokens of the text end: before the one that ended it, which is none of its words. */
function wordsEnd({ finishReason, stopString }: Ended): number | undefined {
  return finishReason === "stop" && stopString === undefined ? -1 : undefined
}

/** Only what is asked for: names, or a/b for a part of a part. */
function chosen(
  { response_fields: fields }: LlamaCompletionRequest,
  whole: Record<string, unknown>,
): Record<string, unknown> {
  if (fields === undefined || fields === null || fields.length === 0) return whole
  const entries = fields.flatMap((field): [string, unknown][] => {
    const keys = field.split("/")
    let value: unknown = whole
    for (const key of keys) {
      if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) return []
      value = (value as Record<string, unknown>)[key]
    }
    return [[field, value]]
  })
  return Object.fromEntries(entries)
}

/** As chat completions have them, with the tokens' ids. */
function probabilities(
  { body, context }: Answer,
  tokens: readonly TokenLogprob[],
): { completion_probabilities?: unknown } {
  if ((body.n_probs ?? 0) === 0) return {}
  const { content } = chatLogprobs(context.tokenizer, tokens)
  return {
    completion_probabilities: content.map(({ top_logprobs: top, ...own }, i) => ({
      id: tokens[i]?.token,
      ...own,
      top_logprobs: top.map((one, j) => ({ id: tokens[i]?.top[j]?.[0], ...one })),
    })),
  }
}

/** What the request came to, by llama.cpp's names. */
function settingsOf({ body, context }: Answer, { params }: Part): Record<string, unknown> {
  const ends = params.ignoreEos === true ? [...context.tokenizer.eogIds] : []
  return {
    // what stands for minus infinity in JSON
    logit_bias: [...(params.logitBias ?? []), ...ends.map((id) => [id, null] as const)].map(
      ([token, bias]) => ({ token, bias: Number.isFinite(bias) ? bias : null }),
    ),
    n_predict: body.n_predict ?? params.maxTokens,
    max_tokens: params.maxTokens,
    seed: params.seed ?? -1,
    ...samplingFields(params),
    xtc_threshold: params.xtcThreshold ?? 0.1,
    dynatemp_exponent: params.dynatempExponent ?? 1,
    repeat_last_n: params.penaltyLastN ?? -1,
    mirostat_tau: params.mirostatTau ?? 5,
    mirostat_eta: params.mirostatEta ?? 0.1,
    ignore_eos: params.ignoreEos === true,
    stop: stopStrings(body.stop),
    stream: body.stream === true,
    n_probs: body.n_probs ?? 0,
  }
}

function ending(answer: Answer, event: Ended, hasNewLine: boolean): Record<string, unknown> {
  const { body, context } = answer
  const part = partOf(answer, event.choice)
  const { usage, timings, finishReason, stopString } = event
  const type = finishReason === "length" ? "limit" : stopString === undefined ? "eos" : "word"
  return {
    index: event.choice,
    stop: true,
    id_slot: part.slot.id,
    model: context.model.name,
    prompt: body.prompt,
    stop_type: type,
    stopping_word: stopString ?? "",
    tokens_predicted: usage.completionTokens,
    tokens_evaluated: usage.promptTokens,
    tokens_cached: usage.cachedTokens,
    generation_settings: settingsOf(answer, part),
    has_new_line: hasNewLine,
    truncated: false,
    timings: timingsOf([{ prompt: 0, usage, timings }]),
  }
}
