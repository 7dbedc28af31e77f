import { RequestError } from "../../errors.ts"
import { openaiErrorBody } from "../api-error.ts"
import { type ChatOptions, type ChatPrompt, chatPrompt, startAnswer, type Tool } from "../chat.ts"
import {
  type App,
  checkModel,
  document,
  jsonContent,
  type RequestContext,
  type ServerContext,
  streamOptions,
} from "../context.ts"
import { randomId } from "../ids.ts"
import { readBody } from "../request.ts"
import { eventResponse } from "../stream.ts"
import { type AnswerFormat, jsonFormat } from "../tools/answer-grammar.ts"
import type { TemplateMessage } from "../types.ts"
import { templateToolCall } from "./messages.ts"
import type { ResponseStore } from "./response-store.ts"
import { type ResponseBase, ResponseWriter } from "./response-writer.ts"
import {
  deletedSchema,
  type InputItem,
  itemListSchema,
  type ResponseRequest,
  responseRequestSchema,
  responseSchema,
} from "./responses-schema.ts"
import { errorSchema } from "./schema.ts"

/** The Responses API: create, stream, read, delete and continue responses. */
export function addResponses(app: App, context: ServerContext, store: ResponseStore): void {
  const wrong = { "4XX": jsonContent(errorSchema, "Why the request is refused") }
  document(app, {
    method: "post",
    path: "/v1/responses",
    summary: "Answer input items, or continue a response",
    tags: ["OpenAI"],
    request: { body: jsonContent(responseRequestSchema, "Input and sampling") },
    responses: { 200: jsonContent(responseSchema, "The response, or its events"), ...wrong },
  })
  app.post("/v1/responses", async (c) => {
    const body = await readBody(c, responseRequestSchema)
    checkModel(context, body.model)
    return respond(context, store, c, body)
  })

  const known = (id: string): NonNullable<ReturnType<ResponseStore["get"]>> => {
    const stored = store.get(id)
    if (stored !== undefined) return stored
    throw new RequestError(404, `response "${id}" not found`, { code: "not_found", param: "id" })
  }
  document(app, {
    method: "get",
    path: "/v1/responses/{id}",
    summary: "A stored response",
    tags: ["OpenAI"],
    responses: { 200: jsonContent(responseSchema, "The response"), ...wrong },
  })
  app.get("/v1/responses/:id", (c) => Response.json(known(c.req.param("id")).response))

  document(app, {
    method: "delete",
    path: "/v1/responses/{id}",
    summary: "Forget a response",
    tags: ["OpenAI"],
    responses: { 200: jsonContent(deletedSchema, "It is gone"), ...wrong },
  })
  app.delete("/v1/responses/:id", (c) => {
    const id = c.req.param("id")
    known(id)
    store.delete(id)
    return Response.json({ id, object: "response", deleted: true })
  })

  document(app, {
    method: "get",
    path: "/v1/responses/{id}/input_items",
    summary: "The input of a stored response",
    tags: ["OpenAI"],
    responses: {
      200: jsonContent(itemListSchema, "Newest first, or with order=asc oldest"),
      ...wrong,
    },
  })
  app.get("/v1/responses/:id/input_items", (c) => {
    const { items, inputStart, inputCount } = known(c.req.param("id"))
    const own = items.slice(inputStart, inputStart + inputCount)
    const data = c.req.query("order") === "asc" ? own : own.toReversed()
    const idOf = (item: unknown): string | null => (item as { id?: string } | undefined)?.id ?? null
    return Response.json({
      object: "list",
      data,
      first_id: idOf(data[0]),
      last_id: idOf(data.at(-1)),
      has_more: false,
    })
  })
}

async function respond(
  context: ServerContext,
  store: ResponseStore,
  c: RequestContext,
  body: ResponseRequest,
): Promise<Response> {
  const { config } = context
  const history = historyOf(store, body.previous_response_id)
  const input = inputItems(body.input)
  const items = [...history, ...input]
  const messages = joined(items.flatMap(templateMessages))
  // instructions are this request's alone: they are not part of what is continued
  if (body.instructions) messages.unshift({ role: "system", content: body.instructions })
  const prompt = chatPrompt(context, messages, chatOptions(body, config.reasoningFormat))
  const { generation, events: answer } = startAnswer(context, c, prompt, {
    sampling: { temperature: body.temperature, topP: body.top_p },
    maxTokens: body.max_output_tokens ?? config.defaults.maxTokens,
    param: "input",
    oneCall: body.parallel_tool_calls === false,
  })
  const base = baseOf(context, body)
  const writer = new ResponseWriter(base, prompt)
  const finish = (response: { readonly output: readonly unknown[] }): void => {
    if (body.store === false) return
    const all = [...items, ...response.output]
    store.put(base.id, {
      response,
      items: all,
      inputStart: history.length,
      inputCount: input.length,
    })
  }
  const events = writer.events(answer, finish)
  if (body.stream === true)
    return eventResponse(events, streamOptions(context, c, generation, openaiErrorBody))
  for await (const _ of events);
  return c.json(writer.response)
}

function historyOf(store: ResponseStore, id: string | null | undefined): readonly InputItem[] {
  if (!id) return []
  const stored = store.get(id)
  if (stored === undefined)
    throw new RequestError(404, `previous_response_id ${id}: there is no such response`, {
      code: "previous_response_not_found",
      param: "previous_response_id",
    })
  return stored.items as readonly InputItem[]
}

function inputItems(input: ResponseRequest["input"]): InputItem[] {
  const items: InputItem[] =
    typeof input === "string"
      ? [{ type: "message", role: "user", content: [{ type: "input_text", text: input }] }]
      : input
  return items.map((item) => {
    const known = { ...item, id: item["id"] ?? `msg_${randomId()}` }
    return "role" in known ? { ...known, type: "message" } : known
  }) as InputItem[]
}

/** Items as templates have them: a call belongs to the assistant's message before it. */
function templateMessages(item: InputItem): TemplateMessage[] {
  switch (item.type) {
    case "function_call": {
      const { call_id: id, name, arguments: args } = item
      return [
        {
          role: "assistant",
          content: "",
          tool_calls: [templateToolCall({ id, function: { name, arguments: args } })],
        },
      ]
    }
    case "function_call_output":
      return [{ role: "tool", content: textOf(item.output), tool_call_id: item.call_id }]
    // what was thought is not said again
    case "reasoning":
      return []
    default:
      return [
        { role: item.role === "developer" ? "system" : item.role, content: textOf(item.content) },
      ]
  }
}

/** Text and calls of one turn are one message in templates. */
function joined(messages: readonly TemplateMessage[]): TemplateMessage[] {
  const out: TemplateMessage[] = []
  for (const message of messages) {
    const last = out.at(-1)
    if (last?.role !== "assistant" || message.role !== "assistant" || !message.tool_calls) {
      out.push(message)
      continue
    }
    const calls = [...(last.tool_calls ?? []), ...message.tool_calls]
    out[out.length - 1] = { ...last, tool_calls: calls }
  }
  return out
}

function textOf(
  content: string | readonly { text?: string | undefined; refusal?: string | undefined }[],
): string {
  if (typeof content === "string") return content
  return content.map(({ text, refusal }) => text ?? refusal ?? "").join("\n")
}

function chatOptions(body: ResponseRequest, reasoning: "auto" | "none"): ChatOptions {
  const { tool_choice: choice } = body
  const tools = (body.tools ?? []).map(({ type, ...described }): Tool => ({
    type,
    function: described as Tool["function"],
  }))
  return {
    tools: choice === "none" ? [] : tools,
    ...(choice === "required" ? { toolChoice: "required" } : {}),
    ...(typeof choice === "object" && choice !== null ? { toolChoice: { name: choice.name } } : {}),
    strictTools: body.tools?.some((tool) => tool["strict"] === true) === true,
    content: contentOf(body),
    ...(body.reasoning?.effort ? { vars: { reasoning_effort: body.reasoning.effort } } : {}),
    reasoning,
  }
}

function contentOf({ text }: ResponseRequest): AnswerFormat | undefined {
  if (text?.format?.type === "json_object") return jsonFormat({ type: "object" })
  return text?.format?.type === "json_schema" ? jsonFormat(text.format.schema) : undefined
}

function baseOf(context: ServerContext, body: ResponseRequest): ResponseBase {
  const { defaults } = context.config
  return {
    id: `resp_${randomId()}`,
    object: "response",
    created_at: Math.floor(Date.now() / 1000),
    error: null,
    incomplete_details: null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    metadata: body.metadata ?? {},
    model: context.model.name,
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: body.previous_response_id ?? null,
    reasoning: { effort: body.reasoning?.effort ?? null, summary: null },
    service_tier: "default",
    store: body.store ?? true,
    temperature: body.temperature ?? defaults.temperature,
    text: { format: body.text?.format ?? { type: "text" } },
    tool_choice: body.tool_choice ?? "auto",
    tools: body.tools ?? [],
    top_p: body.top_p ?? defaults.topP,
    truncation: "disabled",
    user: null,
  }
}
