import { isUtf8 } from "node:buffer"

import { FormatError } from "../errors.ts"
import { MAX_GGUF_HEADER_BYTES } from "./limits.ts"
import type { ByteSource } from "./source.ts"

/**
 * Bytes viewed at a time: large enough to make views rare, small enough not to touch the tensor
 * data after the header.
 */
const WINDOW_BYTES = 256 * 1024

const TWO_32 = 2 ** 32

/**
 * Reads little-endian values of a file's header one after another. Every read names the field it is
 * for, so that a file which ends too early gives an error that says where.
 */
export class HeaderCursor {
  readonly source: ByteSource
  #window: Buffer
  #view: DataView
  /** File offset of the window's first byte. */
  #base = 0
  /** Position within the window. */
  #at = 0

  constructor(source: ByteSource) {
    this.source = source
    this.#window = Buffer.alloc(0)
    this.#view = new DataView(this.#window.buffer, this.#window.byteOffset, 0)
  }

  /** File offset of the next byte. */
  get offset(): number {
    return this.#base + this.#at
  }

  /** Bytes between here and the end of the file. */
  get remaining(): number {
    return this.source.size - this.offset
  }

  fail(detail: string): never {
    throw new FormatError(this.source.path, detail)
  }

  u8(field: string): number {
    this.#need(1, field)
    return this.#view.getUint8(this.#advance(1))
  }

  i8(field: string): number {
    this.#need(1, field)
    return this.#view.getInt8(this.#advance(1))
  }

  u16(field: string): number {
    this.#need(2, field)
    return this.#view.getUint16(this.#advance(2), true)
  }

  i16(field: string): number {
    this.#need(2, field)
    return this.#view.getInt16(this.#advance(2), true)
  }

  u32(field: string): number {
    this.#need(4, field)
    return this.#view.getUint32(this.#advance(4), true)
  }

  i32(field: string): number {
    this.#need(4, field)
    return this.#view.getInt32(this.#advance(4), true)
  }

  f32(field: string): number {
    this.#need(4, field)
    return this.#view.getFloat32(this.#advance(4), true)
  }

  f64(field: string): number {
    this.#need(8, field)
    return this.#view.getFloat64(this.#advance(8), true)
  }

  u64(field: string): bigint {
    this.#need(8, field)
    return this.#view.getBigUint64(this.#advance(8), true)
  }

  i64(field: string): bigint {
    this.#need(8, field)
    return this.#view.getBigInt64(this.#advance(8), true)
  }

  /** A 64-bit count, length or offset; more than `max` is an error. */
  count(field: string, max: number): number {
    this.#need(8, field)
    const at = this.#advance(8)
    const value = this.#view.getUint32(at, true) + this.#view.getUint32(at + 4, true) * TWO_32
    if (value > max)
      this.fail(`${field}: ${this.#view.getBigUint64(at, true)} is more than the limit of ${max}`)
    return value
  }

  /** A length-prefixed name; it must be valid UTF-8, since it is looked up. */
  name(field: string, maxBytes: number): string {
    const length = this.count(`${field} length`, maxBytes)
    this.#need(length, field)
    const start = this.#advance(length)
    if (!isUtf8(this.#window.subarray(start, start + length)))
      this.fail(`${field}: is not valid UTF-8`)
    return this.#window.toString("utf8", start, start + length)
  }

  /**
   * A length-prefixed string value; invalid UTF-8 reads as U+FFFD (vocabularies hold raw bytes now
   * and then).
   */
  string(field: string, maxBytes: number): string {
    const length = this.count(field, maxBytes)
    this.#need(length, field)
    const start = this.#advance(length)
    return this.#window.toString("utf8", start, start + length)
  }

  /** `length` bytes, copied into a buffer of their own (aligned for any element type). */
  bytes(length: number, field: string): Uint8Array<ArrayBuffer> {
    this.#need(length, field)
    const start = this.#advance(length)
    const out = new Uint8Array(length)
    out.set(this.#window.subarray(start, start + length))
    return out
  }

  #advance(length: number): number {
    const at = this.#at
    this.#at = at + length
    return at
  }

  #need(length: number, field: string): void {
    if (this.#at + length <= this.#window.length) return
    const offset = this.offset
    if (offset + length > this.source.size) {
      this.fail(
        `truncated: ${field} needs ${length} bytes at offset ${offset}, but the file ends at ${this.source.size}`,
      )
    }
    if (offset + length > MAX_GGUF_HEADER_BYTES) {
      this.fail(
        `${field}: ends at offset ${offset + length}, beyond the header limit of ${MAX_GGUF_HEADER_BYTES} bytes`,
      )
    }
    const bytes = this.source.read(
      offset,
      Math.min(Math.max(length, WINDOW_BYTES), this.source.size - offset),
    )
    this.#window = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#base = offset
    this.#at = 0
  }
}
