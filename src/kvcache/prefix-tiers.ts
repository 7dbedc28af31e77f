import {
  digestOf,
  holdsTokensOf,
  KV,
  recordBytes,
  type RecordHeader,
  type RecordKind,
  STATE,
  writeHeader,
} from "./block-record.ts"
import { HostTier } from "./host-tier.ts"
import { type CachedBlock, type DiskPlace, isOnAnyTier, type PrefixCache } from "./prefix-cache.ts"

/** Memory of the device in equal pieces: KV pages, or slots of states. */
export interface PieceMemory {
  readonly pieceBytes: number
  copyOut(index: number, to: Uint8Array): void
  copyIn(index: number, from: Uint8Array): void
}

/** A block that the disk has. */
export type StoredBlock = Omit<RecordHeader, "offset" | "headerBytes"> & {
  readonly place: DiskPlace
}

/** A record that is to be read into host memory. */
export interface ReadRequest {
  readonly ticket: number
  readonly kind: RecordKind
  readonly place: DiskPlace
  readonly digest: string
  readonly address: number
}

export type DiskEvent =
  /** Blocks that another process wrote, or that were there at the start; parents first. */
  | { readonly type: "stored"; readonly blocks: readonly StoredBlock[] }
  | { readonly type: "written"; readonly ticket: number; readonly place: DiskPlace | undefined }
  | { readonly type: "read"; readonly ticket: number; readonly ok: boolean }
  | { readonly type: "dropped"; readonly segments: readonly number[] }
  /** The disk hangs: nothing that was asked of it will be answered. */
  | { readonly type: "lost" }

/** The disk, seen from the step loop: nothing here waits but wait(). */
export interface DiskTier {
  readonly fingerprint: string
  /** False where another process writes or the folder cannot be written. */
  readonly isWritable: boolean
  readonly bytes: number
  write(ticket: number, address: number, bytes: number): void
  read(requests: readonly ReadRequest[]): void
  /** Segments that were used, so that others go first. */
  use(segments: readonly number[]): void
  clear(): void
  poll(): DiskEvent[]
  /** Sleeps until there may be an event, `ms` at most. */
  wait(ms: number): void
}

export interface PrefixTiersOptions {
  readonly pages: PieceMemory
  /** For models whose layers keep a state per sequence. */
  readonly states?: PieceMemory | undefined
  /** Makes host memory of so many slots as fit into its share; told the bytes of a slot. */
  readonly host: (
    slotBytes: number,
    kind: RecordKind,
    onEvict: (block: CachedBlock) => void,
  ) => HostTier
  readonly disk?: DiskTier | undefined
  /** Bytes before the contents of a slot: see headerBytes() */
  readonly headerBytes: number
}

export interface TierStats {
  readonly hostBytes: number
  readonly hostBlocks: number
  readonly diskBytes: number
  readonly diskBlocks: number
  /** Blocks brought back to the device, by where they were. */
  readonly hostHits: number
  readonly diskHits: number
  readonly diskWrites: number
  /** Blocks that were not written since too many waited. */
  readonly diskDrops: number
  /** Records that were damaged or gone when they were read. */
  readonly diskFailures: number
}

/** Bytes that may wait for the disk; what comes while it is full is not written. */
export const MAX_WRITE_QUEUE_BYTES = 256 * 2 ** 20

/** One kind of record: what differs between pages and states. */
interface Kind {
  readonly kind: RecordKind
  readonly memory: PieceMemory
  readonly tier: HostTier
  readonly slotBytes: number
  slot(block: CachedBlock): number
  setSlot(block: CachedBlock, slot: number): void
  place(block: CachedBlock): DiskPlace | undefined
  setPlace(block: CachedBlock, place: DiskPlace | undefined): void
  device(block: CachedBlock): number
  /** Blocks whose slot is on its way to the disk, or is being read from it. */
  readonly writing: Map<CachedBlock, number>
  readonly reading: Map<CachedBlock, number>
}

interface Ticket {
  readonly of: Kind
  readonly block: CachedBlock
  readonly slot: number
}

/**
 * What keeps blocks that the device has no room for: host memory, and below it the disk. A block's page is copied to host
 * memory when it is overwritten; with a disk it is copied when it is complete, and written from there in the background. Blocks
 * come back through host memory (`request`, then `load`).
 */
export class PrefixTiers {
  readonly #kv: Kind
  readonly #states: Kind | undefined
  readonly #disk: DiskTier | undefined
  readonly #headerBytes: number
  readonly #tickets = new Map<number, Ticket>()
  #nextTicket = 1
  #writingBytes = 0
  #cache: PrefixCache | undefined
  /** What the disk has, by name, and by segment so that a segment can be forgotten. */
  readonly #byDigest = new Map<string, CachedBlock>()
  readonly #bySegment = new Map<number, Set<CachedBlock>>()
  /** What the disk has of which the parent, by name, is not known. */
  readonly #orphans = new Map<string, StoredBlock[]>()
  /** Blocks in host memory that came from the disk and were not used yet. */
  readonly #fromDisk = new Set<CachedBlock>()
  #hostHits = 0
  #diskHits = 0
  #diskWrites = 0
  #diskDrops = 0
  #diskFailures = 0

  constructor(options: PrefixTiersOptions) {
    const { pages, states, host, disk, headerBytes } = options
    this.#disk = disk
    this.#headerBytes = headerBytes
    const slotBytes = recordBytes(headerBytes, pages.pieceBytes)
    this.#kv = {
      kind: KV,
      memory: pages,
      slotBytes,
      tier: host(slotBytes, KV, (block) => this.#evicted(this.#kv, block)),
      slot: (block) => block.host,
      setSlot: (block, slot) => (block.host = slot),
      place: (block) => block.disk,
      setPlace: (block, place) => (block.disk = place),
      device: (block) => block.page,
      writing: new Map(),
      reading: new Map(),
    }
    if (states === undefined) return
    const stateBytes = recordBytes(headerBytes, states.pieceBytes)
    const kind: Kind = {
      kind: STATE,
      memory: states,
      slotBytes: stateBytes,
      tier: host(stateBytes, STATE, (block) => this.#evicted(kind, block)),
      slot: (block) => block.hostState,
      setSlot: (block, slot) => (block.hostState = slot),
      place: (block) => block.diskState,
      setPlace: (block, place) => (block.diskState = place),
      device: (block) => block.state,
      writing: new Map(),
      reading: new Map(),
    }
    this.#states = kind
  }

  /** The cache whose blocks these are. */
  attach(cache: PrefixCache): void {
    this.#cache = cache
    this.poll()
  }

  stats(): TierStats {
    this.poll()
    return {
      hostBytes: this.#kv.tier.bytesUsed + (this.#states?.tier.bytesUsed ?? 0),
      hostBlocks: this.#kv.tier.numUsed,
      diskBytes: this.#disk?.bytes ?? 0,
      diskBlocks: this.#byDigest.size,
      hostHits: this.#hostHits,
      diskHits: this.#diskHits,
      diskWrites: this.#diskWrites,
      diskDrops: this.#diskDrops,
      diskFailures: this.#diskFailures,
    }
  }

  /** The block's page is about to be overwritten: host memory keeps a copy. */
  demote(block: CachedBlock): void {
    this.#keep(this.#kv, block)
  }

  /** The same for the slot of its state. */
  demoteState(block: CachedBlock): void {
    if (this.#states !== undefined) this.#keep(this.#states, block)
  }

  #keep(of: Kind, block: CachedBlock): void {
    const slot = of.slot(block)
    if (slot >= 0) return of.tier.use(slot, false)
    if (this.#copyOut(of, block) >= 0) of.tier.unpin(of.slot(block))
  }

  /** Copies from the device to a slot, which is pinned; -1 where there is none. */
  #copyOut(of: Kind, block: CachedBlock): number {
    const slot = of.tier.take(block)
    if (slot === undefined) return -1
    of.setSlot(block, slot)
    of.memory.copyOut(of.device(block), this.#contents(of, slot))
    return slot
  }

  #contents(of: Kind, slot: number): Uint8Array {
    const start = this.#headerBytes
    return of.tier.view(slot).subarray(start, start + of.memory.pieceBytes)
  }

  /** Whether a block's page (or state) can be copied to the device now. */
  isLoaded(block: CachedBlock): boolean {
    return isLoaded(this.#kv, block)
  }

  isStateLoaded(block: CachedBlock): boolean {
    return this.#states !== undefined && isLoaded(this.#states, block)
  }

  /** Copies what host memory has of a block's page; false where it has nothing. */
  copyOf(block: CachedBlock, to: Uint8Array): boolean {
    if (!isLoaded(this.#kv, block)) return false
    to.set(this.#contents(this.#kv, block.host))
    return true
  }

  /** Asks the disk for what host memory lacks, as far as slots are free. */
  request(blocks: readonly CachedBlock[], states: readonly CachedBlock[]): void {
    const requests: ReadRequest[] = []
    for (const block of blocks) if (!this.#request(this.#kv, block, requests)) break
    if (this.#states !== undefined)
      for (const block of states) this.#request(this.#states, block, requests)
    if (requests.length > 0) this.#disk?.read(requests)
  }

  /** False when no slot is free. */
  #request(of: Kind, block: CachedBlock, requests: ReadRequest[]): boolean {
    const place = of.place(block)
    if (of.slot(block) >= 0 || place === undefined || of.reading.has(block)) return true
    const slot = of.tier.take(block)
    if (slot === undefined) return false
    const ticket = this.#nextTicket++
    this.#tickets.set(ticket, { of, block, slot })
    of.reading.set(block, slot)
    const digest = this.#digest(block)
    requests.push({ ticket, kind: of.kind, place, digest, address: of.tier.address(slot) })
    return true
  }

  /** Copies a loaded block to its page on the device. */
  load(block: CachedBlock, page: number): void {
    this.#copyIn(this.#kv, block, page)
    if (this.#fromDisk.delete(block)) this.#diskHits++
    else this.#hostHits++
  }

  loadState(block: CachedBlock, slot: number): void {
    if (this.#states !== undefined) this.#copyIn(this.#states, block, slot)
  }

  #copyIn(of: Kind, block: CachedBlock, to: number): void {
    const slot = of.slot(block)
    of.memory.copyIn(to, this.#contents(of, slot))
    of.tier.use(slot, true)
  }

  /** Keeps a block's copies in host memory where they are, or ends that. */
  pin(block: CachedBlock): void {
    this.#kv.tier.pin(block.host)
  }

  unpin(block: CachedBlock): void {
    this.#kv.tier.unpin(block.host)
  }

  pinState(block: CachedBlock): void {
    this.#states?.tier.pin(block.hostState)
  }

  unpinState(block: CachedBlock): void {
    this.#states?.tier.unpin(block.hostState)
  }

  /** Of a chain that was found: its segments are in use, and what could not be written before is worth it now. */
  used(blocks: readonly CachedBlock[]): void {
    const last = blocks.at(-1)
    if (this.#disk === undefined || last === undefined) return
    this.save(last)
    const segments = new Set<number>()
    for (const { disk, diskState } of blocks) {
      if (disk !== undefined) segments.add(disk.segment)
      if (diskState !== undefined) segments.add(diskState.segment)
    }
    if (segments.size > 0) this.#disk.use([...segments])
  }

  /** A block (and its state, if the device has one) is complete: it is written behind, its ancestors first. */
  save(block: CachedBlock): void {
    if (this.#disk?.isWritable !== true || block.isGone) return
    this.poll()
    const missing: CachedBlock[] = []
    for (let at: CachedBlock | undefined = block; at !== undefined; at = at.parent) {
      if (at.disk !== undefined || this.#kv.writing.has(at)) break
      missing.push(at)
    }
    for (let at = missing.pop(); at !== undefined; at = missing.pop())
      if (!this.#write(this.#kv, at)) return
    const states = this.#states
    if (states !== undefined && block.state >= 0 && block.diskState === undefined)
      if (!states.writing.has(block)) this.#write(states, block)
  }

  /** False when it was not put into the queue: nothing below it may follow. */
  #write(of: Kind, block: CachedBlock): boolean {
    const isFull =
      this.#writingBytes > 0 && this.#writingBytes + of.slotBytes > MAX_WRITE_QUEUE_BYTES
    // half of the memory stays free for what leaves the device and what is read
    if (isFull || 2 * (of.writing.size + 1) > Math.max(2, of.tier.slots)) {
      this.#diskDrops++
      return false
    }
    let slot = of.slot(block)
    if (slot >= 0) of.tier.pin(slot)
    else if (of.device(block) >= 0) slot = this.#copyOut(of, block)
    if (slot < 0) return false
    const { tokens, ropeKeys } = block
    const fingerprint = this.#disk?.fingerprint ?? ""
    writeHeader(of.tier.view(slot), {
      kind: of.kind,
      headerBytes: this.#headerBytes,
      payloadBytes: of.memory.pieceBytes,
      digest: this.#digest(block),
      parent: block.parent === undefined ? fingerprint : this.#digest(block.parent),
      tokens,
      ropeKeys,
    })
    const ticket = this.#nextTicket++
    this.#tickets.set(ticket, { of, block, slot })
    of.writing.set(block, slot)
    this.#writingBytes += of.slotBytes
    this.#disk?.write(ticket, of.tier.address(slot), of.slotBytes)
    return true
  }

  /** Takes note of what the disk has done. */
  poll(): void {
    for (const event of this.#disk?.poll() ?? []) {
      if (event.type === "stored") for (const block of event.blocks) this.#adopt(block)
      else if (event.type === "dropped") event.segments.forEach((id) => this.#dropSegment(id))
      else if (event.type === "lost") this.#lost()
      else if (event.type === "written") this.#written(event.ticket, event.place)
      else this.#read(event.ticket, event.ok)
    }
  }

  wait(ms: number): void {
    this.#disk?.wait(ms)
  }

  #written(ticket: number, place: DiskPlace | undefined): void {
    const entry = this.#tickets.get(ticket)
    if (entry === undefined) return
    this.#tickets.delete(ticket)
    const { of, block, slot } = entry
    of.writing.delete(block)
    this.#writingBytes -= of.slotBytes
    if (of.slot(block) === slot && of.device(block) >= 0) of.tier.use(slot, true)
    of.tier.unpin(slot)
    if (place === undefined) return
    this.#diskWrites++
    if (block.isGone) return
    this.#place(of, block, place)
    if (of.kind === KV)
      for (const stored of this.#takeOrphans(this.#digest(block))) this.#adopt(stored)
  }

  #read(ticket: number, ok: boolean): void {
    const entry = this.#tickets.get(ticket)
    if (entry === undefined) return
    this.#tickets.delete(ticket)
    const { of, block, slot } = entry
    of.reading.delete(block)
    const isRight = ok && holdsTokensOf(of.tier.view(slot), this.#headerBytes, block)
    if (isRight && !block.isGone && of.slot(block) < 0) {
      of.setSlot(block, slot)
      if (of.kind === KV) this.#fromDisk.add(block)
      return of.tier.unpin(slot)
    }
    of.tier.forget(slot)
    of.tier.unpin(slot)
    if (isRight || block.isGone) return
    this.#diskFailures++
    this.#unplace(of, block)
  }

  /** Slots that the disk was to read or write stay taken: it may use them at any time. */
  #lost(): void {
    for (const { of, block } of this.#tickets.values()) {
      of.reading.delete(block)
      of.writing.delete(block)
    }
    this.#tickets.clear()
    for (const id of [...this.#bySegment.keys()]) this.#dropSegment(id)
  }

  /** A block whose parent (or a state whose block) is not known yet waits for it. */
  #adopt(stored: StoredBlock): void {
    for (let next: StoredBlock | undefined, todo = [stored]; (next = todo.pop());) {
      const isAdopted = this.#adoptOne(next)
      if (!isAdopted || next.kind !== KV) continue
      todo.push(...this.#takeOrphans(next.digest))
    }
  }

  #takeOrphans(digest: string): StoredBlock[] {
    const waiting = this.#orphans.get(digest)
    this.#orphans.delete(digest)
    return waiting ?? []
  }

  #await(digest: string, stored: StoredBlock): void {
    const waiting = this.#orphans.get(digest)
    if (waiting === undefined) this.#orphans.set(digest, [stored])
    else waiting.push(stored)
  }

  #adoptOne(stored: StoredBlock): boolean {
    const { kind, digest, parent: parentDigest, tokens, ropeKeys, payloadBytes, place } = stored
    const of = kind === KV ? this.#kv : this.#states
    const { fingerprint = "" } = this.#disk ?? {}
    if (of === undefined || payloadBytes !== of.memory.pieceBytes) return false
    if (digestOf(parentDigest, tokens, ropeKeys) !== digest) return false
    const isFirst = parentDigest === fingerprint
    const parent = isFirst ? undefined : this.#byDigest.get(parentDigest)
    if (!isFirst && parent === undefined) {
      this.#await(parentDigest, stored)
      return false
    }
    const block =
      kind === KV ? this.#cache?.insert(parent, tokens, ropeKeys, -1) : this.#byDigest.get(digest)
    if (block === undefined && kind === STATE) this.#await(digest, stored)
    if (block === undefined) return false
    // a later record is there because the earlier one was damaged or lost its beginning
    block.digest = digest
    this.#place(of, block, place)
    return true
  }

  #place(of: Kind, block: CachedBlock, place: DiskPlace): void {
    of.setPlace(block, place)
    if (of.kind === KV) this.#byDigest.set(this.#digest(block), block)
    let blocks = this.#bySegment.get(place.segment)
    if (blocks === undefined) this.#bySegment.set(place.segment, (blocks = new Set()))
    blocks.add(block)
  }

  /** The disk does not have it any more. */
  #unplace(of: Kind, block: CachedBlock): void {
    of.setPlace(block, undefined)
    if (of.kind === KV && block.digest !== undefined) {
      if (this.#byDigest.get(block.digest) === block) this.#byDigest.delete(block.digest)
      if (!isOnAnyTier(block) && !block.isGone) this.#cache?.remove(block)
    }
  }

  #dropSegment(id: number): void {
    for (const [digest, waiting] of this.#orphans) {
      const left = waiting.filter(({ place }) => place.segment !== id)
      if (left.length === 0) this.#orphans.delete(digest)
      else if (left.length < waiting.length) this.#orphans.set(digest, left)
    }
    const blocks = this.#bySegment.get(id)
    this.#bySegment.delete(id)
    for (const block of blocks ?? []) {
      if (block.diskState?.segment === id && this.#states) this.#unplace(this.#states, block)
      if (block.disk?.segment === id) this.#unplace(this.#kv, block)
    }
  }

  /** Host memory gave up a copy. */
  #evicted(of: Kind, block: CachedBlock): void {
    of.setSlot(block, -1)
    if (of.kind !== KV) return
    this.#fromDisk.delete(block)
    if (!isOnAnyTier(block) && !block.isGone) this.#cache?.remove(block)
  }

  /** The block cannot be found any more: nothing of it is kept. */
  forget(block: CachedBlock): void {
    for (const of of [this.#kv, this.#states]) {
      if (of === undefined) continue
      const slot = of.slot(block)
      if (slot >= 0) of.tier.forget(slot)
      of.setSlot(block, -1)
      if (of.place(block) !== undefined) this.#unplace(of, block)
    }
    this.#fromDisk.delete(block)
  }

  /** Empties the disk; blocks in host memory go with the cache's own. */
  clearDisk(): void {
    this.#disk?.clear()
  }

  #digest(block: CachedBlock): string {
    if (block.digest !== undefined) return block.digest
    const chain: CachedBlock[] = []
    let at: CachedBlock | undefined = block
    for (; at !== undefined && at.digest === undefined; at = at.parent) chain.push(at)
    let parent = at?.digest ?? this.#disk?.fingerprint ?? ""
    for (let next = chain.pop(); next !== undefined; next = chain.pop())
      parent = next.digest = digestOf(parent, next.tokens, next.ropeKeys)
    return parent
  }
}

function isLoaded(of: Kind, block: CachedBlock): boolean {
  return of.slot(block) >= 0
}
