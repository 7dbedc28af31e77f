import type { CachedBlock } from "./prefix-cache.ts"

/**
 * A block as it lies in host memory and on disk: a header that says whose tokens it holds, then the bytes. All numbers are
 * little-endian; everything is covered by a checksum but the padding behind the bytes.
 *
 *     0 magic   4 version   8 kind   12 header bytes   16 tokens   20 rope keys
 *    24 payload bytes (u64)   32 offset in the file (u64)   40 payload hash (u64)   48 digest   64 parent's digest
 *   128 tokens, rope keys (i32)   …   last 8 bytes: hash of the header before them
 */
export const KV = 1
export const STATE = 2
export type RecordKind = typeof KV | typeof STATE

/** Bytes of a digest: SHA-256's first 128 bits over a block's parent and tokens, begun with the fingerprint. */
export const DIGEST_BYTES = 16

const MAGIC = 0x4350544b
const VERSION = 1
const TOKENS_AT = 128
const ALIGN = 512

/** What a header says. */
export interface RecordHeader {
  readonly kind: RecordKind
  readonly headerBytes: number
  readonly payloadBytes: number
  readonly offset: number
  readonly digest: string
  readonly parent: string
  readonly tokens: Int32Array
  readonly ropeKeys: Int32Array | undefined
}

/** Bytes of a header for blocks of `pageSize` tokens. */
export function headerBytes(pageSize: number): number {
  return Math.ceil((TOKENS_AT + 8 * pageSize + 8) / ALIGN) * ALIGN
}

/** Bytes that a record takes, padding included. */
export function recordBytes(header: number, payload: number): number {
  return header + Math.ceil(payload / ALIGN) * ALIGN
}

/** Names a block by its tokens and all before them; `parent` is the fingerprint for a first block. Lower-case hex. */
export function digestOf(
  parent: string,
  tokens: Int32Array,
  ropeKeys: Int32Array | undefined,
): string {
  const hash = new Bun.CryptoHasher("sha256")
  hash.update(`${parent} ${tokens.length} ${ropeKeys === undefined ? 0 : 1} `)
  hash.update(bytesOf(tokens))
  if (ropeKeys !== undefined) hash.update(bytesOf(ropeKeys))
  return hash.digest("hex").slice(0, 2 * DIGEST_BYTES)
}

/** Fills in what is known before the record has a place; sealRecord() does the rest. */
export function writeHeader(record: Uint8Array, header: Omit<RecordHeader, "offset">): void {
  const { kind, headerBytes: size, payloadBytes, digest, parent, tokens, ropeKeys } = header
  record.fill(0, 0, size)
  const view = viewOf(record)
  view.setUint32(0, MAGIC, true)
  view.setUint32(4, VERSION, true)
  view.setUint32(8, kind, true)
  view.setUint32(12, size, true)
  view.setUint32(16, tokens.length, true)
  view.setUint32(20, ropeKeys?.length ?? 0, true)
  view.setBigUint64(24, BigInt(payloadBytes), true)
  record.set(Uint8Array.fromHex(digest), 48)
  record.set(Uint8Array.fromHex(parent), 64)
  record.set(bytesOf(tokens), TOKENS_AT)
  if (ropeKeys !== undefined) record.set(bytesOf(ropeKeys), TOKENS_AT + tokens.byteLength)
}

/** Sets the offset and the checksums; returns the header's bytes. */
export function sealRecord(record: Uint8Array, offset: number): Uint8Array {
  const view = viewOf(record)
  const size = view.getUint32(12, true)
  const payload = Number(view.getBigUint64(24, true))
  view.setBigUint64(32, BigInt(offset), true)
  view.setBigUint64(40, Bun.hash.xxHash3(record.subarray(size, size + payload)), true)
  view.setBigUint64(size - 8, Bun.hash.xxHash3(record.subarray(0, size - 8)), true)
  return record.subarray(0, size)
}

/** What a header of `size` bytes says, or undefined where any of it is damaged. */
export function readHeader(bytes: Uint8Array, size: number): RecordHeader | undefined {
  if (bytes.length < size) return undefined
  const view = viewOf(bytes)
  if (view.getUint32(0, true) !== MAGIC || view.getUint32(4, true) !== VERSION) return undefined
  if (view.getUint32(12, true) !== size) return undefined
  if (view.getBigUint64(size - 8, true) !== Bun.hash.xxHash3(bytes.subarray(0, size - 8)))
    return undefined
  const kind = view.getUint32(8, true)
  const tokens = view.getUint32(16, true)
  const ropeKeys = view.getUint32(20, true)
  if ((kind !== KV && kind !== STATE) || TOKENS_AT + 4 * (tokens + ropeKeys) > size - 8)
    return undefined
  const ints = new Int32Array(bytes.slice(TOKENS_AT, TOKENS_AT + 4 * (tokens + ropeKeys)).buffer)
  return {
    kind,
    headerBytes: size,
    payloadBytes: Number(view.getBigUint64(24, true)),
    offset: Number(view.getBigUint64(32, true)),
    digest: bytes.subarray(48, 64).toHex(),
    parent: bytes.subarray(64, 80).toHex(),
    tokens: ints.slice(0, tokens),
    ropeKeys: ropeKeys === 0 ? undefined : ints.slice(tokens),
  }
}

/** Whether a record read from `offset` is whole and the one that is meant. */
export function isSound(
  record: Uint8Array,
  size: number,
  expected: { kind: RecordKind; digest: string; offset: number },
): boolean {
  const header = readHeader(record, size)
  if (header === undefined) return false
  const { kind, digest, offset, payloadBytes } = header
  if (kind !== expected.kind || digest !== expected.digest || offset !== expected.offset)
    return false
  if (recordBytes(size, payloadBytes) !== record.length) return false
  const hash = viewOf(record).getBigUint64(40, true)
  return hash === Bun.hash.xxHash3(record.subarray(size, size + payloadBytes))
}

/** Whether a record holds exactly a block's tokens: the last check before it is used. */
export function holdsTokensOf(record: Uint8Array, size: number, block: CachedBlock): boolean {
  const header = readHeader(record, size)
  return (
    header !== undefined &&
    sameInts(header.tokens, block.tokens) &&
    (header.ropeKeys === undefined || block.ropeKeys === undefined
      ? header.ropeKeys === block.ropeKeys
      : sameInts(header.ropeKeys, block.ropeKeys))
  )
}

function sameInts(a: Int32Array, b: Int32Array): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i])
}

function bytesOf(values: Int32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
