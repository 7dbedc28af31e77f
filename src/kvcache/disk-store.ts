import { join } from "node:path"

import { isSound, readHeader, recordBytes, type RecordKind, sealRecord } from "./block-record.ts"
import {
  ABOUT_FILE,
  folderParts,
  type FolderSegment,
  lockPart,
  nextSegmentName,
  partFolder,
  removeSegment,
  segmentNames,
} from "./disk-folder.ts"
import type { DiskPlace } from "./prefix-cache.ts"
import type { StoredBlock } from "./prefix-tiers.ts"
import { type StoreFiles, type StoreLock, SYSTEM_FILES } from "./store-files.ts"

export interface DiskStoreOptions {
  /** The cache folder, shared by models and by servers. */
  readonly folder: string
  /** Of model, types and rope: 32 hexadecimal digits. */
  readonly fingerprint: string
  /** Bytes of the whole folder. */
  readonly limitBytes: number
  readonly headerBytes: number
  /** What the fingerprint stands for, for people who list the folder. */
  readonly about: Readonly<Record<string, unknown>>
  readonly files?: StoreFiles
}

interface Segment {
  readonly id: number
  readonly name: string
  readonly path: string
  dataBytes: number
  indexBytes: number
  usedMs: number
  touchedMs: number
}

/** The segment that is appended to. */
interface Active {
  readonly segment: Segment
  readonly data: number
  readonly index: number
  /** Bytes of records that the journal knows. */
  known: number
}

/** Other models' parts of the folder: those that somebody writes, and segments of those that nobody does. */
interface Others {
  readonly atMs: number
  live: number
  liveBytes: number
  readonly idle: FolderSegment[]
  idleBytes: number
}

/** Files of this size hold many blocks, so that a long prompt is a few long reads; whole ones are given up. */
const SEGMENT_BYTES = 64 * 2 ** 20
/** A limit is divided among at least so many segments. */
const MIN_SEGMENTS = 8
/** Use is written down at most this often. */
const TOUCH_MS = 60_000
/** What other models take is looked up at most this often. */
const OTHERS_MS = 5_000
const MAX_OPEN_FILES = 64

/**
 * Blocks on disk, within a number of bytes. Records are appended to segment files, and become known by an entry (the record's
 * header) in the segment's journal, which is written after the record is on the disk: a kill at any instant leaves whole
 * entries of whole records. Both carry checksums, which are checked whenever they are read. No byte of a segment is ever
 * written twice and names are never used again, so any number of processes may read; the one that holds the lock writes, and
 * removes the least recently used segments.
 */
export class DiskStore {
  readonly #files: StoreFiles
  readonly #options: DiskStoreOptions
  readonly #part: string
  readonly #segments = new Map<number, Segment>()
  readonly #byName = new Map<string, Segment>()
  readonly #readers = new Map<number, number>()
  #nextId = 1
  #lock: StoreLock | undefined
  #active: Active | undefined
  /** Headers of records that are written but not in the journal. */
  #pending: Uint8Array[] = []
  #bytes = 0
  #others: Others | undefined
  /** Segments that went since they were last told. */
  #dropped: number[] = []

  constructor(options: DiskStoreOptions) {
    this.#options = options
    this.#files = options.files ?? SYSTEM_FILES
    this.#part = partFolder(options.folder, options.fingerprint)
  }

  get isWriter(): boolean {
    return this.#lock !== undefined
  }

  /** Of this model's segments. */
  get bytes(): number {
    return this.#bytes
  }

  get #segmentBytes(): number {
    return Math.min(SEGMENT_BYTES, Math.floor(this.#options.limitBytes / MIN_SEGMENTS))
  }

  /**
   * Becomes the one that writes, if nobody else does. Leftovers of one that was killed are removed.
   *
   * @throws the system's error where the folder cannot be written
   */
  becomeWriter(): boolean {
    if (this.#lock !== undefined) return true
    const files = this.#files
    files.makeFolder(this.#part)
    const lock = lockPart(files, this.#options.folder, this.#options.fingerprint)
    if (lock === undefined) return false
    try {
      const { orphans } = segmentNames(files, this.#part)
      for (const name of orphans) removeSegment(files, join(this.#part, name))
      files.replace(join(this.#part, ABOUT_FILE), JSON.stringify(this.#options.about, null, 2))
    } catch (error) {
      lock.release()
      throw error
    }
    this.#lock = lock
    return true
  }

  /** What others have added or removed since the last time; at first, everything. Parents come before their blocks, mostly. */
  refresh(): { readonly stored: StoredBlock[]; readonly dropped: number[] } {
    const stored: StoredBlock[] = []
    const { names } = segmentNames(this.#files, this.#part)
    const present = new Set(names)
    for (const segment of this.#byName.values()) {
      if (!present.has(segment.name)) this.#forget(segment)
    }
    for (const name of names) {
      const known = this.#byName.get(name)
      if (known !== undefined && known === this.#active?.segment) continue
      try {
        this.#readJournal(known ?? this.#add(name), stored)
      } catch {
        // it went while it was read: the next time it is not in the list
      }
    }
    return { stored, dropped: this.#dropped.splice(0) }
  }

  #add(name: string): Segment {
    const path = join(this.#part, name)
    const { modifiedMs } = this.#files.stat(`${path}.index`)
    const times = { usedMs: modifiedMs, touchedMs: modifiedMs }
    const segment = { id: this.#nextId++, name, path, dataBytes: 0, indexBytes: 0, ...times }
    this.#segments.set(segment.id, segment)
    this.#byName.set(name, segment)
    return segment
  }

  #readJournal(segment: Segment, into: StoredBlock[]): void {
    const { headerBytes } = this.#options
    const files = this.#files
    const indexBytes = files.stat(`${segment.path}.index`).bytes
    const dataBytes = files.stat(`${segment.path}.data`).bytes
    this.#bytes += dataBytes - segment.dataBytes
    segment.dataBytes = dataBytes
    const bytes = new Uint8Array(Math.max(0, indexBytes - segment.indexBytes))
    if (bytes.length < headerBytes) return
    const fd = files.open(`${segment.path}.index`)
    let length = 0
    try {
      length = files.read(fd, bytes, segment.indexBytes)
    } finally {
      files.close(fd)
    }
    let end = 0
    for (let at = 0; at + headerBytes <= length; at += headerBytes) {
      const header = readHeader(bytes.subarray(at, at + headerBytes), headerBytes)
      // the last entry may still be on its way; a damaged one before it is passed over
      if (header === undefined) continue
      end = at + headerBytes
      const size = recordBytes(headerBytes, header.payloadBytes)
      if (header.offset + size > dataBytes) continue
      const place = { segment: segment.id, offset: header.offset, bytes: size }
      into.push({ ...header, place })
    }
    segment.indexBytes += end
    this.#bytes += end
  }

  /**
   * Writes records, whose headers it completes; resolves when they are known to the next start. Undefined for those that the
   * limit leaves no room for.
   *
   * @throws the system's error; then none of those that were not on the disk is known, and the store can be used on
   */
  async append(records: readonly Uint8Array[]): Promise<(DiskPlace | undefined)[]> {
    const places: (DiskPlace | undefined)[] = []
    try {
      for (const record of records) places.push(await this.#write(record))
      await this.#commit()
      return places
    } catch (error) {
      this.#abandon()
      throw error
    }
  }

  async #write(record: Uint8Array): Promise<DiskPlace | undefined> {
    const size = record.length + this.#options.headerBytes
    const active = this.#active?.segment
    if (active !== undefined && active.dataBytes > 0) {
      const isFull = active.dataBytes + record.length > this.#segmentBytes
      if (isFull) await this.#seal()
    }
    if (!(await this.makeRoom(size))) return undefined
    const { segment, data } = this.#active ?? this.#create()
    const offset = segment.dataBytes
    const header = sealRecord(record, offset)
    this.#files.write(data, record, offset)
    segment.dataBytes += record.length
    this.#bytes += record.length
    this.#pending.push(header.slice())
    return { segment: segment.id, offset, bytes: record.length }
  }

  #create(): Active {
    const files = this.#files
    const name = nextSegmentName([...this.#byName.keys()])
    const path = join(this.#part, name)
    const data = files.create(`${path}.data`)
    try {
      const index = files.create(`${path}.index`)
      files.syncFolder(this.#part)
      return (this.#active = { segment: this.#add(name), data, index, known: 0 })
    } catch (error) {
      files.close(data)
      removeSegment(files, path)
      throw error
    }
  }

  /** The journal's entries follow the records that they are of. */
  async #commit(): Promise<void> {
    const active = this.#active
    if (active === undefined || this.#pending.length === 0) return
    const { segment, data, index } = active
    await this.#files.sync(data)
    const entries = new Uint8Array(this.#pending.length * this.#options.headerBytes)
    this.#pending.forEach((header, i) => entries.set(header, i * this.#options.headerBytes))
    this.#files.write(index, entries, segment.indexBytes)
    await this.#files.sync(index)
    this.#pending = []
    segment.indexBytes += entries.length
    this.#bytes += entries.length
    active.known = segment.dataBytes
    segment.usedMs = Date.now()
  }

  async #seal(): Promise<void> {
    await this.#commit()
    this.#closeActive()
  }

  #closeActive(): void {
    const active = this.#active
    if (active === undefined) return
    this.#active = undefined
    this.#files.close(active.data)
    this.#files.close(active.index)
    if (active.segment.indexBytes === 0) this.#remove(active.segment)
  }

  /** After a failure: what is not in the journal is cut off, and nothing is appended behind it. */
  #abandon(): void {
    const active = this.#active
    this.#pending = []
    if (active === undefined) return
    const { segment, data, index, known } = active
    this.#bytes -= segment.dataBytes - known
    segment.dataBytes = known
    // what cannot be cut off fails its checksum, or is whole
    attempt(() => this.#files.truncate(index, segment.indexBytes))
    attempt(() => this.#files.truncate(data, known))
    attempt(() => this.#closeActive())
    this.#active = undefined
  }

  /**
   * Whether so many bytes may be added: the least recently used segments go, of this model and of those that nobody has open.
   * Where several servers with different models write, each may have an equal part of the limit.
   */
  async makeRoom(bytes: number): Promise<boolean> {
    const { limitBytes } = this.#options
    const others = this.#lookAtOthers()
    const share = limitBytes / (1 + others.live)
    if (bytes > share || others.liveBytes + bytes > limitBytes) return false
    for (;;) {
      // entries that the journal is about to get take room too
      const own = this.#bytes + this.#pending.length * this.#options.headerBytes + bytes
      const isOverShare = own > share
      const total = own + others.liveBytes + others.idleBytes
      if (!isOverShare && total <= limitBytes) return true
      const mine = oldest([...this.#segments.values()].filter((s) => s !== this.#active?.segment))
      const other = isOverShare ? undefined : oldest(others.idle)
      if (other !== undefined && (mine === undefined || other.usedMs < mine.usedMs)) {
        others.idle.splice(others.idle.indexOf(other), 1)
        others.idleBytes -= other.bytes
        removeSegment(this.#files, other.path)
      } else if (mine !== undefined) this.#remove(mine)
      else if (this.#active !== undefined) await this.#seal()
      else return false
    }
  }

  /** What other models' parts take; those that somebody writes are counted only. */
  #lookAtOthers(): Others {
    const now = Date.now()
    if (this.#others !== undefined && now - this.#others.atMs < OTHERS_MS) return this.#others
    const { folder, fingerprint } = this.#options
    const others: Others = { atMs: now, live: 0, liveBytes: 0, idle: [], idleBytes: 0 }
    for (const part of folderParts(this.#files, folder)) {
      if (part.fingerprint === fingerprint || part.segments.length === 0) continue
      const lock = lockPart(this.#files, folder, part.fingerprint)
      lock?.release()
      if (lock === undefined) {
        others.live++
        others.liveBytes += part.bytes
      } else {
        others.idle.push(...part.segments)
        others.idleBytes += part.bytes
      }
    }
    return (this.#others = others)
  }

  /** Segments that were removed since the last call. */
  takeDropped(): number[] {
    return this.#dropped.splice(0)
  }

  #remove(segment: Segment): void {
    removeSegment(this.#files, segment.path)
    this.#forget(segment)
  }

  #forget(segment: Segment): void {
    this.#segments.delete(segment.id)
    this.#byName.delete(segment.name)
    this.#bytes -= segment.dataBytes + segment.indexBytes
    this.#dropped.push(segment.id)
    const fd = this.#readers.get(segment.id)
    this.#readers.delete(segment.id)
    if (fd !== undefined) this.#files.close(fd)
  }

  /** Reads bytes of a segment as they are; false where they are not there. */
  readRaw(segmentId: number, offset: number, into: Uint8Array): boolean {
    const segment = this.#segments.get(segmentId)
    if (segment === undefined) return false
    try {
      return this.#files.read(this.#reader(segment), into, offset) === into.length
    } catch {
      return false
    }
  }

  /** Reads a record. False where it is damaged, gone or another one. */
  read(
    place: DiskPlace,
    expected: { readonly kind: RecordKind; readonly digest: string },
    into: Uint8Array,
  ): boolean {
    return (
      into.length === place.bytes &&
      this.readRaw(place.segment, place.offset, into) &&
      this.isSound(place, expected, into)
    )
  }

  isSound(
    place: DiskPlace,
    expected: { readonly kind: RecordKind; readonly digest: string },
    record: Uint8Array,
  ): boolean {
    const { kind, digest } = expected
    return isSound(record, this.#options.headerBytes, { kind, digest, offset: place.offset })
  }

  #reader(segment: Segment): number {
    const known = this.#readers.get(segment.id)
    if (known !== undefined) return known
    const [oldestId, oldestFd] = this.#readers.entries().next().value ?? []
    if (this.#readers.size >= MAX_OPEN_FILES && oldestId !== undefined && oldestFd !== undefined) {
      this.#readers.delete(oldestId)
      this.#files.close(oldestFd)
    }
    const fd = this.#files.open(`${segment.path}.data`)
    this.#readers.set(segment.id, fd)
    return fd
  }

  /** Blocks of these segments were used. */
  use(ids: readonly number[]): void {
    const now = Date.now()
    for (const id of ids) {
      const segment = this.#segments.get(id)
      if (segment === undefined) continue
      segment.usedMs = now
      if (!this.isWriter || now - segment.touchedMs < TOUCH_MS) continue
      segment.touchedMs = now
      try {
        this.#files.touch(`${segment.path}.index`)
      } catch {
        // it counts as used until the next start
      }
    }
  }

  /** Removes this model's blocks. */
  async clear(): Promise<void> {
    if (!this.isWriter) return
    await this.#seal()
    for (const segment of [...this.#segments.values()]) this.#remove(segment)
  }

  async close(): Promise<void> {
    try {
      await this.#seal()
      // what was used since it was last written down
      for (const segment of this.#segments.values())
        if (this.isWriter && segment.usedMs > segment.touchedMs)
          this.#files.touch(`${segment.path}.index`)
    } finally {
      for (const fd of this.#readers.values()) this.#files.close(fd)
      this.#readers.clear()
      this.#lock?.release()
      this.#lock = undefined
    }
  }
}

function attempt(action: () => void): void {
  try {
    action()
  } catch {
    // the failure that led here is the one that is told
  }
}

function oldest<T extends { readonly usedMs: number; readonly name: string }>(
  segments: readonly T[],
): T | undefined {
  let found: T | undefined
  for (const segment of segments) {
    if (
      found === undefined ||
      segment.usedMs < found.usedMs ||
      (segment.usedMs === found.usedMs && segment.name < found.name)
    )
      found = segment
  }
  return found
}
