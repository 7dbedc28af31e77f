import type { HTMLBundle, Server } from "bun"

import { ConfigError } from "../errors.ts"
import type { ServerApp } from "./app.ts"

/** What a listener needs of an application. */
export type ServedApp = Pick<ServerApp, "fetch" | "admission">

export interface ServeOptions {
  readonly app: ServedApp
  /** Pages by path, from HTML imports; "/" is what browsers get. */
  readonly ui?: Readonly<Record<string, HTMLBundle>>
  /** Default 127.0.0.1. */
  readonly host?: string
  /** 0 takes a free one. */
  readonly port: number
  /** Certificate chain and private key, PEM; undefined serves plain HTTP. */
  readonly tls?: { readonly cert: string; readonly key: string }
  /** A connection that is silent for so long is closed, unless an answer is being computed for it; at most 255. */
  readonly idleSeconds?: number
}

export interface RunningServer {
  /** Without a slash at the end. */
  readonly url: string
  readonly port: number
  /**
   * Refuses new requests, lets running ones finish for up to `graceMs`, then aborts them, each
   * stream with an error in its API's shape.
   */
  stop(graceMs: number): Promise<void>
}

/** Where browsers that ask for "/" are sent: the page and "Ollama is running" share that path. */
const UI_PATH = "/ui"
/** Bodies come without such pauses, also over slow lines. */
const IDLE_SECONDS = 60
/** Time for aborted streams to write their last error. */
const FAREWELL_MS = 500

/** Serves the app (and the web UI's static files). ConfigError when the port cannot be had. */
export function startServer(options: ServeOptions): RunningServer {
  const { host = "127.0.0.1", port } = options
  const { app, tls } = options
  const server = listen(options, host)
  let stopping: Promise<void> | undefined
  return {
    url: `${tls === undefined ? "http" : "https"}://${urlHost(host)}:${server.port}`,
    port: server.port ?? port,
    stop: (graceMs) => (stopping ??= stop(server, app, graceMs)),
  }
}

function listen(options: ServeOptions, hostname: string): Server<undefined> {
  const { app, ui = {}, port, tls, idleSeconds = IDLE_SECONDS } = options
  const { "/": page, ...pages } = ui
  const fetch = (request: Request, server: Server<undefined>): Response | Promise<Response> => {
    const isPage = request.method === "GET" && new URL(request.url).pathname === "/"
    if (page !== undefined && isPage && wantsHtml(request)) {
      return new Response(null, { status: 302, headers: { location: UI_PATH, vary: "accept" } })
    }
    // a long prompt may be silent for minutes; streams have their own heartbeat
    return app.fetch(request, { keepOpen: () => server.timeout(request, 0) })
  }
  try {
    return Bun.serve({
      hostname,
      port,
      idleTimeout: idleSeconds,
      // The app's own limit answers in the API's shape.
      maxRequestBodySize: Number.MAX_SAFE_INTEGER,
      development: false,
      // Outside development Bun shares ports by default, and a second server would steal half of
      // the requests.
      reusePort: false,
      routes: page === undefined ? pages : { ...pages, [UI_PATH]: page },
      fetch,
      ...(tls === undefined ? {} : { tls }),
    })
  } catch (error) {
    throw listenError(error, hostname, port)
  }
}

function wantsHtml(request: Request): boolean {
  return (request.headers.get("accept") ?? "").includes("text/html")
}

function listenError(error: unknown, host: string, port: number): ConfigError {
  const code = (error as { code?: string }).code
  if (code === "EADDRINUSE") {
    return new ConfigError(`port ${port} on ${host} is in use`, {
      hint: `choose another with --port, or end the program that listens there (ss -ltnp "sport = :${port}")`,
      cause: error,
    })
  }
  if (code === "EACCES") {
    return new ConfigError(`port ${port} on ${host}: permission denied`, {
      hint: "ports below 1024 need privileges; choose another with --port",
      cause: error,
    })
  }
  const reason = error instanceof Error ? error.message : String(error)
  if (code?.startsWith("ERR_") === true || /PEM|TLS|certificate|key/i.test(reason))
    return new ConfigError(`the TLS certificate or its key is not valid: ${reason}`, {
      cause: error,
    })
  return new ConfigError(`cannot listen on ${host} port ${port}: ${reason}`, { cause: error })
}

function urlHost(host: string): string {
  if (host === "0.0.0.0" || host === "::") return "127.0.0.1"
  return host.includes(":") ? `[${host}]` : host
}

async function stop(server: Server<undefined>, app: ServedApp, graceMs: number): Promise<void> {
  const { admission } = app
  admission.drain()
  await within(admission.idle(), graceMs)
  if (admission.active > 0) {
    admission.abortAll()
    await within(admission.idle(), FAREWELL_MS)
  }
  // Work has ended; what is left is writing, and connections kept alive.
  await within(server.stop(), FAREWELL_MS)
  await server.stop(true)
}

/** Waits for a promise, but not longer; the timer goes with it, since it would keep the process alive. */
async function within(promise: Promise<unknown>, ms: number): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  try {
    await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
