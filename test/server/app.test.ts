import { describe, expect, test } from "bun:test"
import { hostname } from "node:os"

import { KtError, RequestError } from "../../src/errors.ts"
import { Admission, Workload } from "../../src/server/admission.ts"
import { merge } from "../../src/server/merge.ts"
import { sseResponse } from "../../src/server/stream.ts"
import { at, json, testServer, until } from "./fakes.ts"

const hello = { model: "fake", messages: [{ role: "user", content: "hi" }] }
const CHAT = "/v1/chat/completions"

describe("keys", () => {
  const server = () => testServer({}, { apiKeys: ["one", "two"] })

  test("every route but /health and /ready asks for one", async () => {
    const { app, post } = server()
    for (const path of ["/health", "/ready"]) expect((await app.request(path)).status).toBe(200)
    for (const path of ["/v1/models", "/metrics", "/openapi.json", "/api/tags", "/", "/nowhere"]) {
      expect((await app.request(path)).status).toBe(401)
    }
    const refused = await post(CHAT, hello)
    expect(refused.status).toBe(401)
    expect(refused.headers.get("www-authenticate")).toBe("Bearer")
    expect(at(await json(refused), "error")).toMatchObject({
      type: "authentication_error",
      code: "invalid_api_key",
    })
    expect(Object.keys((await json(app.request("/api/tags"))) as object)).toEqual(["error"])
  })

  test("as Bearer or as x-api-key; others are refused", async () => {
    const { app } = server()
    const status = async (headers: Record<string, string>) =>
      (await app.request("/v1/models", { headers })).status
    expect(await status({ authorization: "Bearer one" })).toBe(200)
    expect(await status({ authorization: "bearer two" })).toBe(200)
    expect(await status({ "x-api-key": "two" })).toBe(200)
    expect(await status({ authorization: "Bearer three" })).toBe(401)
    expect(await status({ authorization: "Bearer one " + "x".repeat(1000) })).toBe(401)
    expect(await status({ authorization: "Basic one" })).toBe(401)
    expect(await status({ "x-api-key": "on" })).toBe(401)
  })
})

describe("web pages of other origins", () => {
  const page = { origin: "https://evil.example", host: "127.0.0.1:10002" }

  test("are refused unless allowed", async () => {
    const { post } = testServer()
    expect((await post(CHAT, hello, page)).status).toBe(403)
    for (const host of [
      "127.0.0.1:10002",
      "localhost:10002",
      "[::1]:10002",
      `${hostname().toLowerCase()}:1`,
    ]) {
      expect((await post(CHAT, hello, { origin: `http://${host}`, host })).status).toBe(200)
    }
    // A public name that points here would make any page the server's own.
    const rebound = { origin: "http://evil.example:10002", host: "evil.example:10002" }
    expect((await post(CHAT, hello, rebound)).status).toBe(403)
    expect((await post(CHAT, hello, { origin: "null", host: "127.0.0.1:10002" })).status).toBe(403)
    const open = testServer({}, { corsOrigins: ["https://evil.example"] })
    const answer = await open.post(CHAT, hello, page)
    expect(answer.status).toBe(200)
    expect(answer.headers.get("access-control-allow-origin")).toBe("https://evil.example")
  })

  test("preflight needs no key, the request does", async () => {
    const { app, post } = testServer({}, { corsOrigins: ["*"], apiKeys: ["k"] })
    const preflight = await app.request(CHAT, {
      method: "OPTIONS",
      headers: { ...page, "access-control-request-method": "POST" },
    })
    expect(preflight.status).toBe(204)
    expect(preflight.headers.get("access-control-allow-origin")).toBe("*")
    expect((await post(CHAT, hello, page)).status).toBe(401)
    // Errors carry the header too, or the page could not read them.
    expect((await post(CHAT, hello, page)).headers.get("access-control-allow-origin")).toBe("*")
  })
})

describe("limits", () => {
  test("a body larger than the limit is 413", async () => {
    const { post } = testServer({}, { bodyLimit: 100 })
    const long = { ...hello, user: "x".repeat(200) }
    const response = await post(CHAT, long)
    expect(response.status).toBe(413)
    expect(at(await json(response), "error", "code")).toBe("request_too_large")
    expect((await post("/api/chat", long)).status).toBe(413)
  })

  test("a full queue is 429 with retry-after, in each API's shape", async () => {
    const { app, post, client } = testServer(
      { then: "endless", delayMs: 2, maxBatchSize: 1 },
      { maxQueue: 1 },
    )
    const stream = { ...hello, stream: true }
    const running = [await post(CHAT, stream), await post(CHAT, stream)]
    await until(() => client.calls.length > 0)
    expect(app.admission.waiting).toBe(1)
    const full = await post(CHAT, hello)
    expect(full.status).toBe(429)
    expect(Number(full.headers.get("retry-after"))).toBeGreaterThanOrEqual(1)
    expect(at(await json(full), "error")).toMatchObject({
      type: "rate_limit_error",
      code: "queue_full",
    })
    const ollama = await post("/api/chat", hello)
    expect([ollama.status, Object.keys((await json(ollama)) as object)]).toEqual([429, ["error"]])

    for (const response of running) await response.body?.cancel()
    await until(() => app.admission.active === 0)
    expect((await post(CHAT, { ...hello, max_tokens: 1 })).status).toBe(200)
    // More at once than ever fit is the request's own fault.
    expect((await post(CHAT, { ...hello, n: 3 })).status).toBe(400)
  })

  test("a request may be given a time", async () => {
    const { post, client } = testServer({ then: "endless", delayMs: 2 }, { requestTimeoutMs: 30 })
    const response = await post(CHAT, hello)
    expect(response.status).toBe(504)
    expect(at(await json(response), "error", "code")).toBe("request_timeout")
    await until(() => client.calls[0]!.ended === "aborted")
  })

  test("while draining, new work is 503 and running work ends", async () => {
    const { app, post } = testServer({ delayMs: 1 })
    const running = await post(CHAT, { ...hello, stream: true })
    app.admission.drain()
    expect((await post(CHAT, hello)).status).toBe(503)
    expect((await app.request("/ready")).status).toBe(503)
    expect((await app.request("/health")).status).toBe(200)
    expect(await running.text()).toEndWith("data: [DONE]\n\n")
    await app.admission.idle()
  })
})

describe("a client that goes away", () => {
  test.each(["stream", "whole"])("%s: the sequence is aborted within one token", async (kind) => {
    const { app, client } = testServer({ then: "endless", delayMs: 2 })
    const gone = new AbortController()
    const pending = app.request(CHAT, {
      method: "POST",
      body: JSON.stringify({ ...hello, n: 2, stream: kind === "stream" }),
      signal: gone.signal,
    })
    const answer = Promise.resolve(pending).then(
      (response) => response.text(),
      () => "",
    )
    await until(() => client.calls.length === 2 && client.calls.every((call) => call.sent > 3))
    gone.abort()
    await until(() => client.running === 0)
    expect(client.calls.map((call) => call.ended)).toEqual(["aborted", "aborted"])
    expect(Math.max(...client.calls.map((call) => call.sentAfterAbort))).toBeLessThanOrEqual(1)
    expect(app.admission.active).toBe(0)
    await answer
  })

  test("a stream that is never read gives its place back", async () => {
    const { app, post } = testServer({ then: "endless", delayMs: 1 })
    const response = await post(CHAT, { ...hello, stream: true })
    expect(app.admission.active).toBe(1)
    await response.body?.cancel()
    expect(app.admission.active).toBe(0)
  })

  test("a slow reader does not pile up text", async () => {
    const { post, client } = testServer({ then: "endless" })
    const response = await post(CHAT, { ...hello, stream: true })
    await Bun.sleep(50)
    expect(client.calls[0]?.sent ?? 0).toBeLessThan(8)
    await response.body?.cancel()
  })
})

describe("streams", () => {
  const options = { errorBody: (e: RequestError) => ({ error: e.message }), onClose: () => {} }

  test("silence is filled with comments", async () => {
    async function* slow(): AsyncGenerator<unknown> {
      yield 1
      await Bun.sleep(60)
      yield 2
    }
    const text = await sseResponse(slow(), { ...options, heartbeatMs: 10 }).text()
    expect(text).toStartWith("data: 1\n\n: keep-alive\n\n")
    expect(text).toEndWith(": keep-alive\n\ndata: 2\n\ndata: [DONE]\n\n")
  })

  test("what is not ours to tell is an internal error", async () => {
    async function* failing(): AsyncGenerator<unknown> {
      yield 1
      throw new TypeError("secret")
    }
    const text = await sseResponse(failing(), { ...options, heartbeatMs: 0 }).text()
    expect(text).toBe('data: 1\n\ndata: {"error":"internal error"}\n\n')
  })
})

describe("merge", () => {
  async function* numbers(from: number, to: number, ms: number): AsyncGenerator<number> {
    for (let i = from; i < to; i++) {
      await Bun.sleep(ms)
      yield i
    }
  }

  test("gives all items, each source's in order", async () => {
    const seen: number[] = []
    for await (const n of merge([numbers(0, 40, 0), numbers(100, 120, 1)])) seen.push(n)
    expect(seen.filter((n) => n < 100)).toEqual(Array.from({ length: 40 }, (_, i) => i))
    expect(seen.filter((n) => n >= 100)).toEqual(Array.from({ length: 20 }, (_, i) => 100 + i))
  })

  test("lets no source run far ahead of the reader", async () => {
    let made = 0
    async function* eager(): AsyncGenerator<number> {
      while (made < 5000) yield made++
    }
    const merged = merge([eager(), eager()])
    await merged.next()
    await Bun.sleep(20)
    expect(made).toBeLessThan(40)
    for (let i = 0; i < 100; i++) await merged.next()
    expect(made).toBeWithin(100, 200)
    await merged.return(undefined)
  })

  test("ends with the first error and when left", async () => {
    async function* bad(): AsyncGenerator<number> {
      yield 1
      throw new Error("broken")
    }
    const all = async (): Promise<void> => {
      for await (const _ of merge([numbers(0, 1000, 1), bad()])) continue
    }
    await expect(all()).rejects.toThrow("broken")

    let ended = 0
    async function* tracked(): AsyncGenerator<number> {
      try {
        for (let i = 0; ; i++) yield i
      } finally {
        ended++
      }
    }
    for await (const n of merge([tracked(), tracked()])) if (n > 20) break
    await until(() => ended === 2)
  })
})

test("admission counts sequences and knows when it is idle", async () => {
  const workload = new Workload()
  const admission = new Admission(2, 1, workload)
  const first = admission.enter(2)
  const second = admission.enter(1)
  expect([admission.active, admission.waiting]).toEqual([3, 1])
  expect(() => admission.enter(1)).toThrow(RequestError)
  let idle = false
  const wait = workload.idle().then(() => (idle = true))
  first.release()
  first.release()
  expect(admission.active).toBe(1)
  await Bun.sleep(1)
  expect(idle).toBe(false)
  second.release()
  await wait
})

describe("operations", () => {
  test("request ids are made, or kept when plain", async () => {
    const { app } = testServer()
    const id = async (given?: string) =>
      (
        await app.request(
          "/health",
          given === undefined ? {} : { headers: { "x-request-id": given } },
        )
      ).headers.get("x-request-id")
    expect(await id()).toMatch(/^req_[0-9a-f]{32}$/)
    expect(await id("abc-1")).toBe("abc-1")
    expect(await id("a b")).toMatch(/^req_/)
    expect((await app.request("/nowhere")).headers.get("x-request-id")).toMatch(/^req_/)
  })

  test("/cache shows the tiers and forgets what they hold", async () => {
    const { app, client } = testServer({})
    const { models } = (await (await app.request("/cache")).json()) as { models: unknown[] }
    expect(models).toEqual([
      {
        model: "fake",
        prompt_tokens: 11,
        hit_rate: 4 / 11,
        device: { bytes: 1000, hit_tokens: 1 },
        host: { bytes: 2000, limit_bytes: 4000, hit_tokens: 2 },
        disk: { bytes: 3000, limit_bytes: 8000, hit_tokens: 1, writes: 5, drops: 0, failures: 0 },
      },
    ])
    const response = await app.request("/cache", { method: "DELETE" })
    expect(await response.json()).toEqual({ cleared: ["fake"] })
    expect(client.cleared).toBe(1)
  })

  test("metrics count requests by route and tokens", async () => {
    const { app, post } = testServer({ cachedTokens: 4 })
    await post(CHAT, hello)
    await post(CHAT, { ...hello, temperature: 9 })
    await app.request("/no/such/path")
    await app.request("/v1/models/fake")
    const response = await app.request("/metrics")
    expect(response.headers.get("content-type")).toStartWith("text/plain")
    const text = await response.text()
    const lines = text.split("\n")
    expect(lines).toContain(`kt_http_requests_total{route="${CHAT}",method="POST",status="200"} 1`)
    expect(lines).toContain(`kt_http_requests_total{route="${CHAT}",method="POST",status="400"} 1`)
    expect(lines).toContain('kt_http_requests_total{route="other",method="GET",status="404"} 1')
    expect(text).not.toContain("/v1/models/fake")
    // as the engine counts them
    expect(lines).toContain('vllm:prompt_tokens_total{model_name="fake"} 11')
    expect(lines).toContain('vllm:prefix_cache_hits_total{model_name="fake"} 4')
    expect(lines).toContain('vllm:generation_tokens_total{model_name="fake"} 7')
    expect(lines).toContain('vllm:kv_cache_usage_perc{model_name="fake"} 0.0625')
    // under llama.cpp's names, which have no models
    for (const line of [
      "llamacpp:prompt_tokens_total 7",
      "llamacpp:prompt_tokens_cached_total 4",
      "llamacpp:tokens_predicted_total 7",
      "llamacpp:predicted_tokens_seconds 14",
      "llamacpp:n_tokens_max 33",
      "llamacpp:requests_processing 0",
    ])
      expect(lines).toContain(line)
    // as the server sees them
    const stopped = 'vllm:request_success_total{model_name="fake",finished_reason="stop"} 1'
    expect(lines).toContain(stopped)
    expect(lines).toContain('vllm:inter_token_latency_seconds_count{model_name="fake"} 13')
    expect(lines).toContain('vllm:request_generation_tokens_sum{model_name="fake"} 14')
    expect(lines).toContain('vllm:request_prompt_tokens_sum{model_name="fake"} 19')
    for (const name of [
      "time_to_first_token",
      "request_time_per_output_token",
      "e2e_request_latency",
      "request_queue_time",
      "request_prefill_time",
      "request_decode_time",
    ])
      expect(lines).toContain(`vllm:${name}_seconds_count{model_name="fake"} 1`)
    expect(lines).toContain('kt_engine_decode_seconds_total{model_name="fake"} 0.5')
    expect(lines).toContain("kt_active_sequences 0")
    expect(lines).toContain('kt_kv_pages_free{model_name="fake"} 60')
    expect(lines).toContain('kt_engine_steps_total{model_name="fake"} 9')
    expect(text).toMatch(/^kt_resident_bytes \d{7,}$/m)
    // Scraped again, engine totals are not added up.
    expect(await (await app.request("/metrics")).text()).toContain(
      'kt_engine_steps_total{model_name="fake"} 9\n',
    )
  })

  test("the machine: modules with their devices and bytes, experts, load", async () => {
    const { app, post } = testServer()
    await post(CHAT, hello)
    const machine = await json(app.request("/api/machine"))
    expect(at(machine, "models")).toMatchObject([
      {
        name: "fake",
        info: { architecture: "llama", threads: 2 },
        stats: { running: 0 },
        modules: [{ operator: "Experts", device: "cpu", packed: true, types: { Q4_1: 1000 } }],
        experts: [{ path: "model.layers.0.mlp.experts", counts: [3, 0, 1] }],
      },
    ])
    expect(JSON.stringify(machine)).not.toContain("/models/fake.gguf")
  })

  test("a dead engine: not ready, requests are 500, metrics still show", async () => {
    const { app, post, client } = testServer()
    client.dead = new KtError("the engine stopped: its thread ended")
    expect((await app.request("/health")).status).toBe(200)
    for (const [response, status] of [
      [await app.request("/ready"), 503],
      [await post(CHAT, hello), 500],
    ] as const) {
      expect(response.status).toBe(status)
      expect(at(await json(response), "error", "message")).toBe(
        "the engine stopped: its thread ended",
      )
    }
    const text = await (await app.request("/metrics")).text()
    expect(text).toContain('kt_engine_up{model_name="fake"} 0\n')
    client.dead = undefined
    expect(await (await app.request("/metrics")).text()).toContain(
      'kt_engine_up{model_name="fake"} 1\n',
    )
    expect((await app.request("/ready")).status).toBe(200)
  })

  test("the log hears of the server's own failures, not of the client's", async () => {
    const { post, client, failures } = testServer({ failAt: 1 })
    await post(CHAT, { ...hello, temperature: 9 })
    await post(CHAT, { ...hello, model: "x" })
    expect(failures).toEqual([])
    await post(CHAT, hello, { "x-request-id": "whole" })
    await (await post(CHAT, { ...hello, stream: true }, { "x-request-id": "sse" })).text()
    await (await post("/api/chat", hello, { "x-request-id": "lines" })).text()
    expect(failures.map(({ requestId }) => requestId)).toEqual(["whole", "sse", "lines"])
    // A bug is told to the log in full and to the client not at all.
    client.generate = () => {
      throw new TypeError("secret")
    }
    const response = await post(CHAT, hello)
    expect(response.status).toBe(500)
    expect(await response.text()).not.toContain("secret")
    expect(failures.at(-1)?.error).toBeInstanceOf(TypeError)
  })

  test("the OpenAPI document describes every route and resolves its references", async () => {
    const { app } = testServer({}, { apiKeys: ["k"] })
    const headers = { authorization: "Bearer k" }
    const doc = await json(app.request("/openapi.json", { headers }))
    expect(at(doc, "openapi")).toBe("3.1.0")
    expect(at(doc, "security")).toEqual([{ key: [] }])
    const paths = at(doc, "paths") as Record<string, Record<string, unknown>>
    const routes = app.routes
      .filter(({ path, method }) => method !== "ALL" && path !== "/" && path !== "/openapi.json")
      .map(({ path, method }) => `${method} ${path.replace(/:(\w+)(\{.*?\})?/g, "{$1}")}`)
    const documented = Object.entries(paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
    )
    expect(documented.toSorted()).toEqual(routes.toSorted())
    for (const operation of Object.values(paths).flatMap((methods) => Object.values(methods))) {
      expect(Object.keys(at(operation, "responses") as object).length).toBeGreaterThan(0)
      expect(at(operation, "summary")).toBeString()
    }
    const references = JSON.stringify(doc).matchAll(/"\$ref":"#\/([^"]+)"/g)
    for (const [, reference = ""] of references) {
      expect(at(doc, ...reference.split("/"))).toBeObject()
    }
    expect(
      at(doc, "components", "schemas", "ChatCompletionRequest", "properties", "n"),
    ).toMatchObject({
      minimum: 1,
      maximum: 128,
    })
  })
})
