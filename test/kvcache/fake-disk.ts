import { isSound, readHeader, sealRecord } from "../../src/kvcache/block-record.ts"
import type { DiskPlace } from "../../src/kvcache/prefix-cache.ts"
import type {
  DiskEvent,
  DiskTier,
  ReadRequest,
  StoredBlock,
} from "../../src/kvcache/prefix-tiers.ts"
import { nativeView } from "../../src/native/memory.ts"

export interface FakeDiskOptions {
  /** Polls between what is asked for and its answer. */
  readonly delay: number
  /** Each how manyth read finds a damaged record, write is refused, poll drops the oldest segment; 0 = none. */
  readonly badRead: number
  readonly badWrite: number
  readonly dropEvery: number
  readonly headerBytes: number
}

const PER_SEGMENT = 3

/** A disk in memory that is slow and unreliable as told, and keeps its records when another engine opens it. */
export class FakeDisk implements DiskTier {
  readonly fingerprint = "0123456789abcdef0123456789abcdef"
  isWritable = true
  readonly #options: FakeDiskOptions
  readonly #segments = new Map<number, Uint8Array[]>()
  #nextSegment = 0
  #events: { at: number; make: () => DiskEvent | undefined }[] = []
  #now = 0
  #reads = 0
  #writes = 0

  constructor(options: FakeDiskOptions) {
    this.#options = options
  }

  get bytes(): number {
    let bytes = 0
    for (const records of this.#segments.values())
      for (const record of records) bytes += record.length
    return bytes
  }

  /** As a new process finds it. */
  reopen(): void {
    this.#events = []
    const blocks: StoredBlock[] = []
    for (const [segment, records] of this.#segments) {
      for (const [i, record] of records.entries()) {
        const header = readHeader(record, this.#options.headerBytes)
        if (header === undefined) continue
        blocks.push({
          ...header,
          place: { segment, offset: i * record.length, bytes: record.length },
        })
      }
    }
    this.#events.push({ at: 0, make: () => ({ type: "stored", blocks }) })
  }

  write(ticket: number, address: number, bytes: number): void {
    this.#later(() => {
      const { badWrite } = this.#options
      if (badWrite > 0 && ++this.#writes % badWrite === 0)
        return { type: "written", ticket, place: undefined }
      const record = new Uint8Array(nativeView(address, bytes)).slice()
      let records = this.#segments.get(this.#nextSegment)
      if (records === undefined || records.length === PER_SEGMENT)
        this.#segments.set(++this.#nextSegment, (records = []))
      const offset = records.length * bytes
      sealRecord(record, offset)
      records.push(record)
      const place: DiskPlace = { segment: this.#nextSegment, offset, bytes }
      return { type: "written", ticket, place }
    })
  }

  read(requests: readonly ReadRequest[]): void {
    for (const { ticket, kind, place, digest, address } of requests) {
      this.#later(() => {
        const record = this.#segments.get(place.segment)?.[place.offset / place.bytes]
        if (record === undefined) return { type: "read", ticket, ok: false }
        const target = new Uint8Array(nativeView(address, place.bytes))
        target.set(record)
        const { badRead, headerBytes } = this.#options
        const isBad = badRead > 0 && ++this.#reads % badRead === 0
        if (isBad) target[this.#reads % (headerBytes + 4)] = 0x5a
        const ok = isSound(target, headerBytes, { kind, digest, offset: place.offset })
        return { type: "read", ticket, ok }
      })
    }
  }

  use(): void {}

  clear(): void {
    const segments = [...this.#segments.keys()]
    this.#later(() => {
      for (const segment of segments) this.#segments.delete(segment)
      return { type: "dropped", segments }
    })
  }

  poll(): DiskEvent[] {
    this.#now++
    const { dropEvery } = this.#options
    if (dropEvery > 0 && this.#now % dropEvery === 0) {
      const [oldest] = this.#segments.keys()
      if (oldest !== undefined && oldest !== this.#nextSegment) {
        this.#segments.delete(oldest)
        this.#events.push({ at: 0, make: () => ({ type: "dropped", segments: [oldest] }) })
      }
    }
    const due = this.#events.filter(({ at }) => at <= this.#now)
    this.#events = this.#events.filter(({ at }) => at > this.#now)
    return due.map(({ make }) => make()).filter((event) => event !== undefined)
  }

  wait(): void {}

  #later(make: () => DiskEvent | undefined): void {
    this.#events.push({ at: this.#now + this.#options.delay, make })
  }
}
