import { type MessagePort, receiveMessageOnPort } from "node:worker_threads"

import { ConfigError, KtError, MemoryError } from "../errors.ts"
import type {
  EngineDetails,
  EngineInfo,
  EngineStats,
  FromWorker,
  GenerateParams,
  LoadOptions,
  PoolParams,
  PrefixAction,
  PrefixAnswer,
  TokenEvent,
  TokenTable,
  ToWorker,
} from "./protocol.ts"
import { Turns } from "./turns.ts"

type AddMessage = Extract<ToWorker, { type: "add" }>
type PoolMessage = Extract<ToWorker, { type: "pool" }>

/** What the Worker drives. */
export interface ServedEngine extends Disposable {
  readonly info: EngineInfo
  readonly hasWork: boolean
  /** Tokens that come faster than this go out together; 0 sends each step's at once. */
  readonly streamIntervalMs: number
  /** `grammar`: from grammar(), where params have one. */
  add(id: number, ids: Int32Array, params: GenerateParams, grammar?: Disposable): void
  pool(id: number, ids: Int32Array, params: PoolParams): void
  setVocabulary(table: TokenTable): void
  /** `written`: the beginning of what must match, where the prompt ends with it. */
  grammar(text: string, stopTokens: readonly number[], written?: string): Promise<Disposable>
  abort(id: number): void
  abortAll(): void
  step(): TokenEvent[]
  stats(): EngineStats
  details(): EngineDetails
  prefix(action: PrefixAction): PrefixAnswer
  clearCache(): void
}

export interface EngineHooks {
  readonly onProgress: (stage: string, done: number, total: number) => void
  readonly onLog: (level: "info" | "warning", message: string) => void
}

export type EngineFactory = (options: LoadOptions, hooks: EngineHooks) => Promise<ServedEngine>

/**
 * Speaks the protocol on a port. While there is work the loop never returns to the event loop: it polls the port between
 * steps, so that an abort is seen before the next one. Without work it returns and waits for a message.
 *
 * A message wakes the main thread, which takes a core from the compute threads where all are busy; so first and last
 * tokens go out at once, and those between together every `streamIntervalMs`.
 */
export function serveEngine(port: MessagePort, create: EngineFactory): void {
  const post = (message: FromWorker): void => port.postMessage(message)
  /** Messages that came before the engine was ready. */
  const early: ToWorker[] = []
  let engine: ServedEngine | undefined
  let state: "new" | "loading" | "ready" | "failed" | "closed" = "new"
  let running = false
  /** Sequences whose grammar is being compiled. */
  const compiling = new Set<number>()
  /** Events that have not been sent yet, and when the last ones were. */
  let outbox: TokenEvent[] = []
  let sentMs = 0
  let turns: Turns | undefined

  const flush = (): void => {
    if (outbox.length === 0) return
    post({ type: "step", events: outbox })
    outbox = []
    sentMs = performance.now()
  }

  const send = (events: readonly TokenEvent[], intervalMs: number): void => {
    outbox.push(...events)
    if (events.some(isUrgent) || performance.now() - sentMs >= intervalMs) flush()
  }

  const fail = (error: unknown): void => {
    state = "failed"
    engine = undefined
    const { message, hint } = describe(error)
    const isMemory = error instanceof MemoryError
    post({
      type: "failed",
      message,
      ...(hint === undefined ? {} : { hint }),
      ...(isMemory ? { isMemory } : {}),
    })
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
      send(engine.step(), 0)
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
        if (message.turns !== undefined) turns = new Turns(message.turns)
        return void load(message.options)
      case "shutdown":
        return shutdown()
      case "abort":
        if (compiling.delete(message.id)) return refuse(message.id, { finish: "abort" })
        return engine?.abort(message.id)
      case "vocabulary":
        return engine?.setVocabulary(message.table)
      case "clear-cache":
        return engine?.clearCache()
      case "stats":
        if (engine !== undefined)
          post({ type: "stats", nonce: message.nonce, answer: engine.stats() })
        return
      case "details":
        if (engine !== undefined)
          post({ type: "details", nonce: message.nonce, answer: engine.details() })
        return
      case "prefix":
        return prefix(message.nonce, message.action)
      case "pool":
        return pool(message)
      case "add":
        return message.params.grammar === undefined ? add(message) : void constrained(message)
    }
  }

  const refuse = (id: number, end: Omit<TokenEvent, "id" | "token">): void =>
    send([{ id, token: -1, ...end }], 0)

  const add = ({ id, ids, params }: AddMessage, grammar?: Disposable): void => {
    try {
      engine?.add(id, ids, params, grammar)
    } catch (error) {
      grammar?.[Symbol.dispose]()
      refuse(id, failure(error))
    }
  }

  const prefix = (nonce: number, action: PrefixAction): void => {
    try {
      if (engine !== undefined) post({ type: "prefix", nonce, answer: engine.prefix(action) })
    } catch (error) {
      post({ type: "refused", nonce, message: describe(error).message })
    }
  }

  const pool = ({ id, ids, params }: PoolMessage): void => {
    try {
      engine?.pool(id, ids, params)
    } catch (error) {
      refuse(id, failure(error))
    }
  }

  /** Compiling waits for the event loop, so the sequence is added when that is done. */
  const constrained = async (message: AddMessage): Promise<void> => {
    const { id, params } = message
    compiling.add(id)
    try {
      const { grammar: text = "", stopTokens, grammarWritten } = params
      const grammar = await engine?.grammar(text, stopTokens, grammarWritten)
      if (compiling.delete(id)) add(message, grammar)
      else grammar?.[Symbol.dispose]()
    } catch (error) {
      if (compiling.delete(id)) refuse(id, failure(error))
    }
    if (!running) void run()
  }

  const step = (ready: ServedEngine): TokenEvent[] =>
    turns === undefined ? ready.step() : turns.run(() => ready.step())

  /** Steps until nothing is left to do. */
  const run = async (): Promise<void> => {
    running = true
    try {
      while (engine?.hasWork) {
        if (compiling.size > 0) await new Promise<void>((resolve) => setImmediate(resolve))
        // shut down meanwhile
        if (engine === undefined) break
        send(step(engine), engine.streamIntervalMs)
        for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port))
          handle(next.message as ToWorker)
      }
      flush()
    } catch (error) {
      flush()
      const broken = engine
      fail(error)
      // its memory is not needed any more, if it can still be told apart
      try {
        broken?.[Symbol.dispose]()
      } catch {}
    } finally {
      running = false
    }
  }

  const receive = (message: ToWorker): void => {
    if (state === "loading") return void early.push(message)
    handle(message)
    if (!running) void run()
  }

  port.on("message", receive)
}

/** What a client waits for: the first token, what comes before it, and the end. */
function isUrgent({ first, finish, progress }: TokenEvent): boolean {
  return first !== undefined || finish !== undefined || progress !== undefined
}

function failure(error: unknown): Omit<TokenEvent, "id" | "token"> {
  const isRefused = error instanceof ConfigError
  return { finish: "error", error: describe(error).message, ...(isRefused ? { isRefused } : {}) }
}

function describe(error: unknown): { message: string; hint: string | undefined } {
  if (error instanceof KtError) return { message: error.message, hint: error.hint }
  return { message: error instanceof Error ? error.message : String(error), hint: undefined }
}
