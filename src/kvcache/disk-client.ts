import { MessageChannel, type MessagePort, receiveMessageOnPort } from "node:worker_threads"

import { KtError } from "../errors.ts"
import {
  BYTES_AT,
  type DiskWorkerStart,
  type FromDisk,
  IS_WRITER,
  SHARED_BYTES,
  SIGNAL,
  type ToDisk,
} from "./disk-worker.ts"
import type { DiskEvent, DiskTier, ReadRequest } from "./prefix-tiers.ts"

export type DiskLog = (level: "info" | "warning", message: string) => void

/** A read that takes longer means that the thread or the disk hangs. */
const LOST_MS = 60_000
/** What is in the queue is written at the end, if it takes no longer. */
const CLOSE_MS = 20_000

/** The disk's thread as the step loop sees it: messages out, and a port that is polled. */
export class DiskClient implements DiskTier {
  readonly fingerprint: string
  readonly #worker: Worker
  readonly #port: MessagePort
  readonly #signal: Int32Array
  readonly #level: Float64Array
  readonly #log: DiskLog
  readonly #folder: string
  /** The value of the signal when the port was last empty. */
  #seen = 0
  /** Tickets of reads that wait for an answer, and since when any does. */
  readonly #reads = new Set<number>()
  #readsSinceMs = 0
  #refused: DiskEvent[] = []
  /** Nothing more is asked of it. */
  #isOver = false
  #isClosed = false

  private constructor(
    worker: Worker,
    port: MessagePort,
    shared: SharedArrayBuffer,
    { fingerprint, folder }: DiskWorkerStart["options"],
    log: DiskLog,
  ) {
    this.#worker = worker
    this.#port = port
    this.#signal = new Int32Array(shared, 0, 2)
    this.#level = new Float64Array(shared, BYTES_AT, 1)
    this.fingerprint = fingerprint
    this.#folder = folder
    this.#log = log
  }

  /** Starts the thread and resolves once it has read the journals. @throws KtError where it cannot be started */
  static async open(options: DiskWorkerStart["options"], log: DiskLog): Promise<DiskClient> {
    const worker = new Worker(workerEntry().href, { name: "kt-prefix-cache" })
    const { port1, port2 } = new MessageChannel()
    const shared = new SharedArrayBuffer(SHARED_BYTES)
    const client = new DiskClient(worker, port1, shared, options, log)
    await new Promise<void>((resolve, reject) => {
      const fail = (message: string): void =>
        reject(new KtError(`the prefix cache's thread did not start: ${message}`))
      worker.addEventListener("message", (event: MessageEvent) => {
        const { type, message } = event.data as { type: string; message?: string }
        if (type === "ready") resolve()
        else fail(message ?? type)
      })
      worker.addEventListener("error", (event) => {
        event.preventDefault()
        client.#isOver = true
        fail(event.message)
      })
      const start: DiskWorkerStart = { port: port2, shared, options }
      worker.postMessage(start, [port2 as unknown as Transferable])
    })
    // the process may end without it: what it writes is whole at any instant
    ;(worker as Worker & { unref(): void }).unref()
    return client
  }

  get isWritable(): boolean {
    return !this.#isOver && Atomics.load(this.#signal, IS_WRITER) === 1
  }

  get bytes(): number {
    return this.#level[0] as number
  }

  write(ticket: number, address: number, bytes: number): void {
    this.#post({ type: "write", ticket, address, bytes })
  }

  read(requests: readonly ReadRequest[]): void {
    if (this.#isOver) {
      for (const { ticket } of requests) this.#refused.push({ type: "read", ticket, ok: false })
      return
    }
    if (this.#reads.size === 0) this.#readsSinceMs = performance.now()
    for (const { ticket } of requests) this.#reads.add(ticket)
    this.#post({ type: "read", requests })
  }

  use(segments: readonly number[]): void {
    this.#post({ type: "use", segments })
  }

  clear(): void {
    this.#post({ type: "clear" })
  }

  poll(): DiskEvent[] {
    const events = this.#refused.splice(0)
    const signal = Atomics.load(this.#signal, SIGNAL)
    if (signal !== this.#seen) {
      this.#seen = signal
      for (
        let next = receiveMessageOnPort(this.#port);
        next;
        next = receiveMessageOnPort(this.#port)
      )
        this.#receive(next.message as FromDisk, events)
    }
    if (this.#reads.size > 0 && performance.now() - this.#readsSinceMs > LOST_MS) this.#lose(events)
    return events
  }

  #receive(message: FromDisk, events: DiskEvent[]): void {
    if (message.type === "log") return this.#log(message.level, message.message)
    if (message.type === "closed") return void (this.#isClosed = true)
    if (message.type === "read") {
      this.#reads.delete(message.ticket)
      this.#readsSinceMs = performance.now()
    }
    events.push(message)
  }

  /** Its memory is left to it, since it may yet write there. */
  #lose(events: DiskEvent[]): void {
    this.#isOver = true
    this.#reads.clear()
    this.#log("warning", `${this.#folder}: the prefix cache's disk does not answer and is not used`)
    events.push({ type: "lost" })
  }

  wait(ms: number): void {
    if (this.#refused.length === 0) Atomics.wait(this.#signal, SIGNAL, this.#seen, ms)
  }

  /** Writes what waits and ends the thread. False where it still runs, and may use the memory that it was told of. */
  close(): boolean {
    if (this.#isOver) return false
    this.#post({ type: "close" })
    this.#isOver = true
    const until = performance.now() + CLOSE_MS
    while (!this.#isClosed && performance.now() < until) {
      Atomics.wait(this.#signal, SIGNAL, this.#seen, 100)
      this.poll()
    }
    this.#port.close()
    this.#worker.terminate()
    return this.#isClosed
  }

  #post(message: ToDisk): void {
    if (!this.#isOver) this.#port.postMessage(message)
  }
}

/** In the binary the bundle's root stands for src/, and this code lies in the program's file there or in the engine Worker's. */
function workerEntry(): URL {
  const { url } = import.meta
  if (!Bun.isStandaloneExecutable) return new URL("./disk-worker.ts", url)
  return new URL(`${/\/worker\/[^/]*$/.test(url) ? ".." : "."}/kvcache/disk-worker.ts`, url)
}
