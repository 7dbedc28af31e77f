import { basename, dirname, join } from "node:path"

import { FormatError } from "../errors.ts"
import { MappedFile } from "../native/mapped-file.ts"
import { dtypeById, type DTypeInfo, rowBytes } from "../tensor/dtype.ts"
import { HeaderCursor } from "./cursor.ts"
import {
  MAX_ALIGNMENT,
  MAX_ARRAY_LENGTH,
  MAX_ELEMENTS,
  MAX_GGUF_DIMS,
  MAX_KEY_BYTES,
  MAX_METADATA_KEYS,
  MAX_SHARDS,
  MAX_STRING_BYTES,
  MAX_TENSOR_NAME_BYTES,
  MAX_TENSORS,
} from "./limits.ts"
import type { GgufArray, GgufMetadata, GgufValue } from "./metadata.ts"
import type { ByteSource, Checkpoint, OpenSource } from "./source.ts"
import { checkNoOverlap, type StoredTensor, TensorTable } from "./tensor-table.ts"

/** An open GGUF with all its shards. */
export interface GgufFile extends Checkpoint {
  readonly kind: "gguf"
  /** Format version, 2 or 3. */
  readonly version: number
  /** `general.architecture`. */
  readonly architecture: string
  /** Key-value section of the first shard. */
  readonly metadata: GgufMetadata
  /** The type each of its values is stored as; of arrays, their elements'. */
  readonly metadataTypes: ReadonlyMap<string, GgufType>
}

/** Value types of the key-value section (GGUF specification, enum gguf_metadata_value_type). */
export const GGUF_TYPE = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
} as const
/** What a value, or an element of an array, can be. */
export type GgufType = Exclude<keyof typeof GGUF_TYPE, "array">

/** "GGUF" */
export const MAGIC = 0x46554747
export const DEFAULT_ALIGNMENT = 32
const FIXED_HEADER_BYTES = 24

/** Types that were in the format for a while: files that hold them are too old, not corrupt. */
const REMOVED_TYPES: ReadonlyMap<number, string> = new Map([
  [4, "Q4_2"],
  [5, "Q4_3"],
  [31, "Q4_0_4_4"],
  [32, "Q4_0_4_8"],
  [33, "Q4_0_8_8"],
  [36, "IQ4_NL_4_4"],
  [37, "IQ4_NL_4_8"],
  [38, "IQ4_NL_8_8"],
])

interface Shard {
  readonly version: number
  readonly metadata: Map<string, GgufValue>
  readonly metadataTypes: Map<string, GgufType>
  readonly tensors: StoredTensor[]
}

/**
 * Opens a GGUF v2 or v3 file (little-endian) and, where it is the first of several shards, the
 * others beside it. Reads headers only. Any defect is one FormatError that names file, field and
 * value.
 */
export function openGguf(path: string, open: OpenSource = MappedFile.open): GgufFile {
  return openShards(path, open, (architecture) => {
    if (typeof architecture === "string" && architecture !== "") return architecture
    throw new FormatError(
      path,
      `general.architecture: ${describeValue(architecture)}, expected a name`,
    )
  })
}

/** The same for a GGUF that holds no model, such as an importance matrix: its architecture is "". */
export function openGgufData(path: string, open: OpenSource = MappedFile.open): GgufFile {
  return openShards(path, open, (architecture) =>
    typeof architecture === "string" ? architecture : "",
  )
}

function openShards(
  path: string,
  open: OpenSource,
  checked: (architecture: GgufValue | undefined) => string,
): GgufFile {
  const table = new TensorTable()
  try {
    const source = open(path)
    table.own(source)
    const first = readShard(source)
    const count = shardInteger(path, first, "split.count", 1)
    if (count > MAX_SHARDS)
      throw new FormatError(path, `split.count: ${count} is more than the limit of ${MAX_SHARDS}`)
    if (count > 1) checkFirstShard(path, first, count)
    const architecture = checked(first.metadata.get("general.architecture"))
    for (const tensor of first.tensors) table.add(source, tensor)
    if (count > 1) addOtherShards(path, first, count, open, table)
    const { version, metadata, metadataTypes } = first
    return table.checkpoint("gguf", path, { version, architecture, metadata, metadataTypes })
  } catch (error) {
    table.close()
    throw error
  }
}

/** "model-00002-of-00005.gguf" as its parts, or undefined. */
export function shardOf(
  path: string,
): { prefix: string; index: number; count: number } | undefined {
  const match = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/i.exec(basename(path))
  if (match === null) return undefined
  return { prefix: match[1] ?? "", index: Number(match[2]), count: Number(match[3]) }
}

/** Path of shard `index` (from 1) beside `path`, which is another shard. */
export function shardPath(path: string, prefix: string, index: number, count: number): string {
  const digits = (n: number): string => String(n).padStart(5, "0")
  return join(dirname(path), `${prefix}-${digits(index)}-of-${digits(count)}.gguf`)
}

function checkFirstShard(path: string, first: Shard, count: number): void {
  const name = shardOf(path)
  if (name === undefined || name.count !== count) {
    const expected = `-00001-of-${String(count).padStart(5, "0")}.gguf`
    throw new FormatError(
      path,
      `split.count: ${count}, so the file's name must end in "${expected}"`,
    )
  }
  const no = shardInteger(path, first, "split.no", 0)
  if (no !== 0) {
    throw new FormatError(path, `split.no: ${no}, this is shard ${no + 1} of ${count}`, {
      hint: `open the first shard, ${shardPath(path, name.prefix, 1, count)}`,
    })
  }
}

function addOtherShards(
  path: string,
  first: Shard,
  count: number,
  open: OpenSource,
  table: TensorTable,
): void {
  const prefix = shardOf(path)?.prefix ?? ""
  for (let i = 2; i <= count; i++) {
    const file = shardPath(path, prefix, i, count)
    let source: ReturnType<OpenSource>
    try {
      source = open(file)
    } catch (cause) {
      throw new FormatError(file, `shard ${i} of ${count} cannot be opened: ${reason(cause)}`, {
        cause,
        hint: "put all shards of the model into one folder",
      })
    }
    table.own(source)
    const shard = readShard(source)
    const theirs = shardInteger(file, shard, "split.count", 1)
    if (theirs !== count)
      throw new FormatError(file, `split.count: ${theirs}, but ${path} says ${count}`)
    const no = shardInteger(file, shard, "split.no", 0)
    if (no !== i - 1) throw new FormatError(file, `split.no: ${no}, expected ${i - 1}`)
    for (const tensor of shard.tensors) table.add(source, tensor)
  }
  const expected = shardInteger(path, first, "split.tensors.count", table.size)
  if (table.size !== expected) {
    throw new FormatError(
      path,
      `split.tensors.count: ${expected}, but the ${count} shards hold ${table.size} tensors`,
    )
  }
}

/** An error's own words, without the file that a FormatError puts before them. */
function reason(error: unknown): string {
  if (error instanceof FormatError) return error.message.slice(error.file.length + 2)
  return error instanceof Error ? error.message : String(error)
}

function shardInteger(file: string, shard: Shard, key: string, absent: number): number {
  const value = shard.metadata.get(key) ?? absent
  const number = typeof value === "bigint" ? Number(value) : value
  if (typeof number !== "number" || !Number.isSafeInteger(number) || number < 0) {
    throw new FormatError(file, `${key}: ${describeValue(value)}, expected a count`)
  }
  return number
}

function readShard(source: ByteSource): Shard {
  const cursor = new HeaderCursor(source)
  const version = readVersion(cursor)
  const numTensors = cursor.count("tensor count", MAX_TENSORS)
  const numKeys = cursor.count("metadata count", MAX_METADATA_KEYS)
  const metadata = new Map<string, GgufValue>()
  const metadataTypes = new Map<string, GgufType>()
  for (let i = 0; i < numKeys; i++) {
    const key = cursor.name(`metadata key ${i + 1} of ${numKeys}`, MAX_KEY_BYTES)
    if (metadata.has(key)) cursor.fail(`metadata key "${key}": occurs twice`)
    const { type, value } = readValue(cursor, key)
    metadata.set(key, value)
    metadataTypes.set(key, type)
  }
  const alignment = readAlignment(cursor, metadata)
  const tensors: StoredTensor[] = []
  for (let i = 0; i < numTensors; i++) tensors.push(readTensor(cursor, i, numTensors, alignment))
  return { version, metadata, metadataTypes, tensors: placed(cursor, tensors, alignment) }
}

function readVersion(cursor: HeaderCursor): number {
  const { size } = cursor.source
  if (size < FIXED_HEADER_BYTES)
    cursor.fail(`truncated: ${size} bytes, a GGUF file has at least ${FIXED_HEADER_BYTES}`)
  const magic = cursor.u32("magic")
  if (magic !== MAGIC)
    cursor.fail(`magic: 0x${magic.toString(16).padStart(8, "0")}, this is no GGUF file`)
  const version = cursor.u32("version")
  if (version === 2 || version === 3) return version
  if (version === 0x02000000 || version === 0x03000000) {
    cursor.fail(
      `version: ${version / 2 ** 24} in big-endian byte order, only little-endian files are read`,
    )
  }
  if (version === 1)
    cursor.fail("version: 1, only versions 2 and 3 are read; convert the model again")
  return cursor.fail(`version: ${version}, only versions 2 and 3 are known`)
}

const TYPE_NAMES: ReadonlyMap<number, keyof typeof GGUF_TYPE> = new Map(
  Object.entries(GGUF_TYPE).map(([name, id]) => [id, name as keyof typeof GGUF_TYPE]),
)

function readValue(cursor: HeaderCursor, key: string): { type: GgufType; value: GgufValue } {
  const id = cursor.u32(`type of "${key}"`)
  const type = TYPE_NAMES.get(id)
  if (type === undefined) return cursor.fail(`metadata key "${key}": unknown value type ${id}`)
  if (type === "array") return readArray(cursor, key)
  return { type, value: readScalar(cursor, type, key) }
}

function readScalar(cursor: HeaderCursor, type: GgufType, key: string): GgufValue {
  if (type === "bool") return bool(cursor, cursor.u8(key), key)
  return type === "string" ? cursor.string(key, MAX_STRING_BYTES) : cursor[type](key)
}

function bool(cursor: HeaderCursor, byte: number, key: string): boolean {
  if (byte > 1) cursor.fail(`metadata key "${key}": ${byte} is no boolean`)
  return byte === 1
}

/** Least bytes an array element takes; a string is at least its length. */
const ELEMENT_BYTES: ReadonlyMap<number, number> = new Map([
  [GGUF_TYPE.u8, 1],
  [GGUF_TYPE.i8, 1],
  [GGUF_TYPE.u16, 2],
  [GGUF_TYPE.i16, 2],
  [GGUF_TYPE.u32, 4],
  [GGUF_TYPE.i32, 4],
  [GGUF_TYPE.f32, 4],
  [GGUF_TYPE.bool, 1],
  [GGUF_TYPE.string, 8],
  [GGUF_TYPE.u64, 8],
  [GGUF_TYPE.i64, 8],
  [GGUF_TYPE.f64, 8],
])

function readArray(cursor: HeaderCursor, key: string): { type: GgufType; value: GgufArray } {
  const id = cursor.u32(`element type of "${key}"`)
  const type = TYPE_NAMES.get(id)
  if (type === "array") cursor.fail(`metadata key "${key}": nested arrays are not supported`)
  const width = ELEMENT_BYTES.get(id)
  if (type === undefined || width === undefined)
    return cursor.fail(`metadata key "${key}": unknown element type ${id}`)
  const length = cursor.count(`length of "${key}"`, MAX_ARRAY_LENGTH)
  if (length * width > cursor.remaining) {
    cursor.fail(
      `truncated: "${key}" has ${length} elements, but only ${cursor.remaining} bytes are left`,
    )
  }
  if (type === "string") {
    const strings = new Array<string>(length)
    for (let i = 0; i < length; i++) strings[i] = cursor.string(key, MAX_STRING_BYTES)
    return { type, value: strings }
  }
  const bytes = cursor.bytes(length * width, key)
  if (type === "bool") return { type, value: Array.from(bytes, (byte) => bool(cursor, byte, key)) }
  return { type, value: typedArray(id, bytes) }
}

/**
 * `bytes` as numbers of the stored width; the processor must be little-endian, as all supported
 * ones are.
 */
function typedArray(type: number, bytes: Uint8Array<ArrayBuffer>): GgufArray {
  const { buffer } = bytes
  switch (type) {
    case GGUF_TYPE.i8:
      return new Int8Array(buffer)
    case GGUF_TYPE.u16:
      return new Uint16Array(buffer)
    case GGUF_TYPE.i16:
      return new Int16Array(buffer)
    case GGUF_TYPE.u32:
      return new Uint32Array(buffer)
    case GGUF_TYPE.i32:
      return new Int32Array(buffer)
    case GGUF_TYPE.f32:
      return new Float32Array(buffer)
    case GGUF_TYPE.u64:
      return new BigUint64Array(buffer)
    case GGUF_TYPE.i64:
      return new BigInt64Array(buffer)
    case GGUF_TYPE.f64:
      return new Float64Array(buffer)
    default:
      return bytes
  }
}

function readAlignment(cursor: HeaderCursor, metadata: GgufMetadata): number {
  const value = metadata.get("general.alignment") ?? DEFAULT_ALIGNMENT
  const isPower = typeof value === "number" && value >= 1 && Number.isInteger(Math.log2(value))
  if (!isPower || value > MAX_ALIGNMENT) {
    return cursor.fail(
      `general.alignment: ${describeValue(value)}, expected a power of two up to ${MAX_ALIGNMENT}`,
    )
  }
  return value
}

/** One entry of the tensor table; `offset` still counts from the start of the data section. */
function readTensor(
  cursor: HeaderCursor,
  index: number,
  total: number,
  alignment: number,
): StoredTensor {
  const name = cursor.name(`name of tensor ${index + 1} of ${total}`, MAX_TENSOR_NAME_BYTES)
  const fail = (detail: string): never => cursor.fail(`tensor "${name}": ${detail}`)
  const numDims = cursor.u32(`dimension count of tensor "${name}"`)
  if (numDims < 1 || numDims > MAX_GGUF_DIMS)
    fail(`${numDims} dimensions, expected 1 to ${MAX_GGUF_DIMS}`)
  const dims: number[] = []
  let elements = 1
  for (let i = 0; i < numDims; i++) {
    const dim = cursor.count(`dimension ${i} of tensor "${name}"`, MAX_ELEMENTS)
    elements *= dim
    dims.push(dim)
    if (dim === 0) fail(`dimension ${i} is 0`)
    if (elements > MAX_ELEMENTS) fail(`dimensions ${dims.join(" x ")} overflow`)
  }
  const dtype = tensorType(cursor.u32(`type of tensor "${name}"`), fail)
  const columns = dims[0] ?? 0
  if (columns % dtype.blockSize !== 0) {
    fail(
      `rows of ${columns} values are no multiple of the ${dtype.blockSize} in a ${dtype.name} block`,
    )
  }
  const byteLength = rowBytes(dtype, columns) * (elements / columns)
  if (byteLength > MAX_ELEMENTS) fail(`dimensions ${dims.join(" x ")} overflow`)
  const offset = cursor.count(`offset of tensor "${name}"`, MAX_ELEMENTS)
  if (offset % alignment !== 0)
    fail(`offset ${offset} is no multiple of the alignment ${alignment}`)
  return { name, dtype, shape: dims.reverse(), offset, byteLength }
}

function tensorType(id: number, fail: (detail: string) => never): DTypeInfo {
  const removed = REMOVED_TYPES.get(id)
  if (removed !== undefined)
    fail(`type ${removed} (${id}) was removed from the format; quantize the model again`)
  return dtypeById(id) ?? fail(`unknown type ${id}`)
}

/**
 * The tensors with offsets from the start of the file, all of them inside the file and apart from
 * each other.
 */
function placed(cursor: HeaderCursor, tensors: StoredTensor[], alignment: number): StoredTensor[] {
  const { path, size } = cursor.source
  const start = Math.ceil(cursor.offset / alignment) * alignment
  const out = tensors.map((tensor) => ({ ...tensor, offset: start + tensor.offset }))
  for (const { name, offset, byteLength } of out) {
    if (offset + byteLength <= size) continue
    const detail = `${byteLength} bytes at offset ${offset} reach beyond the file's end at ${size}`
    throw new FormatError(path, `tensor "${name}": ${detail} (is the download complete?)`)
  }
  checkNoOverlap(path, [...out])
  return out
}

/** A metadata value for a message, short. */
export function describeValue(value: GgufValue | undefined): string {
  if (value === undefined) return "missing"
  if (typeof value === "string")
    return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value)
  return typeof value === "object" ? `an array of ${value.length}` : String(value)
}
