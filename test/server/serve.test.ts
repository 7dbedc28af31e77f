import { afterEach, describe, expect, test } from "bun:test"
import { connect } from "node:net"

import { ConfigError } from "../../src/errors.ts"
import { type RunningServer, startServer } from "../../src/server/serve.ts"
import type { ServerConfig } from "../../src/server/types.ts"
import {
  at,
  json,
  ndjson,
  type Script,
  sseItems,
  type TestServer,
  testServer,
  until,
} from "./fakes.ts"
import page from "./page.html"

const hello = { model: "fake", messages: [{ role: "user", content: "hi" }] }
const CHAT = "/v1/chat/completions"
const running: RunningServer[] = []

interface Served extends TestServer {
  readonly server: RunningServer
  readonly send: (path: string, body: unknown, signal?: AbortSignal) => Promise<Response>
}

function serve(script: Script = {}, config: Partial<ServerConfig> = {}, withPage = false): Served {
  const fake = testServer(script, config)
  const server = startServer({ app: fake.app, port: 0, ...(withPage ? { ui: { "/": page } } : {}) })
  running.push(server)
  const send = (path: string, body: unknown, signal?: AbortSignal): Promise<Response> =>
    fetch(server.url + path, {
      method: "POST",
      body: JSON.stringify(body),
      ...(signal === undefined ? {} : { signal }),
    })
  return { ...fake, server, send }
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((server) => server.stop(0)))
})

test("listens on 127.0.0.1 and answers", async () => {
  const { server, send } = serve()
  expect(server.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/)
  expect(at(await json(send(CHAT, hello)), "choices", 0, "finish_reason")).toBe("stop")
})

test("a port in use is a ConfigError with a hint", async () => {
  const { server, app } = serve()
  const again = () => startServer({ app, port: server.port })
  expect(again).toThrow(ConfigError)
  expect(again).toThrow(`port ${server.port} on 127.0.0.1 is in use`)
  try {
    again()
  } catch (error) {
    expect((error as ConfigError).hint).toContain("--port")
  }
})

test("browsers get the page at /, programs get Ollama's greeting, and the page needs no key", async () => {
  const { server } = serve({}, { apiKeys: ["k"] }, true)
  const browser = await fetch(server.url, { headers: { accept: "text/html,*/*;q=0.8" } })
  expect(browser.status).toBe(200)
  expect(await browser.text()).toContain("test page")
  expect((await fetch(server.url)).status).toBe(401)
  const program = await fetch(server.url, { headers: { authorization: "Bearer k" } })
  expect(await program.text()).toBe("Ollama is running")
  const head = await fetch(server.url, { method: "HEAD", headers: { authorization: "Bearer k" } })
  expect(head.status).toBe(200)
})

test("tokens arrive as they are made", async () => {
  const { send } = serve({ delayMs: 20, answer: "abcdef" })
  const response = await send(CHAT, { ...hello, stream: true })
  const times: number[] = []
  for await (const _ of response.body ?? []) times.push(performance.now())
  expect(times.length).toBeGreaterThanOrEqual(6)
  expect(times.at(-1)! - times[0]!).toBeGreaterThan(80)
})

describe("a client that goes away", () => {
  test.each([
    ["a chat stream", CHAT, { ...hello, stream: true }],
    ["a whole chat answer", CHAT, hello],
    ["an Ollama stream", "/api/chat", hello],
  ])("ends %s within one token", async (_name, path, body) => {
    const { app, client, send } = serve({ then: "endless", delayMs: 5 })
    const gone = new AbortController()
    const answer = send(path, body, gone.signal).then(
      (response) => response.text().catch(() => ""),
      () => "",
    )
    await until(() => (client.calls[0]?.sent ?? 0) > 3)
    gone.abort()
    await answer
    await until(() => client.running === 0)
    expect(client.calls[0]!.ended).toBe("aborted")
    expect(client.calls[0]!.sentAfterAbort).toBeLessThanOrEqual(1)
    await until(() => app.admission.active === 0)
  })

  test("a connection that is cut while the prompt is computed", async () => {
    const { app, client, server } = serve({ delayMs: 1500 })
    const socket = connect(server.port, "127.0.0.1")
    const body = JSON.stringify({ ...hello, n: 2, stream: true })
    socket.write(
      `POST ${CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    )
    await until(() => client.calls.length === 2)
    socket.destroy()
    await until(() => client.calls.every((call) => call.signalled), 1000)
    expect(client.calls.map((call) => call.sent)).toEqual([0, 0])
    await until(() => app.admission.active === 0)
  })

  test("a client that stops reading does not make the server pile up", async () => {
    const { app, client, server } = serve({ then: "endless", contextLength: 10_000_000 })
    const socket = connect(server.port, "127.0.0.1")
    const body = JSON.stringify({ ...hello, stream: true })
    socket.write(
      `POST ${CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    )
    socket.pause()
    await until(() => (client.calls[0]?.sent ?? 0) > 100)
    let before = -1
    // Kernel buffers fill first; then the stream stands still.
    await until(() => {
      const sent = client.calls[0]!.sent
      const still = sent === before
      before = sent
      Bun.sleepSync(30)
      return still
    }, 10_000)
    expect(before).toBeLessThan(200_000)
    socket.destroy()
    await until(() => app.admission.active === 0)
  }, 15_000)
})

describe("stop", () => {
  test("lets streams finish within the grace, refuses new requests meanwhile", async () => {
    const { server, send, app } = serve({ delayMs: 10, answer: "a longer answer" })
    const response = await send(CHAT, { ...hello, stream: true })
    const stopped = server.stop(5000)
    expect(app.admission.draining).toBe(true)
    const refused = await send("/api/chat", hello)
    expect([refused.status, await refused.json()]).toEqual([
      503,
      { error: "the server is shutting down" },
    ])
    const { items, done } = sseItems(await response.text())
    expect(done).toBe(true)
    expect(items.map((item) => at(item, "choices", 0, "delta", "content") ?? "").join("")).toBe(
      "a longer answer",
    )
    await stopped
    await expect(fetch(server.url + "/health")).rejects.toThrow()
  })

  test("aborts what takes longer, with an error in each API's shape", async () => {
    const { server, send, client } = serve({ then: "endless", delayMs: 5 })
    const texts = await Promise.all([
      send(CHAT, { ...hello, stream: true }),
      send("/api/chat", hello),
      send("/v1/completions", { prompt: "x", stream: true }),
    ])
    const whole = send(CHAT, hello)
    await until(() => client.calls.length === 4 && client.calls.every((call) => call.sent > 0))
    const started = performance.now()
    const bodies = Promise.all(texts.map((response) => response.text()))
    await server.stop(50)
    expect(performance.now() - started).toBeLessThan(2000)
    const [chat = "", ollama = "", text = ""] = await bodies
    for (const sse of [chat, text]) {
      const { items, done } = sseItems(sse)
      expect(done).toBe(false)
      expect(at(items.at(-1), "error")).toMatchObject({
        code: "shutting_down",
        type: "unavailable_error",
      })
    }
    expect(ndjson(ollama).at(-1)).toEqual({ error: "the server is shutting down" })
    expect((await whole).status).toBe(503)
    expect(client.running).toBe(0)
  })
})
