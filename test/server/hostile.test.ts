import { afterAll, describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { connect, type Socket } from "node:net"
import { join } from "node:path"

import { ConfigError } from "../../src/errors.ts"
import { type RunningServer, type ServeOptions, startServer } from "../../src/server/serve.ts"
import { temporaryFolder } from "../cli/kt.ts"
import { type Script, testServer, until } from "./fakes.ts"

const servers: RunningServer[] = []
afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop(0)))
})

function serve(script: Script, options: Partial<ServeOptions> = {}): RunningServer {
  const { app } = testServer(script, { heartbeatMs: 0 })
  const server = startServer({ app, port: 0, ...options })
  servers.push(server)
  return server
}

/** Sends bytes as they are; what comes back until the server closes. */
function raw(port: number, text: string): { socket: Socket; answer: Promise<string> } {
  const socket = connect(port, "127.0.0.1", () => void socket.write(text))
  let got = ""
  socket.on("data", (data) => (got += data.toString()))
  const answer = new Promise<string>((resolve) => socket.on("close", () => resolve(got)))
  socket.on("error", () => {})
  return { socket, answer }
}

const BODY = JSON.stringify({ model: "fake", messages: [{ role: "user", content: "hi" }] })
const HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"

describe("connections that are not what they should be", () => {
  test("a body that does not come is not waited for", async () => {
    const { port } = serve({}, { idleSeconds: 1 })
    const { answer } = raw(port, `${HEAD}content-length: 90000\r\n\r\n{"model"`)
    const closed = await Promise.race([answer.then(() => true), Bun.sleep(10_000)])
    expect(closed).toBe(true)
  }, 20_000)

  test("an answer that takes longer than connections may be silent comes all the same", async () => {
    const { url } = serve({ answer: "ab", delayMs: 1500 }, { idleSeconds: 1 })
    const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", body: BODY })
    expect(await response.text()).toContain('"ab"')
  }, 20_000)

  test("a flood of headers is cut off", async () => {
    const { port } = serve({})
    const { answer } = raw(port, `${HEAD}${`x: ${"y".repeat(500)}\r\n`.repeat(2000)}\r\n`)
    expect(await answer).toStartWith("HTTP/1.1 431 ")
  })

  test("bodies beyond the limit are 413, with and without a length, and hold no memory", async () => {
    const { url } = serve({})
    const piece = new Uint8Array(1024 * 1024)
    Bun.gc(true)
    const before = process.memoryUsage.rss()
    for (let i = 0; i < 8; i++) {
      let sent = 0
      const endless = new ReadableStream<Uint8Array>({
        pull(stream) {
          if (sent++ < 64) stream.enqueue(piece)
          else stream.close()
        },
      })
      const response = await fetch(`${url}/v1/chat/completions`, {
        method: "POST",
        body: endless,
      }).catch((error: unknown) => error as Error)
      // the server may close before all is sent
      if (response instanceof Response) expect(response.status).toBe(413)
    }
    const whole = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      body: new Uint8Array(40 * 1024 * 1024),
    }).catch((error: unknown) => error as Error)
    if (whole instanceof Response) expect(whole.status).toBe(413)
    Bun.gc(true)
    // eight of 64 MiB were sent
    expect(process.memoryUsage.rss() - before).toBeLessThan(256 * 1024 * 1024)
    const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", body: BODY })
    expect(response.status).toBe(200)
  }, 60_000)

  test("readers that read nothing do not slow the others", async () => {
    const { app, client } = testServer({ then: "endless", maxBatchSize: 64 })
    const server = startServer({ app, port: 0 })
    servers.push(server)
    const stream = JSON.stringify({ ...(JSON.parse(BODY) as object), stream: true })
    const request = `${HEAD}content-length: ${stream.length}\r\n\r\n${stream}`
    const idle = Array.from({ length: 16 }, () => {
      const { socket } = raw(server.port, request)
      socket.pause()
      return socket
    })
    await until(() => client.calls.length === 16)
    const started = performance.now()
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      method: "POST",
      body: JSON.stringify({ ...(JSON.parse(BODY) as object), max_tokens: 64 }),
    })
    expect(response.status).toBe(200)
    expect(performance.now() - started).toBeLessThan(5000)
    for (const socket of idle) socket.destroy()
    await until(() => client.running === 0)
  }, 30_000)
})

const OPENSSL = Bun.which("openssl")

describe.skipIf(OPENSSL === null)("TLS (skipped without openssl)", () => {
  test("https with a certificate of one's own; one that is none is named", async () => {
    using folder = temporaryFolder()
    const [certFile, keyFile] = [join(folder.path, "cert.pem"), join(folder.path, "key.pem")]
    const argv = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    const names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    const made = Bun.spawnSync([
      OPENSSL as string,
      ...argv,
      ...names,
      "-keyout",
      keyFile,
      "-out",
      certFile,
    ])
    expect(made.exitCode).toBe(0)
    const tls = { cert: readFileSync(certFile, "utf8"), key: readFileSync(keyFile, "utf8") }
    const { url } = serve({}, { tls })
    expect(url).toStartWith("https://127.0.0.1:")
    const response = await fetch(`${url}/health`, { tls: { ca: tls.cert } })
    expect(await response.json()).toEqual({ status: "ok" })
    expect(() => serve({}, { tls: { ...tls, cert: "none" } })).toThrow(ConfigError)
    expect(() => serve({}, { tls: { ...tls, cert: "none" } })).toThrow(/TLS certificate/)
  })
})
