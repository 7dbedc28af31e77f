import { anthropicErrorBody } from "../api-error.ts"
import {
  addParts,
  type ChatEvent,
  type ChatMessage,
  type ChatPrompt,
  startAnswer,
} from "../chat.ts"
import {
  aborting,
  type App,
  document,
  jsonContent,
  type ServerRoot,
  streamOptions,
} from "../context.ts"
import type { ChoiceUsage } from "../generate.ts"
import { randomId } from "../ids.ts"
import { readBody } from "../request.ts"
import { eventResponse, type NamedEvent } from "../stream.ts"
import type { AnswerPart } from "../tools/answer.ts"
import { promptOf, useAnthropicModel } from "./prompt.ts"
import {
  countRequestSchema,
  countResponseSchema,
  errorSchema,
  type MessagesRequest,
  messagesRequestSchema,
  messagesResponseSchema,
} from "./schema.ts"

export function addMessages(app: App, root: ServerRoot): void {
  document(app, {
    method: "post",
    path: "/v1/messages",
    summary: "Answer a conversation",
    tags: ["Anthropic"],
    request: { body: jsonContent(messagesRequestSchema, "Messages and sampling") },
    responses: {
      200: jsonContent(messagesResponseSchema, "The answer, or with stream: true its events"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/v1/messages", async (c) => {
    const body = await readBody(c, messagesRequestSchema)
    const context = await useAnthropicModel(root, c, body.model)
    const prompt = promptOf(context, body)
    const choice = body.tool_choice
    const { generation, events } = await startAnswer(context, c, prompt, {
      sampling: { temperature: body.temperature, topK: body.top_k, topP: body.top_p },
      maxTokens: body.max_tokens,
      param: "messages",
      stop: body.stop_sequences ?? [],
      oneCall: choice?.type !== "none" && choice?.disable_parallel_tool_use === true,
    })
    const answer: Answer = {
      id: `msg_${randomId()}`,
      body,
      prompt,
      events,
    }
    if (body.stream !== true) return c.json(await whole(answer))
    return eventResponse(
      blocks(answer),
      streamOptions(context, c, anthropicErrorBody, aborting(generation)),
    )
  })

  document(app, {
    method: "post",
    path: "/v1/messages/count_tokens",
    summary: "Tokens of a conversation",
    tags: ["Anthropic"],
    request: { body: jsonContent(countRequestSchema, "Messages and tools") },
    responses: {
      200: jsonContent(countResponseSchema, "What /v1/messages would compute or find cached"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/v1/messages/count_tokens", async (c) => {
    const body = await readBody(c, countRequestSchema)
    const context = await useAnthropicModel(root, c, body.model)
    return c.json({ input_tokens: promptOf(context, body).ids.length })
  })
}

interface Answer {
  readonly id: string
  readonly body: MessagesRequest
  readonly prompt: ChatPrompt
  readonly events: AsyncIterable<ChatEvent>
}

function envelope({ id, body }: Answer): Record<string, unknown> {
  return { id, type: "message", role: "assistant", model: body.model }
}

async function whole(answer: Answer): Promise<unknown> {
  const message: ChatMessage = { content: answer.prompt.prefix, reasoning: "", calls: [] }
  let end: ReturnType<typeof ending> | undefined
  for await (const event of answer.events) {
    if (event.type === "parts") addParts(message, event.parts)
    else end = ending(event)
  }
  const content: unknown[] = []
  if (message.reasoning !== "")
    content.push({ type: "thinking", thinking: message.reasoning, signature: "" })
  if (message.content !== "") content.push({ type: "text", text: message.content })
  for (const { id, name, arguments: args } of message.calls)
    content.push({ type: "tool_use", id: answer.prompt.callId(id), name, input: objectOf(args) })
  return { ...envelope(answer), content, ...end }
}

/** Arguments that are no JSON object are shown as they are. */
function objectOf(text: string): unknown {
  try {
    const value = JSON.parse(text) as unknown
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value
  } catch {
    // shown below
  }
  return { arguments: text }
}

function ending(event: ChatEvent & { type: "end" }): {
  stop_reason: string
  stop_sequence: string | null
  usage: Record<string, number>
} {
  const { finishReason, stopString, usage } = event
  const reasons = { stop: "end_turn", length: "max_tokens", tool_calls: "tool_use" }
  return {
    stop_reason: stopString === undefined ? reasons[finishReason] : "stop_sequence",
    stop_sequence: stopString ?? null,
    usage: usageOf(usage),
  }
}

function usageOf({
  promptTokens,
  cachedTokens,
  completionTokens,
}: ChoiceUsage): Record<string, number> {
  return {
    input_tokens: promptTokens - cachedTokens,
    output_tokens: completionTokens,
    cache_read_input_tokens: cachedTokens,
    cache_creation_input_tokens: 0,
  }
}

/** A part's block as it begins, and what adds the part to it. */
function blockOf(part: AnswerPart, prompt: ChatPrompt): { start: unknown; delta: unknown } {
  switch (part.type) {
    case "reasoning":
      return {
        start: { type: "thinking", thinking: "", signature: "" },
        delta: { type: "thinking_delta", thinking: part.text },
      }
    case "content":
      return { start: { type: "text", text: "" }, delta: { type: "text_delta", text: part.text } }
    case "call":
      return {
        start: { type: "tool_use", id: prompt.callId(part.id), name: part.name, input: {} },
        delta: undefined,
      }
    case "arguments":
      return { start: undefined, delta: { type: "input_json_delta", partial_json: part.text } }
  }
}

/** message_start, blocks one after the other, message_delta, message_stop. */
async function* blocks(answer: Answer): AsyncGenerator<NamedEvent> {
  const event = (type: string, data: Record<string, unknown> = {}): NamedEvent => ({
    event: type,
    data: { type, ...data },
  })
  // how much of it is cached is known with the first token only
  const usage = usageOf({
    promptTokens: answer.prompt.ids.length,
    cachedTokens: 0,
    completionTokens: 0,
  })
  const message = {
    ...envelope(answer),
    content: [],
    stop_reason: null,
    stop_sequence: null,
    usage,
  }
  yield event("message_start", { message })
  yield event("ping")
  let index = -1
  let open: AnswerPart["type"] | undefined
  const parts = async function* (): AsyncGenerator<AnswerPart | (ChatEvent & { type: "end" })> {
    if (answer.prompt.prefix !== "") yield { type: "content", text: answer.prompt.prefix }
    for await (const one of answer.events) {
      if (one.type === "parts") yield* one.parts
      else yield one
    }
  }
  for await (const part of parts()) {
    if (part.type === "end") {
      if (open !== undefined) yield event("content_block_stop", { index })
      const { usage: used, ...delta } = ending(part)
      yield event("message_delta", { delta, usage: used })
      yield event("message_stop")
      return
    }
    const { start, delta } = blockOf(part, answer.prompt)
    const continues = part.type === open && part.type !== "call"
    if (start !== undefined && !continues) {
      if (open !== undefined) yield event("content_block_stop", { index })
      index++
      yield event("content_block_start", { index, content_block: start })
      open = part.type
    }
    if (delta !== undefined) yield event("content_block_delta", { index, delta })
  }
}
