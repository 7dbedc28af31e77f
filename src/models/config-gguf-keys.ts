import { FormatError } from "../errors.ts"
import type { GgufFile } from "../weights/gguf.ts"

/** Keeps what is computed from a value finite in f32. */
const MAX_FLOAT = 1e12

/**
 * Typed reading of an architecture's keys; a value of the wrong kind is an error that names key and
 * value.
 */
export class Keys {
  readonly #gguf: GgufFile

  constructor(gguf: GgufFile) {
    this.#gguf = gguf
  }

  /** A positive integer; where it is absent, `otherwise` or an error. */
  size(key: string, max?: number, otherwise: () => number = () => this.missing(key)): number {
    const n = this.count(key, max) ?? otherwise()
    return n > 0 ? n : this.#wrong(key, n, "a positive integer")
  }

  /** A non-negative integer; a list (one value per layer) must hold the same value throughout. */
  count(key: string, max = 16_777_216): number | undefined {
    const value = this.#scalar(key)
    if (value === undefined) return undefined
    const n = typeof value === "bigint" ? Number(value) : value
    if (typeof n !== "number" || !Number.isInteger(n) || n < 0 || n > max)
      this.#wrong(key, value, `an integer up to ${max}`)
    else return n
  }

  float(key: string, max = MAX_FLOAT): number | undefined {
    const value = this.#scalar(key)
    if (value === undefined) return undefined
    const n = typeof value === "bigint" ? Number(value) : value
    if (typeof n !== "number" || !(n >= 0 && n <= max))
      this.#wrong(key, value, `a number from 0 to ${max}`)
    // Zero is how files say "none".
    else return n === 0 ? undefined : n
  }

  text(key: string): string | undefined {
    const value = this.#scalar(key)
    return value === undefined || typeof value === "string"
      ? value
      : this.#wrong(key, value, "a string")
  }

  flag(key: string): boolean | undefined {
    const value = this.#scalar(key)
    return value === undefined || typeof value === "boolean"
      ? value
      : this.#wrong(key, value, "a boolean")
  }

  /** A list of booleans; undefined where the key is absent or a single value. */
  flags(key: string): readonly boolean[] | undefined {
    const value = this.#gguf.metadata.get(this.#full(key))
    if (!Array.isArray(value)) return undefined
    return value.map((v) => (typeof v === "boolean" ? v : this.#wrong(key, v, "booleans")))
  }

  /** An id that begins or ends a text: a row of the embeddings. */
  tokenId(kind: "bos" | "eos" | "eot" | "eom", vocab: number): number | undefined {
    const key = `tokenizer.ggml.${kind}_token_id`
    const value = this.#gguf.metadata.get(key)
    if (value === undefined) return undefined
    if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value < vocab)
      return value
    throw new FormatError(
      this.#gguf.path,
      `${key}: ${String(value)}, expected a token id below ${vocab}`,
    )
  }

  unknown(key: string, value: unknown, known: readonly string[]): never {
    this.#wrong(key, value, `one of ${known.join(", ")}`)
  }

  unfit(key: string, value: unknown, expected: string): never {
    this.#wrong(key, value, expected)
  }

  missing(key: string): never {
    throw new FormatError(this.#gguf.path, `${this.#full(key)}: missing`)
  }

  #full(key: string): string {
    return `${this.#gguf.architecture}.${key}`
  }

  #scalar(key: string): number | bigint | boolean | string | undefined {
    const value = this.#gguf.metadata.get(this.#full(key))
    if (typeof value !== "object") return value
    const [first] = value
    for (const item of value) {
      if (item !== first)
        this.#wrong(key, `${String(first)} and ${String(item)}`, "the same value for every layer")
    }
    return first
  }

  #wrong(key: string, value: unknown, expected: string): never {
    throw new FormatError(
      this.#gguf.path,
      `${this.#full(key)}: ${String(value)}, expected ${expected}`,
    )
  }
}
