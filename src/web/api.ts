import type { RequestMessage } from "./conversation.ts"
import { t } from "./language.ts"
import { parseSchema, parseTools, SAMPLING_FIELDS } from "./settings.ts"
import { readEvents } from "./sse.ts"
import type { Failure, Model, Settings, Thinking } from "./types.ts"

/** Token counts and speeds as the server gives them; what it leaves out stays undefined. */
export interface Usage {
  promptTokens?: number
  answerTokens?: number
  cachedTokens?: number
  tokensPerSecond?: number
}

export type ChatEvent =
  | { type: "text"; text: string }
  | { type: "reasoning"; text: string }
  | { type: "call"; index: number; id?: string; name?: string; arguments: string }
  | { type: "usage"; usage: Usage }
  | { type: "end"; reason: "done" | "length" }
  | { type: "failure"; failure: Failure }

export interface ChatRequest {
  messages: RequestMessage[]
  /** The last message is an answer that goes on. */
  continues?: boolean
  settings: Settings
  model: string | undefined
  apiKey: string
  signal: AbortSignal
}

/** Results of the small questions: the value, or why there is none. */
export type Answer<T> = { value: T } | { failure: Failure }

/** The body of POST /v1/chat/completions; settings that are unset are left out, so that the server's own apply. */
export function chatBody(
  request: Pick<ChatRequest, "messages" | "continues" | "settings" | "model">,
): object {
  const sampling: Record<string, number> = {}
  for (const { key } of SAMPLING_FIELDS) {
    const value = request.settings[key]
    if (value !== null) sampling[key] = value
  }
  const { samplers, dry_sequence_breakers, thinking } = request.settings
  const tools = parseTools(request.settings.tools)
  const schema = parseSchema(request.settings.schema)
  return {
    ...(request.model === undefined ? {} : { model: request.model }),
    messages: request.messages,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    ...sampling,
    ...(samplers === null ? {} : { samplers }),
    ...(dry_sequence_breakers === null ? {} : { dry_sequence_breakers }),
    ...(thinking === "" ? {} : thinkingFields(thinking)),
    ...(typeof tools === "object" ? { tools } : {}),
    ...(typeof schema === "object"
      ? {
          response_format: {
            type: "json_schema",
            json_schema: { name: "answer", schema, strict: true },
          },
        }
      : {}),
    ...(request.continues === true
      ? { continue_final_message: true, add_generation_prompt: false }
      : {}),
  }
}

/** Templates read the one or the other; what a template does not know changes nothing. */
function thinkingFields(thinking: Exclude<Thinking, "">): object {
  const isOn = thinking !== "off"
  const effort = isOn && thinking !== "on" ? { reasoning_effort: thinking } : {}
  return { chat_template_kwargs: { enable_thinking: isOn }, ...effort }
}

/**
 * Streams one answer. Always ends with exactly one `end` or `failure`, except when `signal` aborts: then it just stops,
 * which closes the connection and so tells the server to stop too.
 */
export async function* streamChat(request: ChatRequest): AsyncGenerator<ChatEvent> {
  let response: Response
  try {
    response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...authorization(request.apiKey) },
      body: JSON.stringify(chatBody(request)),
      signal: request.signal,
    })
  } catch {
    if (!request.signal.aborted) yield fail("connection", t("unreachable"))
    return
  }
  if (!response.ok || response.body === null) {
    yield { type: "failure", failure: await responseFailure(response) }
    return
  }
  try {
    yield* chatEvents(readEvents(response.body))
  } catch {
    if (!request.signal.aborted) yield fail("connection", t("lost"))
  }
}

/** Turns the data of chat completion events into what the page needs. */
export async function* chatEvents(events: AsyncIterable<string>): AsyncGenerator<ChatEvent> {
  let reason: "done" | "length" | undefined
  for await (const data of events) {
    if (data === "[DONE]") {
      yield { type: "end", reason: reason ?? "done" }
      return
    }
    const chunk = asRecord(parseJson(data))
    if (chunk === undefined) {
      yield fail("server", t("notAChunk"))
      return
    }
    if (chunk["error"] !== undefined) {
      yield fail("server", errorMessage(chunk) ?? t("serverError"))
      return
    }
    const choice = asRecord(Array.isArray(chunk["choices"]) ? chunk["choices"][0] : undefined)
    const delta = asRecord(choice?.["delta"])
    const thought = delta?.["reasoning_content"] ?? delta?.["reasoning"]
    if (typeof thought === "string" && thought !== "") yield { type: "reasoning", text: thought }
    const text = delta?.["content"]
    if (typeof text === "string" && text !== "") yield { type: "text", text }
    if (Array.isArray(delta?.["tool_calls"]))
      for (const call of delta["tool_calls"]) yield* callEvent(asRecord(call))
    const finish = choice?.["finish_reason"]
    if (typeof finish === "string") reason = finish === "length" ? "length" : "done"
    const usage = readUsage(chunk)
    if (usage !== undefined) yield { type: "usage", usage }
  }
  // A stream that ends after its finish reason is whole even without [DONE].
  yield reason === undefined ? fail("connection", t("lost")) : { type: "end", reason }
}

function* callEvent(call: Record<string, unknown> | undefined): Generator<ChatEvent> {
  const named = asRecord(call?.["function"])
  if (call === undefined || named === undefined) return
  const { id } = call
  const { name, arguments: text } = named
  yield {
    type: "call",
    index: asNumber(call["index"]) ?? 0,
    ...(typeof id === "string" && id !== "" ? { id } : {}),
    ...(typeof name === "string" && name !== "" ? { name } : {}),
    arguments: typeof text === "string" ? text : "",
  }
}

function readUsage(chunk: Record<string, unknown>): Usage | undefined {
  const usage = asRecord(chunk["usage"])
  const timings = asRecord(chunk["timings"])
  if (usage === undefined && timings === undefined) return undefined
  const cached = asRecord(usage?.["prompt_tokens_details"])?.["cached_tokens"]
  const cacheN = asNumber(timings?.["cache_n"])
  const promptN = asNumber(timings?.["prompt_n"])
  return pruned({
    promptTokens:
      asNumber(usage?.["prompt_tokens"]) ??
      (promptN === undefined ? undefined : promptN + (cacheN ?? 0)),
    answerTokens: asNumber(usage?.["completion_tokens"]) ?? asNumber(timings?.["predicted_n"]),
    cachedTokens: cacheN ?? asNumber(cached),
    tokensPerSecond: asNumber(timings?.["predicted_per_second"]),
  })
}

/** GET /v1/models. The context length is where the common servers put it. */
export async function fetchModels(apiKey: string): Promise<Answer<Model[]>> {
  const answer = await getJson("/v1/models", apiKey)
  if ("failure" in answer) return answer
  const list = asRecord(answer.value)?.["data"]
  if (!Array.isArray(list)) return { failure: { kind: "server", message: t("noModelList") } }
  const models = list.flatMap((item: unknown): Model[] => {
    const record = asRecord(item)
    const id = record?.["id"]
    if (record === undefined || typeof id !== "string") return []
    const contextLength =
      asNumber(record["context_length"]) ??
      asNumber(record["max_model_len"]) ??
      asNumber(asRecord(record["meta"])?.["n_ctx"])
    const status = asRecord(record["status"])?.["value"]
    const isLoaded = typeof status === "string" ? status === "loaded" : undefined
    return [{ id, contextLength, isLoaded }]
  })
  return { value: models }
}

/** GET /health: "online", "loading" while the server answers 503, "offline" when nobody answers. */
export async function fetchHealth(): Promise<"online" | "loading" | "offline"> {
  try {
    const response = await fetch("/health", {
      signal: AbortSignal.timeout(5000),
      cache: "no-store",
    })
    return response.ok ? "online" : response.status === 503 ? "loading" : "offline"
  } catch {
    return "offline"
  }
}

export async function getJson(path: string, apiKey: string): Promise<Answer<unknown>> {
  try {
    const response = await fetch(path, {
      headers: authorization(apiKey),
      signal: AbortSignal.timeout(10_000),
    })
    if (!response.ok) return { failure: await responseFailure(response) }
    return { value: (await response.json()) as unknown }
  } catch {
    return { failure: { kind: "connection", message: t("unreachable") } }
  }
}

/** What a non-2xx response means to the user. */
export async function responseFailure(response: Response): Promise<Failure> {
  const text = await response.text().catch(() => "")
  const said = errorMessage(asRecord(parseJson(text)))
  if (response.status === 401) return { kind: "auth", message: said ?? t("asksForKey") }
  if (response.status === 429 || response.status === 503) {
    const seconds = Number(response.headers.get("retry-after") ?? Number.NaN)
    return {
      kind: "busy",
      message: said ?? t("busy"),
      ...(Number.isFinite(seconds) && seconds > 0 ? { retryAfter: Math.ceil(seconds) } : {}),
    }
  }
  const kind = response.status < 500 ? "request" : "server"
  return { kind, message: said ?? t("failedWith", { status: response.status }) }
}

export function errorMessage(body: Record<string, unknown> | undefined): string | undefined {
  const error = body?.["error"]
  const message = typeof error === "string" ? error : asRecord(error)?.["message"]
  return typeof message === "string" && message !== "" ? message : undefined
}

function fail(kind: Failure["kind"], message: string): ChatEvent {
  return { type: "failure", failure: { kind, message } }
}

export function authorization(apiKey: string): Record<string, string> {
  return apiKey === "" ? {} : { authorization: `Bearer ${apiKey}` }
}

export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown
  } catch {
    return undefined
  }
}

export function asRecord(value: unknown): Record<string, unknown> | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : undefined
}

export function asNumber(value: unknown): number | undefined {
  return typeof value === "number" && Number.isFinite(value) ? value : undefined
}

function pruned(usage: { [K in keyof Usage]: Usage[K] | undefined }): Usage {
  const entries = Object.entries(usage).filter(([, value]) => value !== undefined)
  return Object.fromEntries(entries) as Usage
}
