import { RequestError } from "../../errors.ts"
import { openaiErrorBody } from "../api-error.ts"
import {
  addParts,
  type ChatEvent,
  type ChatMessage,
  type ChatOptions,
  type ChatPrompt,
  chatPrompt,
  startAnswer,
} from "../chat.ts"
import {
  aborting,
  type App,
  document,
  jsonContent,
  type ServerContext,
  type ServerRoot,
  streamOptions,
  useModel,
} from "../context.ts"
import type { TokenLogprob } from "../generate.ts"
import { readBody } from "../request.ts"
import { stopStrings } from "../schema.ts"
import { sseResponse } from "../stream.ts"
import type { AnswerPart } from "../tools/answer.ts"
import { completionId, contentFormat, envelope, samplingOf } from "./common.ts"
import {
  chatLogprobs,
  type FinishedChoice,
  promptLogprobs,
  promptProgress,
  timingsOf,
  usageOf,
} from "./format.ts"
import { templateMessage } from "./messages.ts"
import {
  type ChatRequest,
  chatRequestSchema,
  chatResponseSchema,
  errorSchema,
  inputTokensSchema,
} from "./schema.ts"

export function addChatCompletions(app: App, root: ServerRoot): void {
  document(app, {
    method: "post",
    path: "/v1/chat/completions",
    summary: "Answer a conversation",
    tags: ["OpenAI"],
    request: { body: jsonContent(chatRequestSchema, "Messages and sampling") },
    responses: {
      200: jsonContent(chatResponseSchema, "The answer, or with stream: true server-sent events"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/v1/chat/completions", async (c) => {
    const body = await readBody(c, chatRequestSchema)
    const context = await useModel(root, c, body.model)
    const { config } = context
    const prompt = chatPrompt(
      context,
      body.messages.map(templateMessage),
      chatOptions(body, config.reasoningFormat),
    )
    const logprobs = body.logprobs === true ? (body.top_logprobs ?? 0) : undefined
    if (typeof body.prompt_logprobs === "number" && body.stream === true)
      throw new RequestError(400, "prompt_logprobs: a stream does not carry them", {
        code: "invalid_value",
        param: "prompt_logprobs",
      })
    const count = body.n ?? 1
    const asked = body.max_completion_tokens ?? body.max_tokens
    const { generation, events } = await startAnswer(context, c, prompt, {
      sampling: {
        ...samplingOf(body, logprobs),
        promptLogprobs: body.prompt_logprobs ?? undefined,
      },
      maxTokens: asked === -1 ? undefined : (asked ?? config.defaults.maxTokens),
      param: "messages",
      stop: stopStrings(body.stop),
      count,
      oneCall: body.parallel_tool_calls === false,
      idSlot: body.id_slot ?? undefined,
    })
    const answer: Answer = {
      id: completionId("chatcmpl"),
      context,
      events,
      count,
      prompt,
      wantLogprobs: logprobs !== undefined,
      includeUsage: body.stream_options?.include_usage === true,
      tellsUsage: body.stream_options?.continuous_usage_stats === true,
      tellsTimings: body.timings_per_token === true,
      verbose:
        body.verbose === true
          ? { prompt: prompt.text, tokens_evaluated: prompt.ids.length }
          : undefined,
    }
    if (body.stream !== true) return c.json(await whole(answer))
    return sseResponse(
      chunks(answer),
      streamOptions(context, c, openaiErrorBody, aborting(generation)),
    )
  })
}

/** How many tokens a conversation has as the model gets it. */
export function addInputTokens(app: App, root: ServerRoot): void {
  document(app, {
    method: "post",
    path: "/v1/chat/completions/input_tokens",
    summary: "Count a conversation's tokens",
    tags: ["llama.cpp"],
    request: { body: jsonContent(chatRequestSchema, "As for an answer") },
    responses: {
      200: jsonContent(inputTokensSchema, "The tokens"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/v1/chat/completions/input_tokens", async (c) => {
    const body = await readBody(c, chatRequestSchema)
    const context = await useModel(root, c, body.model)
    const options = chatOptions(body, context.config.reasoningFormat)
    const { ids } = chatPrompt(context, body.messages.map(templateMessage), options)
    return c.json({ object: "response.input_tokens", input_tokens: ids.length })
  })
}

interface Answer {
  readonly id: string
  readonly context: ServerContext
  readonly events: AsyncIterable<ChatEvent>
  readonly count: number
  readonly prompt: ChatPrompt
  readonly wantLogprobs: boolean
  readonly includeUsage: boolean
  /** Chunks tell the tokens so far. */
  readonly tellsUsage: boolean
  /** Chunks tell the timings so far. */
  readonly tellsTimings: boolean
  /** What the model was given, as llama.cpp tells it. */
  readonly verbose: object | undefined
}

/** RequestError 400 where an answer is to be continued and begun anew. */
function chatOptions(body: ChatRequest, reasoning: "auto" | "none"): ChatOptions {
  const continues = body.continue_final_message === true
  if (continues && body.add_generation_prompt === true)
    throw new RequestError(
      400,
      "add_generation_prompt: an answer that is continued (continue_final_message) is not begun anew",
      { code: "invalid_value", param: "add_generation_prompt" },
    )
  return {
    vars: {
      ...(body.reasoning_effort ? { reasoning_effort: body.reasoning_effort } : {}),
      ...body.chat_template_kwargs,
    },
    tools: body.tool_choice === "none" ? undefined : body.tools,
    ...(body.tool_choice === "required" ? { toolChoice: "required" } : {}),
    ...(typeof body.tool_choice === "object" && body.tool_choice !== null
      ? { toolChoice: { name: body.tool_choice.function.name } }
      : {}),
    strictTools: body.tools?.some((tool) => tool.function["strict"] === true) === true,
    content: contentFormat(body),
    reasoning:
      body.reasoning_format === "none" ? "none" : body.reasoning_format ? "auto" : reasoning,
    continues,
    thinkingBudget: budgetOf(
      body.thinking_budget_tokens ?? body.reasoning_budget_tokens ?? body.thinking_token_budget,
    ),
    lastThought: body.reasoning_budget_message ?? undefined,
    // what is continued goes behind the beginning of an answer, as it did when it was written
    addGenerationPrompt: continues || body.add_generation_prompt !== false,
  }
}

/** -1 bounds nothing; undefined leaves it to the server's setting. */
function budgetOf(tokens: number | null | undefined): number | undefined {
  return tokens === -1 ? Number.POSITIVE_INFINITY : (tokens ?? undefined)
}

async function whole(answer: Answer): Promise<unknown> {
  const { context, wantLogprobs } = answer
  const choices = Array.from({ length: answer.count }, (_, index) => ({
    index,
    message: { content: answer.prompt.prefix, reasoning: "", calls: [] } as ChatMessage,
    logprobs: wantLogprobs ? chatLogprobs(context.tokenizer, []) : null,
    finish_reason: "stop",
  }))
  const finished: FinishedChoice[] = []
  let prompt: readonly TokenLogprob[] | undefined
  for await (const event of answer.events) {
    const choice = choices[event.choice]
    if (choice === undefined) throw new RangeError(`choice ${event.choice}`)
    if (event.type === "parts") {
      prompt ??= event.prompt
      addParts(choice.message, event.parts)
      if (choice.logprobs !== null) {
        const more = chatLogprobs(context.tokenizer, event.logprobs)
        choice.logprobs = { content: choice.logprobs.content.concat(more.content), refusal: null }
      }
    } else {
      choice.finish_reason = event.finishReason
      finished.push({ prompt: 0, usage: event.usage, timings: event.timings })
    }
  }
  return {
    ...envelope(answer.id, "chat.completion", context),
    choices: choices.map(({ message, ...choice }) => ({
      ...choice,
      message: messageOf(message, answer.prompt),
    })),
    ...(prompt === undefined ? {} : { prompt_logprobs: promptLogprobs(context.tokenizer, prompt) }),
    usage: usageOf(finished),
    timings: timingsOf(finished),
    ...verboseOf(answer),
  }
}

function verboseOf({ verbose }: Answer): object {
  return verbose === undefined ? {} : { __verbose: verbose }
}

function messageOf({ content, reasoning, calls }: ChatMessage, prompt: ChatPrompt): unknown {
  return {
    role: "assistant",
    content: content === "" && calls.length > 0 ? null : content,
    refusal: null,
    ...(reasoning === "" ? {} : { reasoning_content: reasoning }),
    ...(calls.length === 0
      ? {}
      : {
          tool_calls: calls.map(({ id, name, arguments: args }) => ({
            id: prompt.callId(id),
            type: "function",
            function: { name, arguments: args },
          })),
        }),
  }
}

function deltaOf(part: AnswerPart, prompt: ChatPrompt): unknown {
  switch (part.type) {
    case "content":
      return { content: part.text }
    case "reasoning":
      return { reasoning_content: part.text }
    case "call": {
      const { index, id, name } = part
      const call = {
        index,
        id: prompt.callId(id),
        type: "function",
        function: { name, arguments: "" },
      }
      return { tool_calls: [call] }
    }
    case "arguments":
      return { tool_calls: [{ index: part.index, function: { arguments: part.text } }] }
  }
}

function usageSoFar(prompt: ChatPrompt, written: readonly number[]): unknown {
  const completion = written.reduce((sum, tokens) => sum + tokens, 0)
  return {
    prompt_tokens: prompt.ids.length,
    completion_tokens: completion,
    total_tokens: prompt.ids.length + completion,
  }
}

async function* chunks(answer: Answer): AsyncGenerator<unknown> {
  const { context, wantLogprobs } = answer
  const head = envelope(answer.id, "chat.completion.chunk", context)
  // With include_usage every chunk has the field, null until the last.
  const usage = answer.includeUsage ? { usage: null } : {}
  const chunk = (
    index: number,
    delta: unknown,
    finish: string | null,
    logprobs: unknown,
  ): object => ({
    ...head,
    choices: [{ index, delta, logprobs, finish_reason: finish }],
    ...usage,
  })
  for (let i = 0; i < answer.count; i++)
    yield chunk(i, { role: "assistant", content: "" }, null, null)
  if (answer.prompt.prefix !== "") {
    for (let i = 0; i < answer.count; i++)
      yield chunk(i, { content: answer.prompt.prefix }, null, null)
  }
  const finished: FinishedChoice[] = []
  const written = Array.from({ length: answer.count }, () => 0)
  for await (const event of answer.events) {
    if (event.type === "parts") {
      written[event.choice] = event.completionTokens ?? written[event.choice] ?? 0
      const sofar = {
        ...(answer.tellsUsage ? { usage: usageSoFar(answer.prompt, written) } : {}),
        ...(answer.tellsTimings && event.sofar !== undefined
          ? { timings: timingsOf([{ prompt: 0, ...event.sofar() }]) }
          : {}),
        ...(event.progress === undefined
          ? {}
          : { prompt_progress: promptProgress(event.progress) }),
      }
      const logprobs = wantLogprobs ? chatLogprobs(context.tokenizer, event.logprobs) : null
      const deltas =
        event.parts.length > 0 ? event.parts.map((part) => deltaOf(part, answer.prompt)) : [{}]
      for (const [i, delta] of deltas.entries())
        yield { ...chunk(event.choice, delta, null, i === 0 ? logprobs : null), ...sofar }
    } else {
      const choice = { prompt: 0, usage: event.usage, timings: event.timings }
      finished.push(choice)
      yield {
        ...chunk(event.choice, {}, event.finishReason, null),
        timings: timingsOf([choice]),
        ...verboseOf(answer),
      }
    }
  }
  if (answer.includeUsage) {
    yield { ...head, choices: [], usage: usageOf(finished), timings: timingsOf(finished) }
  }
}
