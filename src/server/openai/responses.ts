import { RequestError } from "../../errors.ts"
import { openaiErrorBody } from "../api-error.ts"
import { chatPrompt, startAnswer } from "../chat.ts"
import {
  aborting,
  type App,
  document,
  jsonContent,
  type RequestContext,
  type ServerContext,
  type ServerRoot,
  streamOptions,
  useModel,
} from "../context.ts"
import { asRequestError } from "../generate.ts"
import { randomId } from "../ids.ts"
import { readBody } from "../request.ts"
import { eventResponse, type NamedEvent } from "../stream.ts"
import { BackgroundRun, BackgroundRuns } from "./background-runs.ts"
import type { ConversationStore } from "./conversation-store.ts"
import { knownConversation } from "./conversations.ts"
import { itemListSchema, itemPage } from "./item-page.ts"
import type { ResponseStore, StoredResponse } from "./response-store.ts"
import { responseTools } from "./response-tools.ts"
import { type FinishedResponse, type ResponseBase, ResponseWriter } from "./response-writer.ts"
import { inputItems, type KnownItem, responseMessages, responseOptions } from "./responses-input.ts"
import {
  CLIENT_TOOLS,
  deletedSchema,
  type ResponseRequest,
  responseRequestSchema,
  responseSchema,
} from "./responses-schema.ts"
import { errorSchema } from "./schema.ts"

/** Where responses and what they continue are kept. */
export interface ResponseStores {
  readonly responses: ResponseStore
  readonly conversations: ConversationStore
}

/** The Responses API: create, stream, read, cancel, delete and continue responses. */
export function addResponses(app: App, root: ServerRoot, stores: ResponseStores): void {
  const runs = new BackgroundRuns()
  const wrong = { "4XX": jsonContent(errorSchema, "Why the request is refused") }
  const one = { 200: jsonContent(responseSchema, "The response, or its events"), ...wrong }
  const tags = ["OpenAI"]
  document(app, {
    method: "post",
    path: "/v1/responses",
    summary: "Answer input items, or continue a response or a conversation",
    tags,
    request: { body: jsonContent(responseRequestSchema, "Input and sampling") },
    responses: one,
  })
  app.post("/v1/responses", async (c) => {
    const body = await readBody(c, responseRequestSchema)
    const context = await useModel(root, c, body.model)
    return respond(context, stores, runs, c, body)
  })

  const known = (id: string): StoredResponse => {
    const stored = stores.responses.get(id)
    if (stored === undefined)
      throw new RequestError(404, `response "${id}" not found`, { code: "not_found", param: "id" })
    if (stored.response.status !== "in_progress" || runs.get(id) !== undefined) return stored
    const error = { code: "server_error", message: "the server ended while it was computed" }
    return { ...stored, response: { ...stored.response, status: "failed", error } }
  }
  document(app, {
    method: "get",
    path: "/v1/responses/{id}",
    summary: "A stored response; stream=true follows one that is computed in the background",
    tags,
    responses: one,
  })
  app.get("/v1/responses/:id", (c) => {
    const id = c.req.param("id")
    const { response } = known(id)
    if (c.req.query("stream") !== "true") return Response.json(response)
    const start = startingAfter(c)
    return eventResponse(
      runs.get(id)?.events(start) ?? lastEvent(response, start),
      streamOptions(root, c, openaiErrorBody, leave),
    )
  })

  document(app, {
    method: "post",
    path: "/v1/responses/{id}/cancel",
    summary: "End a response that is computed in the background",
    tags,
    responses: one,
  })
  app.post("/v1/responses/:id/cancel", async (c) => {
    const id = c.req.param("id")
    if (known(id).response["background"] !== true)
      throw new RequestError(400, `response "${id}": only background responses can be cancelled`, {
        code: "invalid_value",
        param: "id",
      })
    const run = runs.get(id)
    run?.cancel()
    await run?.done()
    return Response.json(known(id).response)
  })

  document(app, {
    method: "delete",
    path: "/v1/responses/{id}",
    summary: "Forget a response",
    tags,
    responses: { 200: jsonContent(deletedSchema, "It is gone"), ...wrong },
  })
  app.delete("/v1/responses/:id", async (c) => {
    const id = c.req.param("id")
    known(id)
    runs.get(id)?.cancel()
    await runs.get(id)?.done()
    stores.responses.delete(id)
    return Response.json({ id, object: "response", deleted: true })
  })

  document(app, {
    method: "get",
    path: "/v1/responses/{id}/input_items",
    summary: "The input of a stored response",
    tags,
    responses: {
      200: jsonContent(itemListSchema, "Newest first, or with order=asc oldest"),
      ...wrong,
    },
  })
  app.get("/v1/responses/:id/input_items", (c) => {
    const { items, inputStart, inputCount } = known(c.req.param("id"))
    const own = items.slice(inputStart, inputStart + inputCount)
    return Response.json(itemPage(c, own as KnownItem[]))
  })
}

async function respond(
  context: ServerContext,
  stores: ResponseStores,
  runs: BackgroundRuns,
  c: RequestContext,
  body: ResponseRequest,
): Promise<Response> {
  const { config } = context
  const isBackground = body.background === true
  if (isBackground && body.store === false)
    throw new RequestError(400, "background true: the response must be stored to be read", {
      code: "invalid_value",
      param: "background",
    })
  const conversation = conversationOf(stores, body)
  const history =
    conversation === undefined
      ? historyOf(stores.responses, body.previous_response_id)
      : (stores.conversations.items(conversation) as readonly KnownItem[])
  const input = inputItems(
    body.input,
    (id) => history.find((item) => item.id === id) ?? stores.responses.item(id),
  )
  const items = [...history, ...input]
  const messages = responseMessages(items, body.instructions)
  const tools = responseTools(body.tools ?? [])
  const options = responseOptions(body, tools, config.reasoningFormat)
  const prompt = chatPrompt(context, messages, options)
  const { generation, events: answer } = await startAnswer(context, c, prompt, {
    sampling: { temperature: body.temperature, topP: body.top_p },
    maxTokens: body.max_output_tokens ?? config.defaults.maxTokens,
    param: "input",
    oneCall: body.parallel_tool_calls === false,
    ...(isBackground ? { outlivesClient: true } : {}),
  })
  const base = baseOf(context, body, conversation)
  const writer = new ResponseWriter(base, prompt, tools.known)
  const keep = (response: FinishedResponse): void => {
    const { output } = response
    const stored = { inputStart: history.length, inputCount: input.length }
    if (body.store !== false)
      stores.responses.put(base.id, { response, items: [...items, ...output], ...stored })
    if (conversation !== undefined && response.status !== "in_progress")
      stores.conversations.add(conversation, [...input, ...(output as KnownItem[])])
  }
  if (isBackground) {
    const run = new BackgroundRun(aborting(generation))
    const begun = writer.begun()
    keep(begun)
    runs.add(base.id, run)
    run
      .follow(writer.events(answer, keep, () => run.cancelled))
      .catch((error: unknown) => context.report(asRequestError(error), c.get("requestId")))
    if (body.stream === true)
      return eventResponse(run.events(), streamOptions(context, c, openaiErrorBody, leave))
    return c.json(begun)
  }
  // what a client did not wait for, or what failed, is not kept
  const events = writer.events(answer, (response) => {
    if (response.status !== "failed") keep(response)
  })
  if (body.stream === true)
    return eventResponse(events, streamOptions(context, c, openaiErrorBody, aborting(generation)))
  for await (const _ of events);
  return c.json(writer.response)
}

/** Readers of a background response may go; it goes on. */
const leave = (): void => {}

/** The number of the first event that is asked for. */
function startingAfter(c: RequestContext): number {
  const given = c.req.query("starting_after")
  if (given === undefined) return 0
  if (/^\d{1,9}$/.test(given)) return Number(given) + 1
  throw new RequestError(400, `starting_after ${given}: expected an event's sequence_number`, {
    code: "invalid_value",
    param: "starting_after",
  })
}

/** What is left to say of a response whose events are gone. */
async function* lastEvent(
  response: StoredResponse["response"],
  sequenceNumber: number,
): AsyncGenerator<NamedEvent> {
  const type = `response.${response.status ?? "completed"}`
  yield { event: type, data: { type, sequence_number: sequenceNumber, response } }
}

function conversationOf(stores: ResponseStores, body: ResponseRequest): string | undefined {
  const { conversation } = body
  if (conversation === null || conversation === undefined) return undefined
  if (body.previous_response_id)
    throw new RequestError(400, "conversation: it cannot be given with previous_response_id", {
      code: "invalid_value",
      param: "conversation",
    })
  const id = typeof conversation === "string" ? conversation : conversation.id
  return knownConversation(stores.conversations, id).id
}

function historyOf(store: ResponseStore, id: string | null | undefined): readonly KnownItem[] {
  if (!id) return []
  const stored = store.get(id)
  if (stored === undefined)
    throw new RequestError(404, `previous_response_id ${id}: there is no such response`, {
      code: "previous_response_not_found",
      param: "previous_response_id",
    })
  if (stored.response.status === "in_progress")
    throw new RequestError(409, `previous_response_id ${id}: it is still computed`, {
      code: "response_in_progress",
      param: "previous_response_id",
    })
  return stored.items as readonly KnownItem[]
}

function baseOf(
  context: ServerContext,
  body: ResponseRequest,
  conversation: string | undefined,
): ResponseBase {
  const { defaults } = context.config
  return {
    id: `resp_${randomId()}`,
    object: "response",
    created_at: Math.floor(Date.now() / 1000),
    background: body.background ?? false,
    conversation: conversation === undefined ? null : { id: conversation },
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
    tools: (body.tools ?? []).filter(({ type }) => CLIENT_TOOLS.has(type)),
    top_p: body.top_p ?? defaults.topP,
    truncation: "disabled",
    user: null,
  }
}
