import type { MessagePort } from "node:worker_threads"

import { nativeView } from "../native/memory.ts"
import { DiskStore, type DiskStoreOptions } from "./disk-store.ts"
import type { DiskEvent, ReadRequest } from "./prefix-tiers.ts"
import { codeOf } from "./store-files.ts"

/**
 * The thread that reads and writes the disk tier's files. It is told addresses of host memory, which stays where it is until
 * each answer; the step loop never waits for it.
 */

/** What a store is opened with, on the Worker's own channel. */
export interface DiskWorkerStart {
  readonly port: MessagePort
  readonly shared: SharedArrayBuffer
  readonly options: Omit<DiskStoreOptions, "files">
}

export type ToDisk =
  | {
      readonly type: "write"
      readonly ticket: number
      readonly address: number
      readonly bytes: number
    }
  | { readonly type: "read"; readonly requests: readonly ReadRequest[] }
  | { readonly type: "use"; readonly segments: readonly number[] }
  | { readonly type: "clear" }
  | { readonly type: "close" }

export type FromDisk =
  | DiskEvent
  | { readonly type: "log"; readonly level: "info" | "warning"; readonly message: string }
  | { readonly type: "closed" }

/** Words of the shared memory: a count of messages, whether this process writes; then bytes of the store (f64). */
export const SIGNAL = 0
export const IS_WRITER = 1
export const BYTES_AT = 8
export const SHARED_BYTES = 16

/** Records that one append() writes, in bytes: the disk is asked to keep them once for all. */
const BATCH_BYTES = 16 * 2 ** 20
/** Records next to each other are read at once, up to this. */
const READ_BYTES = 64 * 2 ** 20
/** Entries a message. */
const STORED_CHUNK = 4096
/** How often what others write is looked for, and whether this one may write. */
const REFRESH_MS = 1000
/** After a failed write. */
const RETRY_MS = 60_000

type Write = Extract<ToDisk, { type: "write" }>

class StoreServer {
  readonly #port: MessagePort
  readonly #signal: Int32Array
  readonly #level: Float64Array
  readonly #store: DiskStore
  readonly #folder: string
  readonly #queue: Write[] = []
  #isWriting = false
  /** Appends, clears and the end, one after the other. */
  #chain: Promise<void> = Promise.resolve()
  #pausedUntilMs = 0
  #hasWarned = false
  readonly #timer: ReturnType<typeof setInterval>

  constructor({ port, shared, options }: DiskWorkerStart) {
    this.#port = port
    this.#signal = new Int32Array(shared, 0, 2)
    this.#level = new Float64Array(shared, BYTES_AT, 1)
    this.#folder = options.folder
    this.#store = new DiskStore(options)
    this.#becomeWriter()
    if (!this.#store.isWriter && !this.#hasWarned)
      this.#log("info", `${this.#folder}: another server writes the prefix cache, this one reads`)
    this.#refresh()
    this.#timer = setInterval(() => this.#tick(), REFRESH_MS)
    port.onmessage = (event: { data: unknown }): void => this.#receive(event.data as ToDisk)
  }

  #receive(message: ToDisk): void {
    switch (message.type) {
      case "read":
        return this.#read(message.requests)
      case "write":
        this.#queue.push(message)
        if (!this.#isWriting) this.#run(() => this.#drain())
        return
      case "use":
        return this.#store.use(message.segments)
      case "clear":
        for (const { ticket } of this.#queue.splice(0))
          this.#post({ type: "written", ticket, place: undefined })
        return this.#run(async () => {
          await this.#store.clear()
          this.#tellDropped()
        })
      case "close":
        return this.#run(() => this.#close())
    }
  }

  #run(action: () => Promise<void>): void {
    this.#chain = this.#chain.then(action).catch((error: unknown) => this.#fail(error))
  }

  async #drain(): Promise<void> {
    this.#isWriting = true
    while (this.#queue.length > 0) {
      const batch: Write[] = []
      for (let bytes = 0; bytes < BATCH_BYTES;) {
        const next = this.#queue.shift()
        if (next === undefined) break
        batch.push(next)
        bytes += next.bytes
      }
      const places = await this.#append(batch)
      batch.forEach(({ ticket }, i) => this.#post({ type: "written", ticket, place: places[i] }))
      this.#tellDropped()
    }
    this.#isWriting = false
  }

  async #append(batch: readonly Write[]): Promise<Awaited<ReturnType<DiskStore["append"]>>> {
    if (!this.#store.isWriter || Date.now() < this.#pausedUntilMs) return []
    try {
      return await this.#store.append(
        batch.map(({ address, bytes }) => new Uint8Array(nativeView(address, bytes))),
      )
    } catch (error) {
      this.#fail(error)
      return []
    }
  }

  /** Long reads where records and their targets follow each other. */
  #read(requests: readonly ReadRequest[]): void {
    for (let start = 0; start < requests.length;) {
      const first = requests[start] as ReadRequest
      let end = start + 1
      let bytes = first.place.bytes
      for (; end < requests.length; end++) {
        const { place, address } = requests[end] as ReadRequest
        const follows =
          place.segment === first.place.segment &&
          place.offset === first.place.offset + bytes &&
          address === first.address + bytes
        if (!follows || bytes + place.bytes > READ_BYTES) break
        bytes += place.bytes
      }
      const into = new Uint8Array(nativeView(first.address, bytes))
      const isThere = this.#store.readRaw(first.place.segment, first.place.offset, into)
      for (const request of requests.slice(start, end)) {
        const { ticket, place, address } = request
        const at = address - first.address
        const record = into.subarray(at, at + place.bytes)
        const ok = isThere && this.#store.isSound(place, request, record)
        this.#post({ type: "read", ticket, ok })
      }
      start = end
    }
  }

  #tick(): void {
    this.#run(async () => {
      if (this.#store.isWriter) {
        if (this.#pausedUntilMs < Date.now()) await this.#store.makeRoom(0)
        this.#tellDropped()
      } else {
        this.#becomeWriter()
        this.#refresh()
      }
    })
  }

  #becomeWriter(): void {
    if (Date.now() < this.#pausedUntilMs) return
    try {
      this.#store.becomeWriter()
    } catch (error) {
      this.#fail(error)
    }
    Atomics.store(this.#signal, IS_WRITER, this.#store.isWriter ? 1 : 0)
  }

  #refresh(): void {
    const { stored, dropped } = this.#store.refresh()
    for (let i = 0; i < stored.length; i += STORED_CHUNK)
      this.#post({ type: "stored", blocks: stored.slice(i, i + STORED_CHUNK) })
    if (dropped.length > 0) this.#post({ type: "dropped", segments: dropped })
    this.#level[0] = this.#store.bytes
  }

  #tellDropped(): void {
    const segments = this.#store.takeDropped()
    if (segments.length > 0) this.#post({ type: "dropped", segments })
    this.#level[0] = this.#store.bytes
  }

  /** One warning; then it is tried again from time to time. */
  #fail(error: unknown): void {
    this.#pausedUntilMs = Date.now() + RETRY_MS
    if (this.#hasWarned) return
    this.#hasWarned = true
    const reason = error instanceof Error ? error.message : String(error)
    const code = codeOf(error)
    const what = code === "" || reason.includes(code) ? reason : `${code}: ${reason}`
    this.#log("warning", `${this.#folder}: the prefix cache cannot be written for now (${what})`)
  }

  async #close(): Promise<void> {
    clearInterval(this.#timer)
    try {
      await this.#store.close()
    } finally {
      this.#post({ type: "closed" })
      this.#port.close()
    }
  }

  #log(level: "info" | "warning", message: string): void {
    this.#post({ type: "log", level, message })
  }

  #post(message: FromDisk): void {
    this.#port.postMessage(message)
    Atomics.add(this.#signal, SIGNAL, 1)
    Atomics.notify(this.#signal, SIGNAL)
  }
}

declare const self: Worker

// set before anything is awaited: messages that come before a handler exists are lost
self.onmessage = (event: MessageEvent): void => {
  try {
    new StoreServer(event.data as DiskWorkerStart)
    postMessage({ type: "ready" })
  } catch (error) {
    postMessage({ type: "failed", message: error instanceof Error ? error.message : String(error) })
  }
}
