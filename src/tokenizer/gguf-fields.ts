import { FormatError } from "../errors.ts"
import type { GgufArray, GgufMetadata, GgufValue } from "../weights/metadata.ts"

export const KEY = "tokenizer.ggml."

/** Typed access to `tokenizer.ggml.*`, with errors that name file, key and value. */
export class GgufFields {
  readonly file: string
  readonly #metadata: GgufMetadata

  constructor(metadata: GgufMetadata, file: string) {
    this.#metadata = metadata
    this.file = file
  }

  raw(name: string): GgufValue | undefined {
    return this.#metadata.get(KEY + name)
  }

  fail(name: string, detail: string): never {
    throw new FormatError(this.file, `${KEY}${name} ${detail}`)
  }

  string(name: string): string | undefined {
    const value = this.raw(name)
    if (value === undefined || typeof value === "string") return value
    return this.fail(name, `is not a string but ${describe(value)}`)
  }

  boolean(name: string): boolean | undefined {
    const value = this.raw(name)
    if (value === undefined || typeof value === "boolean") return value
    return this.fail(name, `is not a boolean but ${describe(value)}`)
  }

  strings(name: string): readonly string[] | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (Array.isArray(value) && value.every((item) => typeof item === "string"))
      return value as string[]
    return this.fail(name, `is not an array of strings but ${describe(value)}`)
  }

  numbers(name: string, length: number): ArrayLike<number> | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (
      !ArrayBuffer.isView(value) ||
      value instanceof BigInt64Array ||
      value instanceof BigUint64Array
    )
      return this.fail(name, `is not an array of numbers but ${describe(value)}`)
    const numbers = value as Exclude<GgufArray, readonly unknown[] | BigInt64Array | BigUint64Array>
    if (numbers.length < length)
      return this.fail(name, `has ${numbers.length} entries for ${length} tokens`)
    return numbers
  }

  bytes(name: string): Uint8Array | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (value instanceof Uint8Array || value instanceof Int8Array)
      return new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
    return this.fail(name, `is not an array of bytes but ${describe(value)}`)
  }

  /** A token id; one outside the vocabulary is an error. */
  id(name: string, size: number): number | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    const id = typeof value === "bigint" ? Number(value) : value
    if (typeof id !== "number" || !Number.isInteger(id))
      return this.fail(name, `is not a token id but ${describe(value)}`)
    // 0xffffffff is how converters write "none"
    if (id === 0xffffffff || id === -1) return undefined
    if (id < 0 || id >= size) return this.fail(name, `is ${id}, outside the vocabulary of ${size}`)
    return id
  }
}

function describe(value: GgufValue): string {
  if (typeof value === "object") return `an array of ${value.length}`
  return `${typeof value} ${String(value).slice(0, 40)}`
}
