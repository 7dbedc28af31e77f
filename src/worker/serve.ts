import { type MessagePort, receiveMessageOnPort } from "node:worker_threads"

import { KtError } from "../errors.ts"
import type {
  EngineInfo,
  EngineStats,
  FromWorker,
  GenerateParams,
  LoadOptions,
  TokenEvent,
  ToWorker,
} from "./protocol.ts"

/** What the Worker drives. */
export interface ServedEngine extends Disposable {
  readonly info: EngineInfo
  readonly hasWork: boolean
  add(id: number, ids: Int32Array, params: GenerateParams): void
  abort(id: number): void
  abortAll(): void
  step(): TokenEvent[]
  stats(): EngineStats
}

export interface EngineHooks {
  readonly onProgress: (stage: string, done: number, total: number) => void
  readonly onLog: (level: "info" | "warning", message: string) => void
}

export type EngineFactory = (options: LoadOptions, hooks: EngineHooks) => Promise<ServedEngine>

/**
 * Speaks the protocol on a port. While there is work the loop never returns to the event loop: it polls the port between
 * steps, so that an abort is seen before the next one. Without work it returns and waits for a message.
 */
export function serveEngine(port: MessagePort, create: EngineFactory): void {
  const post = (message: FromWorker): void => port.postMessage(message)
  /** Messages that came before the engine was ready. */
  const early: ToWorker[] = []
  let engine: ServedEngine | undefined
  let state: "new" | "loading" | "ready" | "failed" | "closed" = "new"
  let running = false

  const fail = (error: unknown): void => {
    state = "failed"
    engine = undefined
    const { message, hint } = describe(error)
    post({ type: "failed", message, ...(hint === undefined ? {} : { hint }) })
  }

  const load = async (options: LoadOptions): Promise<void> => {
    state = "loading"
    try {
      const made = await create(options, {
        onProgress: (stage, done, total) => post({ type: "loading", stage, done, total }),
        onLog: (level, message) => post({ type: "log", level, message }),
      })
      engine = made
      state = "ready"
      post({ type: "ready", info: made.info })
    } catch (error) {
      fail(error)
    }
    for (const message of early.splice(0)) receive(message)
  }

  const shutdown = (): void => {
    if (engine !== undefined) {
      engine.abortAll()
      post({ type: "step", events: engine.step() })
      engine[Symbol.dispose]()
      engine = undefined
    }
    state = "closed"
    post({ type: "closed" })
    port.close()
  }

  const handle = (message: ToWorker): void => {
    if (state === "closed") return
    switch (message.type) {
      case "load":
        return void load(message.options)
      case "shutdown":
        return shutdown()
      case "abort":
        return engine?.abort(message.id)
      case "stats":
        if (engine !== undefined)
          post({ type: "stats", nonce: message.nonce, stats: engine.stats() })
        return
      case "add":
        try {
          engine?.add(message.id, message.ids, message.params)
        } catch (error) {
          const event = { token: -1, finish: "error", error: describe(error).message } as const
          post({ type: "step", events: [{ id: message.id, ...event }] })
        }
    }
  }

  /** Steps until nothing is left to do. */
  const run = (): void => {
    running = true
    try {
      while (engine?.hasWork) {
        const events = engine.step()
        if (events.length > 0) post({ type: "step", events })
        for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port))
          handle(next.message as ToWorker)
      }
    } catch (error) {
      fail(error)
    } finally {
      running = false
    }
  }

  const receive = (message: ToWorker): void => {
    if (state === "loading") return void early.push(message)
    handle(message)
    if (!running) run()
  }

  port.on("message", receive)
}

function describe(error: unknown): { message: string; hint: string | undefined } {
  if (error instanceof KtError) return { message: error.message, hint: error.hint }
  return { message: error instanceof Error ? error.message : String(error), hint: undefined }
}
