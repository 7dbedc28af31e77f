import { RequestError } from "../../errors.ts"
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
import {
  type ChoiceUsage,
  fitTokens,
  type Generation,
  type GenerationEvent,
  type SequenceRequest,
  type TokenLogprob,
} from "../generate.ts"
import { infillPrompt } from "../infill.ts"
import { readBody } from "../request.ts"
import { forChoice, generateParams } from "../sampling.ts"
import { MAX_CHOICES, stopStrings } from "../schema.ts"
import { sseResponse } from "../stream.ts"
import { checkIds, textOfIds } from "../token-ids.ts"
import { grammarText } from "../tools/answer-grammar.ts"
import type { ServerTokenizer } from "../types.ts"
import { completionId, contentFormat, envelope, samplingOf } from "./common.ts"
import {
  type FinishedChoice,
  promptLogprobs,
  promptProgress,
  promptTextLogprobs,
  type TextLogprobs,
  textLogprobs,
  timingsOf,
  usageOf,
} from "./format.ts"
import {
  type CompletionRequest,
  completionRequestSchema,
  completionResponseSchema,
  errorSchema,
} from "./schema.ts"

export function addCompletions(app: App, root: ServerRoot): void {
  document(app, {
    method: "post",
    path: "/v1/completions",
    summary: "Continue a text, without a chat template",
    tags: ["OpenAI"],
    request: { body: jsonContent(completionRequestSchema, "Prompts and sampling") },
    responses: {
      200: jsonContent(
        completionResponseSchema,
        "The text, or with stream: true server-sent events",
      ),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/v1/completions", async (c) => {
    const body = await readBody(c, completionRequestSchema)
    const context = await useModel(root, c, body.model)
    const answer = await start(context, c, body)
    if (body.stream !== true) return c.json(await whole(answer))
    const options = streamOptions(context, c, openaiErrorBody, aborting(answer.generation))
    return sseResponse(chunks(answer), options)
  })
}

/** A prompt as text (for echo) and ids. */
interface Prompt {
  readonly text: string
  readonly ids: Int32Array
}

interface Answer {
  readonly id: string
  readonly context: ServerContext
  readonly generation: Generation
  readonly prompts: readonly Prompt[]
  /** Choices per prompt that are drawn; choice = prompt · n + i. */
  readonly n: number
  /** Of those of a prompt, the likeliest that are returned. */
  readonly kept: number
  /** vLLM's prompt_logprobs are asked for. */
  readonly wantsPrompt: boolean
  /** Nothing but the prompt: what is drawn is left out. */
  readonly promptOnly: boolean
  readonly echo: boolean
  readonly topCount: number | undefined
  readonly includeUsage: boolean
  /** Chunks tell the timings so far. */
  readonly tellsTimings: boolean
}

async function start(
  context: ServerContext,
  c: RequestContext,
  body: CompletionRequest,
): Promise<Answer> {
  const { tokenizer, client, config } = context
  const prompts = body.suffix ? [holeOf(context, body)] : promptsOf(body.prompt, tokenizer)
  const kept = body.n ?? 1
  const n = body.best_of ?? kept
  const echo = body.echo === true
  const topCount = body.logprobs ?? undefined
  if (prompts.length * n > MAX_CHOICES) {
    throw new RequestError(
      400,
      `prompt: ${prompts.length} prompts with n ${n} are ${prompts.length * n} choices, at most ${MAX_CHOICES} are allowed`,
      { code: "invalid_value", param: "prompt" },
    )
  }
  const wrong = (param: string, why: string): RequestError =>
    new RequestError(400, `${param}: ${why}`, { code: "invalid_value", param })
  if (n < kept) throw wrong("best_of", `${n} is less than n, which is ${kept}`)
  if (n > kept && body.stream === true)
    throw wrong(
      "best_of",
      "answers are compared when they are whole, which a stream cannot wait for",
    )
  const ownPrompt = body.prompt_logprobs ?? undefined
  if (ownPrompt !== undefined && body.stream === true)
    throw wrong("prompt_logprobs", "a stream does not carry them")
  const asked = [ownPrompt ?? -1, echo ? (topCount ?? -1) : -1]
  const promptCount = Math.max(...asked)
  const sampling = {
    ...samplingOf(body, n > kept ? (topCount ?? 0) : topCount),
    promptLogprobs: promptCount < 0 ? undefined : promptCount,
  }
  const promptOnly = body.max_tokens === 0
  const format = contentFormat(body)
  const grammar = format === undefined ? undefined : grammarText(format)
  const sequences: SequenceRequest[] = []
  for (const { ids } of prompts) {
    // OpenAI's older default for this route would be 16; texts end where the model ends them, as
    // with chat.
    const fitting = fitTokens(
      client,
      ids.length,
      promptOnly ? 1 : (body.max_tokens ?? config.defaults.maxTokens),
      "prompt",
    )
    const free = generateParams(sampling, fitting, config.defaults, tokenizer)
    const params = constrain(free, { grammar })
    for (let i = 0; i < n; i++) sequences.push({ ids, params: forChoice(params, i) })
  }
  const generation =
    promptOnly && promptCount < 0
      ? nothing(sequences)
      : startGeneration(context, c, sequences, stopStrings(body.stop))
  if (grammar !== undefined) await generation.accepted()
  const includeUsage = body.stream_options?.include_usage === true
  return {
    id: completionId("cmpl"),
    context,
    generation,
    prompts,
    n,
    kept,
    wantsPrompt: ownPrompt !== undefined,
    promptOnly,
    echo,
    topCount,
    includeUsage,
    tellsTimings: body.timings_per_token === true,
  }
}

/** One text before the hole and one after it. */
function holeOf(context: ServerContext, body: CompletionRequest): Prompt {
  if (typeof body.prompt !== "string")
    throw new RequestError(400, "suffix: the prompt must be one text", {
      code: "invalid_value",
      param: "suffix",
    })
  const maxTokens = body.max_tokens ?? undefined
  const hole = { prefix: body.prompt, suffix: body.suffix ?? "", maxTokens, param: "suffix" }
  return { text: body.prompt, ids: infillPrompt(context, hole) }
}

function promptsOf(
  prompt: CompletionRequest["prompt"],
  tokenizer: ServerTokenizer,
): readonly Prompt[] {
  const fromText = (text: string): Prompt => ({
    text,
    ids: tokenizer.encode(text, { addSpecial: true, parseSpecial: true }),
  })
  const fromIds = (ids: readonly number[]): Prompt => {
    checkIds(tokenizer, ids, "prompt")
    return { text: textOfIds(tokenizer, ids), ids: Int32Array.from(ids) }
  }
  if (typeof prompt === "string") return [fromText(prompt)]
  if (isIds(prompt)) return [fromIds(prompt)]
  return prompt.map((one) => (typeof one === "string" ? fromText(one) : fromIds(one)))
}

function isIds(
  prompt: readonly (string | number | readonly number[])[],
): prompt is readonly number[] {
  return typeof prompt[0] === "number"
}

/** max_tokens 0: only the prompt is counted (and echoed). */
function nothing(sequences: readonly { ids: Int32Array; params: GenerateParams }[]): Generation {
  async function* ends(): AsyncGenerator<GenerationEvent> {
    for (const [choice, { ids }] of sequences.entries()) {
      yield {
        type: "end",
        choice,
        finishReason: "length",
        stopString: undefined,
        usage: { promptTokens: ids.length, cachedTokens: 0, completionTokens: 0 },
        timings: { queueMs: 0, prefillMs: 0, ttftMs: 0, decodeMs: 0 },
      }
    }
  }
  return Object.assign(ends(), { accepted: () => Promise.resolve() })
}

function promptOf(answer: Answer, choice: number): number {
  return Math.floor(choice / answer.n)
}

function echoed(answer: Answer, choice: number): string {
  return answer.echo ? (answer.prompts[promptOf(answer, choice)]?.text ?? "") : ""
}

async function whole(answer: Answer): Promise<unknown> {
  const { context, topCount } = answer
  const choices = Array.from({ length: answer.prompts.length * answer.n }, (_, index) => ({
    index,
    text: echoed(answer, index),
    logprobs: topCount === undefined ? null : textLogprobs(context.tokenizer, [], topCount, 0),
    finish_reason: "stop",
  }))
  const shown: Record<string, unknown>[] = choices.map(() => ({}))
  const likelihoods = choices.map(() => ({ sum: 0, count: 0 }))
  const finished: FinishedChoice[] = []
  for await (const event of answer.generation) {
    const choice = choices[event.choice]
    const likelihood = likelihoods[event.choice]
    if (choice === undefined || likelihood === undefined)
      throw new RangeError(`choice ${event.choice}`)
    if (event.type === "text") {
      if (event.prompt !== undefined) {
        const echo = echoLogprobs(answer, event.choice, event.prompt)
        if (choice.logprobs !== null && echo !== undefined) append(choice.logprobs, echo)
        if (answer.wantsPrompt)
          shown[event.choice] = { prompt_logprobs: promptLogprobs(context.tokenizer, event.prompt) }
      }
      if (answer.promptOnly) continue
      for (const { logprob } of event.logprobs) likelihood.sum += logprob
      likelihood.count += event.logprobs.length
      if (choice.logprobs !== null && topCount !== undefined) {
        append(
          choice.logprobs,
          textLogprobs(context.tokenizer, event.logprobs, topCount, choice.text.length),
        )
      }
      choice.text += event.text
    } else {
      choice.finish_reason = answer.promptOnly ? "length" : event.finishReason
      finished.push({
        prompt: promptOf(answer, event.choice),
        usage: usageIn(answer, event.usage),
        timings: event.timings,
      })
    }
  }
  return {
    ...envelope(answer.id, "text_completion", context),
    choices: likeliest(answer, likelihoods).map((drawn, index) => ({
      ...choices[drawn],
      ...shown[drawn],
      index,
    })),
    usage: usageOf(finished),
    timings: timingsOf(finished),
  }
}

/** Of each prompt's choices, those of the greatest mean log-probability, in the order in which they are returned. */
function likeliest(
  { prompts, n, kept }: Answer,
  likelihoods: readonly { readonly sum: number; readonly count: number }[],
): readonly number[] {
  const mean = (choice: number): number => {
    const { sum = 0, count = 0 } = likelihoods[choice] ?? {}
    return count === 0 ? Number.NEGATIVE_INFINITY : sum / count
  }
  return prompts.flatMap((_, prompt) => {
    const drawn = Array.from({ length: n }, (_, i) => prompt * n + i)
    return n === kept ? drawn : drawn.toSorted((a, b) => mean(b) - mean(a)).slice(0, kept)
  })
}

/** The token that only the prompt's log-probabilities were computed for is none of the answer's. */
function usageIn({ promptOnly }: Answer, usage: ChoiceUsage): ChoiceUsage {
  return promptOnly ? { ...usage, completionTokens: 0 } : usage
}

function echoLogprobs(
  { context, echo, topCount, prompts, n }: Answer,
  choice: number,
  tokens: readonly TokenLogprob[],
): TextLogprobs | undefined {
  const prompt = prompts[Math.floor(choice / n)]
  if (!echo || topCount === undefined || prompt === undefined) return undefined
  // vLLM's field may have asked for more of the likeliest
  const cut = tokens.map((token) => ({ ...token, top: token.top.slice(0, topCount) }))
  return promptTextLogprobs(context.tokenizer, prompt, cut, topCount)
}

function append(all: TextLogprobs, more: TextLogprobs): void {
  all.tokens.push(...more.tokens)
  all.token_logprobs.push(...more.token_logprobs)
  all.top_logprobs?.push(...(more.top_logprobs ?? []))
  all.text_offset.push(...more.text_offset)
}

async function* chunks(answer: Answer): AsyncGenerator<unknown> {
  const { context, topCount } = answer
  const head = envelope(answer.id, "text_completion", context)
  const usage = answer.includeUsage ? { usage: null } : {}
  const chunk = (
    index: number,
    text: string,
    finish: string | null,
    logprobs: unknown,
  ): object => ({
    ...head,
    choices: [{ index, text, logprobs, finish_reason: finish }],
    ...usage,
  })
  const lengths = Array.from({ length: answer.prompts.length * answer.n }, () => 0)
  if (answer.echo && topCount === undefined) {
    for (let i = 0; i < lengths.length; i++) yield chunk(i, echoed(answer, i), null, null)
  }
  const finished: FinishedChoice[] = []
  for await (const event of answer.generation) {
    if (event.type === "text") {
      const prompt = promptOf(answer, event.choice)
      const timings = answer.tellsTimings
        ? { timings: timingsOf([{ prompt, ...event.sofar() }]) }
        : {}
      if (event.progress !== undefined) {
        const prompt_progress = promptProgress(event.progress)
        yield { ...chunk(event.choice, "", null, null), ...timings, prompt_progress }
        continue
      }
      if (event.prompt !== undefined) {
        const echo = echoLogprobs(answer, event.choice, event.prompt) ?? null
        const text = echoed(answer, event.choice)
        lengths[event.choice] = text.length
        yield chunk(event.choice, text, null, echo)
        continue
      }
      if (answer.promptOnly) continue
      const offset = lengths[event.choice] ?? 0
      lengths[event.choice] = offset + event.text.length
      const logprobs =
        topCount === undefined
          ? null
          : textLogprobs(context.tokenizer, event.logprobs, topCount, offset)
      yield { ...chunk(event.choice, event.text, null, logprobs), ...timings }
    } else {
      const { timings } = event
      const reason = answer.promptOnly ? "length" : event.finishReason
      const usage = usageIn(answer, event.usage)
      const choice = { prompt: promptOf(answer, event.choice), usage, timings }
      finished.push(choice)
      yield { ...chunk(event.choice, "", reason, null), timings: timingsOf([choice]) }
    }
  }
  if (answer.includeUsage) {
    yield { ...head, choices: [], usage: usageOf(finished), timings: timingsOf(finished) }
  }
}
