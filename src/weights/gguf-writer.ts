import { ConfigError } from "../errors.ts"
import type { DTypeInfo } from "../tensor/dtype.ts"
import { byteLength } from "../tensor/tensor.ts"
import { DEFAULT_ALIGNMENT, GGUF_TYPE, type GgufType, MAGIC, shardPath } from "./gguf.ts"
import { MAX_GGUF_DIMS, MAX_SHARDS } from "./limits.ts"
import type { GgufMetadata, GgufValue } from "./metadata.ts"
import { OutputFile } from "./output-file.ts"

/** A metadata value with the type that it is stored as; for arrays, of their elements. */
export interface GgufField {
  readonly type: GgufType
  readonly value: GgufValue
}

export type GgufFields = ReadonlyMap<string, GgufField>

/** A tensor to write; `shape` is outermost dimension first. */
export interface GgufTensorPlan {
  readonly name: string
  readonly dtype: DTypeInfo
  readonly shape: readonly number[]
}

export interface GgufWriterOptions {
  /** Tensors start at multiples of this; written as general.alignment where it is not 32. */
  readonly alignment?: number
  /** Tensor bytes of one file; more go into further files "…-00002-of-0000N.gguf". */
  readonly splitMaxBytes?: number
}

const VERSION = 3

/** Fields as an open file stores them, so that they can be written again unchanged. */
export function fieldsOf(
  metadata: GgufMetadata,
  types: ReadonlyMap<string, GgufType>,
): Map<string, GgufField> {
  return new Map(
    [...metadata].map(([key, value]) => [key, { type: types.get(key) ?? "string", value }]),
  )
}

/**
 * Writes a GGUF v3 model, header first and then the tensors' bytes in the order they were planned
 * in, which come in pieces: no tensor has to be in memory whole. Files have temporary names until
 * `finish`.
 */
export class GgufWriter implements Disposable {
  /** Final names, known before anything is written. */
  readonly paths: readonly string[]
  readonly #tensors: readonly GgufTensorPlan[]
  readonly #shards: readonly (readonly GgufTensorPlan[])[]
  readonly #fields: GgufFields
  readonly #alignment: number
  readonly #files: OutputFile[] = []
  /** Tensor being written, and its bytes so far. */
  #index = 0
  #written = 0
  #lastOfShard = 0

  /** @throws ConfigError where a tensor cannot be stored as planned */
  constructor(
    path: string,
    fields: GgufFields,
    tensors: readonly GgufTensorPlan[],
    options: GgufWriterOptions = {},
  ) {
    this.#alignment = options.alignment ?? DEFAULT_ALIGNMENT
    this.#tensors = tensors
    for (const tensor of tensors) checkPlan(tensor)
    this.#shards = split(tensors, options.splitMaxBytes ?? Infinity, this.#alignment)
    const count = this.#shards.length
    if (count > MAX_SHARDS)
      throw new ConfigError(`${count} files, at most ${MAX_SHARDS}: a split must hold more`)
    const prefix = path.replace(/\.gguf$/i, "").replace(/^.*[\\/]/, "")
    this.paths =
      count === 1 ? [path] : this.#shards.map((_, i) => shardPath(path, prefix, i + 1, count))
    this.#fields = fields
    this.#begin()
  }

  /** Bytes of all tensors. */
  get totalBytes(): number {
    return this.#tensors.reduce((sum, t) => sum + byteLength(t.dtype, t.shape), 0)
  }

  /** Appends bytes to the tensor `name`: the one begun last, or the next in order. */
  write(name: string, bytes: Uint8Array): void {
    const tensor = this.#tensors[this.#index]
    if (tensor?.name !== name)
      throw new ConfigError(`tensor "${name}" is written where "${tensor?.name}" is next`)
    const length = byteLength(tensor.dtype, tensor.shape)
    if (this.#written + bytes.length > length)
      throw new ConfigError(
        `tensor "${name}": ${this.#written + bytes.length} bytes, planned were ${length}`,
      )
    this.#file.write(bytes)
    this.#written += bytes.length
    if (this.#written < length) return
    this.#file.pad(this.#alignment)
    this.#index++
    this.#written = 0
    if (this.#index === this.#lastOfShard && this.#index < this.#tensors.length) {
      this.#file.flush()
      this.#begin()
    }
  }

  /** Gives the files their names once every tensor is whole. */
  finish(): void {
    const missing = this.#tensors[this.#index]
    if (missing !== undefined)
      throw new ConfigError(`tensor "${missing.name}" is not written to its end`)
    for (const file of this.#files) file.flush()
    for (const file of this.#files) file.close()
  }

  [Symbol.dispose](): void {
    for (const file of this.#files) file[Symbol.dispose]()
  }

  get #file(): OutputFile {
    return this.#files.at(-1) as OutputFile
  }

  /** Opens the next file and writes its header. */
  #begin(): void {
    const index = this.#files.length
    const tensors = this.#shards[index] ?? []
    this.#lastOfShard += tensors.length
    const file = new OutputFile(this.paths[index] as string)
    this.#files.push(file)
    const fields = new Map<string, GgufField>(index === 0 ? this.#fields : [])
    if (this.#alignment !== DEFAULT_ALIGNMENT)
      fields.set("general.alignment", { type: "u32", value: this.#alignment })
    const count = this.#shards.length
    for (const key of ["split.no", "split.count", "split.tensors.count"]) fields.delete(key)
    if (count > 1) {
      fields.set("split.no", { type: "u16", value: index })
      fields.set("split.count", { type: "u16", value: count })
      fields.set("split.tensors.count", { type: "i32", value: this.#tensors.length })
    }
    file.write(header(fields, tensors, this.#alignment))
    file.pad(this.#alignment)
  }
}

function checkPlan({ name, dtype, shape }: GgufTensorPlan): void {
  const fail = (detail: string): never => {
    throw new ConfigError(`tensor "${name}": ${detail}`)
  }
  if (dtype.id < 0) fail(`GGUF has no type ${dtype.name}`)
  if (shape.length < 1 || shape.length > MAX_GGUF_DIMS)
    fail(`${shape.length} dimensions, GGUF has 1 to ${MAX_GGUF_DIMS}`)
  const columns = shape[shape.length - 1] as number
  if (columns % dtype.blockSize !== 0)
    fail(`rows of ${columns} values are no multiple of ${dtype.name}'s ${dtype.blockSize}`)
}

/** Consecutive tensors that fit into one file each; a tensor larger than the limit has its own. */
function split(
  tensors: readonly GgufTensorPlan[],
  maxBytes: number,
  alignment: number,
): GgufTensorPlan[][] {
  const shards: GgufTensorPlan[][] = [[]]
  let bytes = 0
  for (const tensor of tensors) {
    const size = aligned(byteLength(tensor.dtype, tensor.shape), alignment)
    if (bytes > 0 && bytes + size > maxBytes) {
      shards.push([])
      bytes = 0
    }
    shards.at(-1)?.push(tensor)
    bytes += size
  }
  return shards
}

function aligned(bytes: number, alignment: number): number {
  return Math.ceil(bytes / alignment) * alignment
}

function header(
  fields: GgufFields,
  tensors: readonly GgufTensorPlan[],
  alignment: number,
): Uint8Array {
  const out = new HeaderBytes()
  out.number("u32", MAGIC)
  out.number("u32", VERSION)
  out.number("u64", BigInt(tensors.length))
  out.number("u64", BigInt(fields.size))
  for (const [key, { type, value }] of fields) {
    out.text(key)
    if (typeof value === "object") {
      const element = elementType(value, type)
      out.number("u32", GGUF_TYPE.array)
      out.number("u32", GGUF_TYPE[element])
      out.number("u64", BigInt(value.length))
      if (ArrayBuffer.isView(value))
        out.bytes(new Uint8Array(value.buffer, value.byteOffset, value.byteLength))
      else for (const item of value) out.value(element, item)
    } else {
      out.number("u32", GGUF_TYPE[type])
      out.value(type, value)
    }
  }
  let offset = 0
  for (const { name, dtype, shape } of tensors) {
    out.text(name)
    out.number("u32", shape.length)
    for (const size of shape.toReversed()) out.number("u64", BigInt(size))
    out.number("u32", dtype.id)
    out.number("u64", BigInt(offset))
    offset += aligned(byteLength(dtype, shape), alignment)
  }
  return out.take()
}

/** Typed arrays say their element type themselves. */
function elementType(value: GgufValue, type: GgufType): GgufType {
  if (value instanceof Uint8Array) return "u8"
  if (value instanceof Int8Array) return "i8"
  if (value instanceof Uint16Array) return "u16"
  if (value instanceof Int16Array) return "i16"
  if (value instanceof Uint32Array) return "u32"
  if (value instanceof Int32Array) return "i32"
  if (value instanceof Float32Array) return "f32"
  if (value instanceof Float64Array) return "f64"
  if (value instanceof BigUint64Array) return "u64"
  if (value instanceof BigInt64Array) return "i64"
  return type
}

/** A growing little-endian buffer. */
class HeaderBytes {
  #bytes = new Uint8Array(1 << 16)
  #view = new DataView(this.#bytes.buffer)
  #length = 0
  readonly #encoder = new TextEncoder()

  value(type: GgufType, value: number | bigint | boolean | string): void {
    if (type === "string") this.text(String(value))
    else if (type === "bool") this.number("u8", value === true ? 1 : 0)
    else this.number(type, value as number | bigint)
  }

  number(type: Exclude<GgufType, "string" | "bool">, value: number | bigint): void {
    const at = this.#length
    const n = Number(value)
    switch (type) {
      case "u8":
        return this.#room(1).setUint8(at, n)
      case "i8":
        return this.#room(1).setInt8(at, n)
      case "u16":
        return this.#room(2).setUint16(at, n, true)
      case "i16":
        return this.#room(2).setInt16(at, n, true)
      case "u32":
        return this.#room(4).setUint32(at, n, true)
      case "i32":
        return this.#room(4).setInt32(at, n, true)
      case "f32":
        return this.#room(4).setFloat32(at, n, true)
      case "u64":
        return this.#room(8).setBigUint64(at, BigInt(value), true)
      case "i64":
        return this.#room(8).setBigInt64(at, BigInt(value), true)
      case "f64":
        return this.#room(8).setFloat64(at, n, true)
    }
  }

  text(value: string): void {
    const bytes = this.#encoder.encode(value)
    this.number("u64", BigInt(bytes.length))
    this.bytes(bytes)
  }

  bytes(bytes: Uint8Array): void {
    const at = this.#length
    this.#room(bytes.length)
    this.#bytes.set(bytes, at)
  }

  take(): Uint8Array {
    return this.#bytes.subarray(0, this.#length)
  }

  /** The view, after making room for `count` more bytes. */
  #room(count: number): DataView {
    this.#length += count
    if (this.#length > this.#bytes.length) {
      const bytes = new Uint8Array(Math.max(this.#length, this.#bytes.length * 2))
      bytes.set(this.#bytes)
      this.#bytes = bytes
      this.#view = new DataView(bytes.buffer)
    }
    return this.#view
  }
}
