import { ConfigError, EngineError, KtError, MemoryError } from "../errors.ts"
import type {
  EngineClient,
  EngineDetails,
  EngineInfo,
  EngineStats,
  FromWorker,
  GenerateParams,
  LoadOptions,
  Pooled,
  PoolParams,
  PrefixAction,
  PrefixAnswer,
  TokenEvent,
  TokenTable,
  ToWorker,
} from "./protocol.ts"

/** Events of one sequence that wait for their reader; a reader that is further behind loses the sequence. */
export const MAX_QUEUED_EVENTS = 8192

export interface StartOptions {
  readonly onProgress?: (stage: string, done: number, total: number) => void
  readonly onLog?: (level: "info" | "warning", message: string) => void
  /** Of `Turns.buffer()`, given to all engines that share the cores. */
  readonly turns?: SharedArrayBuffer
  /** The Worker's entry; tests give their own. */
  readonly worker?: URL
}

/** Starts the engine Worker and resolves when the model is loaded. @throws KtError saying why it could not be */
export async function startEngine(
  options: LoadOptions,
  start: StartOptions = {},
): Promise<EngineClient> {
  const url = start.worker ?? workerEntry()
  const worker = new Worker(url.href, { name: "kt-engine" })
  const { port1, port2 } = new MessageChannel()
  const client = new WorkerClient(worker, port1, start)
  worker.postMessage({ port: port2 }, [port2])
  return client.load(options)
}

/** In the binary the bundle's root stands for src/, and this code lies at the root whatever file it came from. */
function workerEntry(): URL {
  return Bun.isStandaloneExecutable
    ? new URL("./worker/engine-worker.ts", import.meta.url)
    : new URL("./engine-worker.ts", import.meta.url)
}

/** Queue between the Worker's messages and one reader. */
class Stream {
  readonly #events: TokenEvent[] = []
  #error: KtError | undefined
  #wake: (() => void) | undefined

  /** False when the queue is full. */
  push(event: TokenEvent): boolean {
    if (this.#events.length >= MAX_QUEUED_EVENTS) return false
    this.#events.push(event)
    this.#wake?.()
    return true
  }

  /** Ends the stream with this event; what has not been read is dropped. */
  cut(event: TokenEvent): void {
    this.#events.splice(0, Number.POSITIVE_INFINITY, event)
    this.#wake?.()
  }

  /** Ends the stream with an error, after the events that are there. */
  fail(error: KtError): void {
    this.#error = error
    this.#wake?.()
  }

  /** All events that are there, at least one. */
  async next(): Promise<readonly TokenEvent[]> {
    for (;;) {
      if (this.#events.length > 0) return this.#events.splice(0)
      if (this.#error !== undefined) throw this.#error
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
  }
}

interface Pending<T> {
  readonly resolve: (value: T) => void
  readonly reject: (error: KtError) => void
}

/** What has an answer; the client numbers it. */
type Question =
  | { readonly type: "stats" | "details" }
  | { readonly type: "prefix"; readonly action: PrefixAction }

/** What becomes a sequence; the client gives it its id. */
type Work =
  | { readonly type: "add"; readonly ids: Int32Array; readonly params: GenerateParams }
  | { readonly type: "pool"; readonly ids: Int32Array; readonly params: PoolParams }

function needsVocabulary({ grammar, thinking }: GenerateParams): boolean {
  return grammar !== undefined || thinking !== undefined
}

class WorkerClient implements EngineClient {
  readonly #worker: Worker
  readonly #port: MessagePort
  readonly #start: StartOptions
  readonly #streams = new Map<number, Stream>()
  readonly #asked = new Map<number, Pending<unknown>>()
  readonly failed: Promise<Error>
  #fail: (error: Error) => void = () => {}
  readonly #ended: Promise<void>
  #end: () => void = () => {}
  #ready: Pending<EngineInfo> | undefined
  #info: EngineInfo | undefined
  /** Why nothing more can be asked of the engine. */
  #dead: KtError | undefined
  #closing: Promise<void> | undefined
  #vocabulary: Promise<void> | undefined
  #nextId = 1

  constructor(worker: Worker, port: MessagePort, start: StartOptions) {
    this.#worker = worker
    this.#port = port
    this.#start = start
    this.#ended = new Promise((resolve) => (this.#end = resolve))
    this.failed = new Promise((resolve) => (this.#fail = resolve))
    port.onmessage = (event: MessageEvent): void => this.#receive(event.data as FromWorker)
    worker.addEventListener("error", (event) => {
      event.preventDefault()
      this.#die(new EngineError(`the engine stopped: ${event.message}`))
    })
    worker.addEventListener("close", () => {
      this.#die(new EngineError("the engine stopped: its thread ended"))
      this.#end()
    })
  }

  get info(): EngineInfo {
    if (this.#info === undefined) throw new KtError("the engine is not loaded yet")
    return this.#info
  }

  async load(options: LoadOptions): Promise<EngineClient> {
    try {
      this.#info = await new Promise<EngineInfo>((resolve, reject) => {
        this.#ready = { resolve, reject }
        const { turns } = this.#start
        this.#post({ type: "load", options, ...(turns === undefined ? {} : { turns }) })
      })
    } catch (error) {
      await this.close()
      throw error
    }
    return this
  }

  generate(
    ids: Int32Array,
    params: GenerateParams,
    signal?: AbortSignal,
  ): AsyncIterable<readonly TokenEvent[]> {
    if (this.#dead !== undefined) throw this.#dead
    if (ids.length === 0) throw new ConfigError("the prompt is empty")
    const limit = this.info.contextLength
    if (ids.length >= limit)
      throw new ConfigError(
        `a prompt of ${ids.length} tokens leaves no room for an answer in the context of ${limit}`,
      )
    return this.#run({ type: "add", ids: ids.slice(), params }, signal)
  }

  async pool(ids: Int32Array, params: PoolParams, signal?: AbortSignal): Promise<Pooled> {
    if (ids.length === 0) throw new ConfigError("the text is empty")
    for await (const events of this.#run({ type: "pool", ids: ids.slice(), params }, signal)) {
      const event = events.at(-1)
      if (event?.finish === "abort") throw signal?.reason ?? new KtError("the engine stopped")
      if (event?.finish === "error") {
        const message = event.error ?? "the engine failed"
        throw event.isRefused === true ? new ConfigError(message) : new KtError(message)
      }
      if (event?.pooled === undefined || event.first === undefined) continue
      return { values: event.pooled, ...event.first }
    }
    throw new KtError("the engine ended a text without a result")
  }

  async *#run(work: Work, signal: AbortSignal | undefined): AsyncGenerator<readonly TokenEvent[]> {
    if (work.type === "add" && needsVocabulary(work.params)) await this.#vocabulary
    if (this.#dead !== undefined) throw this.#dead
    const id = this.#nextId++
    const stream = new Stream()
    let finished = false
    const cancel = (): void => stream.cut({ id, token: -1, finish: "abort" })
    if (signal?.aborted) {
      yield [{ id, token: -1, finish: "abort" }]
      return
    }
    signal?.addEventListener("abort", cancel, { once: true })
    this.#streams.set(id, stream)
    this.#post({ ...work, id }, [work.ids.buffer as ArrayBuffer])
    try {
      while (!finished) {
        const events = await stream.next()
        const end = events.at(-1)?.finish
        // an abort may come from here and not be known to the engine yet; one too many does no harm
        finished = end !== undefined && end !== "abort"
        yield events
        if (end !== undefined) return
      }
    } finally {
      signal?.removeEventListener("abort", cancel)
      this.#streams.delete(id)
      if (!finished) this.#post({ type: "abort", id })
    }
  }

  setVocabulary(table: Promise<TokenTable>): void {
    this.#vocabulary = table.then((known) => this.#post({ type: "vocabulary", table: known }))
    // whoever needs it learns of a failure
    this.#vocabulary.catch(() => {})
  }

  stats(): Promise<EngineStats> {
    return this.#ask({ type: "stats" })
  }

  details(): Promise<EngineDetails> {
    return this.#ask({ type: "details" })
  }

  prefix(action: PrefixAction): Promise<PrefixAnswer> {
    return this.#ask({ type: "prefix", action })
  }

  #ask<T>(question: Question): Promise<T> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead)
    const nonce = this.#nextId++
    return new Promise<T>((resolve, reject) => {
      this.#asked.set(nonce, { resolve: resolve as (answer: unknown) => void, reject })
      this.#post({ ...question, nonce })
    })
  }

  clearCache(): void {
    this.#post({ type: "clear-cache" })
  }

  close(): Promise<void> {
    this.#closing ??= this.#shutdown()
    return this.#closing
  }

  /** Cooperative: ending the thread while a native call runs would pull memory from under it. */
  async #shutdown(): Promise<void> {
    this.#post({ type: "shutdown" })
    await this.#ended
    this.#die(new KtError("the engine is closed"))
    this.#worker.terminate()
    this.#port.close()
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case "step":
        for (const event of message.events) this.#deliver(event)
        return
      case "refused":
        this.#asked.get(message.nonce)?.reject(new KtError(message.message))
        this.#asked.delete(message.nonce)
        return
      case "stats":
      case "details":
      case "prefix":
        this.#asked.get(message.nonce)?.resolve(message.answer)
        this.#asked.delete(message.nonce)
        return
      case "loading":
        return this.#start.onProgress?.(message.stage, message.done, message.total)
      case "log":
        return this.#start.onLog?.(message.level, message.message)
      case "ready":
        return this.#ready?.resolve(message.info)
      case "failed": {
        const { hint, isMemory } = message
        const options = hint === undefined ? {} : { hint }
        if (isMemory === true) return this.#die(new MemoryError(message.message, options))
        // before it is ready that is what cannot be loaded, and a sentence of its own
        if (this.#info === undefined) return this.#die(new KtError(message.message, options))
        return this.#die(new EngineError(`the engine stopped: ${message.message}`, options))
      }
      case "closed":
        return this.#end()
    }
  }

  #deliver(event: TokenEvent): void {
    const stream = this.#streams.get(event.id)
    if (stream === undefined || stream.push(event)) return
    this.#streams.delete(event.id)
    this.#post({ type: "abort", id: event.id })
    stream.fail(
      new KtError(`the reader of a sequence is ${MAX_QUEUED_EVENTS} tokens behind; it was aborted`),
    )
  }

  /** One error for everyone who waits, the first one that is known. */
  #die(error: KtError): void {
    if (this.#dead !== undefined) return
    this.#dead = error
    if (this.#closing === undefined) this.#fail(error)
    this.#ready?.reject(error)
    for (const stream of this.#streams.values()) stream.fail(error)
    for (const pending of this.#asked.values()) pending.reject(error)
    this.#streams.clear()
    this.#asked.clear()
  }

  #post(message: ToWorker, transfer: ArrayBuffer[] = []): void {
    this.#port.postMessage(message, transfer)
  }
}
