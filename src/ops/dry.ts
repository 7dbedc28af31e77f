import type { SamplingParams } from "../worker/protocol.ts"

/** llama.cpp's values of what a request does not name. */
const DRY_BASE = 1.75
const DRY_ALLOWED_LENGTH = 2
const DRY_LAST_N = 64

/** A greater power of the base would be no f32. */
const MAX_LOG = 88.7

export function isDryOn(params: SamplingParams): boolean {
  return (
    (params.dryMultiplier ?? 0) !== 0 &&
    (params.dryBase ?? DRY_BASE) >= 1 &&
    (params.dryPenaltyLastN ?? DRY_LAST_N) !== 0
  )
}

/**
 * DRY, "don't repeat yourself", as llama.cpp defines it: a token that would go on with what followed an earlier occurrence of
 * the text's end is penalised by multiplier * base ** (length of that end - allowed length).
 */
export class DryRepetitions {
  readonly #multiplier: number
  readonly #base: number
  readonly #allowedLength: number
  readonly #lastN: number
  /** Sequences that repetitions do not go across: what may follow a token so that it is one. */
  readonly #breakers = new Map<number, (readonly number[])[]>()
  /** By distance from the end: how many tokens before are equal to the last ones. */
  #lengths = new Int32Array(0)

  constructor(params: SamplingParams) {
    this.#multiplier = params.dryMultiplier ?? 0
    this.#base = params.dryBase ?? DRY_BASE
    this.#allowedLength = params.dryAllowedLength ?? DRY_ALLOWED_LENGTH
    this.#lastN = params.dryPenaltyLastN ?? DRY_LAST_N
    for (const [head, ...tail] of params.dryBreakers ?? []) {
      if (head === undefined) continue
      const tails = this.#breakers.get(head)
      if (tails === undefined) this.#breakers.set(head, [tail])
      else tails.push(tail)
    }
  }

  /** Tokens and what is to be subtracted from their logits, each once. */
  find(history: Int32Array): (readonly [token: number, penalty: number])[] {
    const n = this.#lastN < 0 ? history.length : Math.min(history.length, this.#lastN)
    if (n <= this.#allowedLength) return []
    const limit = this.#reach(history, n)
    if (limit < this.#allowedLength) return []
    const lengths = this.#matches(history, n)
    const longest = new Map<number, number>()
    const end = history.length - 1
    for (let k = 1; k < n; k++) {
      const length = Math.min(lengths[k] as number, limit)
      if (length < this.#allowedLength) continue
      const token = history[end - k + 1] as number
      if (length > (longest.get(token) ?? -1)) longest.set(token, length)
    }
    const found: (readonly [number, number])[] = []
    const most = this.#base > 1.000001 ? Math.floor(MAX_LOG / Math.log(this.#base)) : Infinity
    for (const [token, length] of longest) {
      if (this.#breakers.get(token)?.some((tail) => tail.length === 0)) continue
      const exponent = Math.min(length - this.#allowedLength, most)
      found.push([token, this.#multiplier * this.#base ** exponent])
    }
    return found
  }

  /** Tokens since the last breaker. */
  #reach(history: Int32Array, n: number): number {
    if (this.#breakers.size === 0) return n
    const end = history.length - 1
    for (let i = 0; i < n; i++) {
      const tails = this.#breakers.get(history[end - i] as number)
      if (tails === undefined) continue
      let longest = -1
      for (const tail of tails) {
        if (tail.length <= longest || tail.length > i) continue
        if (tail.every((token, at) => history[end - i + 1 + at] === token)) longest = tail.length
      }
      if (longest >= 0) return i - longest
    }
    return n
  }

  /** The Z-function of the last n tokens, read backwards: lengths[k] tokens ending k before the end equal the last ones. */
  #matches(history: Int32Array, n: number): Int32Array {
    if (this.#lengths.length < n) this.#lengths = new Int32Array(n * 2)
    const lengths = this.#lengths
    const end = history.length - 1
    let left = 0
    let right = 0
    for (let k = 1; k < n; k++) {
      let length = k < right ? Math.min(right - k, lengths[k - left] as number) : 0
      while (k + length < n && history[end - length] === history[end - k - length]) length++
      lengths[k] = length
      if (k + length > right) {
        left = k
        right = k + length
      }
    }
    return lengths
  }
}
