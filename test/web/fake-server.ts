import index from "../../src/web/index.html"
import { FakeMachine } from "./fake-machine.ts"

export interface Reply {
  chunks: readonly string[]
  /** Pause before each chunk. */
  delayMs?: number
  finish?: "stop" | "length" | "tool_calls"
  /** Tools that the answer calls after its text; the arguments come in pieces. */
  calls?: readonly { id: string; name: string; arguments: readonly string[] }[]
  /** Close the stream after this many chunks, without a finish reason. */
  cutAfter?: number
  /** Answer with this status and error message instead of a stream. */
  status?: number
  error?: string
  headers?: Record<string, string>
  promptTokens?: number
}

export interface ChatCall {
  body: {
    model?: string
    stream: boolean
    messages: { role: string; content: string; [key: string]: unknown }[]
    [key: string]: unknown
  }
  authorization: string | null
  isAborted: boolean
}

/** A server with the page and an OpenAI-shaped endpoint that answers as the test says. */
export interface FakeServer {
  url: string
  calls: ChatCall[]
  /** Decides the answer to the n-th call (from 0). */
  reply: (call: ChatCall, index: number) => Reply
  /** When set, the API asks for this key. */
  apiKey: string
  contextLength: number
  isHealthy: boolean
  /** Its models beside the one that /v1/models always names, and what they run on. */
  machine: FakeMachine
  stop(): Promise<void>
}

export function startFakeServer(): FakeServer {
  const fake: FakeServer = {
    url: "",
    calls: [],
    reply: () => ({ chunks: ["Hello", " there", "."] }),
    apiKey: "",
    contextLength: 8192,
    isHealthy: true,
    machine: new FakeMachine(),
    stop: () => server.stop(true),
  }
  const isAllowed = (request: Request): boolean =>
    fake.apiKey === "" || request.headers.get("authorization") === `Bearer ${fake.apiKey}`
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 60,
    development: false,
    routes: {
      "/": index,
      "/health": () => new Response("{}", { status: fake.isHealthy ? 200 : 503 }),
      "/v1/models": (request) => {
        if (!isAllowed(request)) return unauthorized()
        return Response.json({
          object: "list",
          data: [
            { id: "SmolLM2-135M-Instruct", context_length: fake.contextLength },
            ...fake.machine.names(),
          ],
        })
      },
      "/v1/chat/completions": {
        POST: async (request) => {
          if (!isAllowed(request)) return unauthorized()
          const call: ChatCall = {
            body: (await request.json()) as ChatCall["body"],
            authorization: request.headers.get("authorization"),
            isAborted: false,
          }
          const number = fake.calls.push(call) - 1
          return chatResponse(request, call, fake.reply(call, number))
        },
      },
    },
    fetch: (request) =>
      isAllowed(request) ? fake.machine.answer(request) : Promise.resolve(unauthorized()),
  })
  fake.url = `http://127.0.0.1:${server.port}`
  return fake
}

function unauthorized(): Response {
  return Response.json({ error: { message: "The API key is missing or wrong." } }, { status: 401 })
}

function chatResponse(request: Request, call: ChatCall, reply: Reply): Response {
  if (reply.status !== undefined)
    return Response.json(
      { error: { message: reply.error ?? "no" } },
      { status: reply.status, headers: reply.headers ?? {} },
    )
  request.signal.addEventListener("abort", () => (call.isAborted = true))
  const encoder = new TextEncoder()
  const chunk = (data: object): Uint8Array<ArrayBuffer> =>
    encoder.encode(`data: ${JSON.stringify({ object: "chat.completion.chunk", ...data })}\n\n`)
  const promptTokens = reply.promptTokens ?? 42
  const options = call.body["stream_options"] as Record<string, unknown> | undefined
  const tellsUsage = options?.["continuous_usage_stats"] === true
  async function* stream(): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    yield encoder.encode(": heartbeat\n\n")
    const start = performance.now()
    let sent = 0
    for (const text of reply.chunks) {
      if (sent === reply.cutAfter) return
      if (reply.delayMs !== undefined) await Bun.sleep(reply.delayMs)
      if (call.isAborted) return
      sent++
      yield chunk({
        choices: [{ index: 0, delta: { content: text }, finish_reason: null }],
        ...(tellsUsage ? { usage: { prompt_tokens: promptTokens, completion_tokens: sent } } : {}),
      })
    }
    if (sent === reply.cutAfter) return
    for (const [index, call] of (reply.calls ?? []).entries()) {
      const delta = (tool: object): Uint8Array<ArrayBuffer> =>
        chunk({ choices: [{ index: 0, delta: { tool_calls: [{ index, ...tool }] } }] })
      yield delta({ id: call.id, type: "function", function: { name: call.name, arguments: "" } })
      for (const text of call.arguments) yield delta({ function: { arguments: text } })
    }
    yield chunk({ choices: [{ index: 0, delta: {}, finish_reason: reply.finish ?? "stop" }] })
    const ms = performance.now() - start
    yield chunk({
      choices: [],
      usage: {
        prompt_tokens: promptTokens,
        completion_tokens: sent,
        total_tokens: promptTokens + sent,
      },
      timings: {
        prompt_n: promptTokens - 30,
        prompt_ms: 120,
        prompt_per_second: 100,
        predicted_n: sent,
        predicted_ms: ms,
        predicted_per_second: 131.2,
        cache_n: 30,
      },
    })
    yield encoder.encode("data: [DONE]\n\n")
  }
  return new Response(toStream(stream()), {
    headers: { "content-type": "text/event-stream" },
  })
}

function toStream(events: AsyncGenerator<Uint8Array>): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await events.next()
      if (done === true) controller.close()
      else controller.enqueue(value)
    },
    async cancel() {
      await events.return(undefined)
    },
  })
}

/** A text cut into pieces of about a token. */
export function tokens(text: string): string[] {
  return text.match(/\s*\S{1,5}|\s+$/g) ?? []
}
