import { Pace } from "./pace.ts"
import type { Sequence } from "./sequence.ts"

/** An open table of hashes; a newer entry takes an older one's place, and what is found is compared with the tokens. */
class Positions {
  readonly #n: number
  #table = new Int32Array(1024)
  /** Tokens indexed: n-grams that end before this place are known. */
  #end = 0

  constructor(n: number) {
    this.#n = n
  }

  /** Learns all n-grams that end before the last token. */
  learn(tokens: Int32Array, length: number): void {
    if (this.#table.length < 4 * length) {
      this.#table = new Int32Array(2 ** Math.ceil(Math.log2(8 * length)))
      this.#end = 0
    }
    for (let end = Math.max(this.#end, this.#n); end < length; end++)
      this.#table[this.#slot(tokens, end)] = end
    this.#end = Math.max(this.#end, length)
  }

  /** Where the newest earlier occurrence of the last n tokens ends; 0 for none. */
  find(tokens: Int32Array, length: number): number {
    if (length <= this.#n) return 0
    const end = this.#table[this.#slot(tokens, length)] as number
    for (let i = 1; i <= this.#n && end > 0; i++)
      if (tokens[end - i] !== tokens[length - i]) return 0
    return end
  }

  #slot(tokens: Int32Array, end: number): number {
    let hash = 0x9e3779b1
    for (let i = 1; i <= this.#n; i++) {
      hash = Math.imul(hash ^ (tokens[end - i] as number), 0x85ebca6b)
      hash ^= hash >>> 15
    }
    return hash & (this.#table.length - 1)
  }
}

/** The least tokens that a match needs; fewer say little. */
const SHORTEST = 2
/**
 * Prompt lookup ("Prompt lookup decoding", Saxena 2023; "n-gram" speculation in other engines): what followed the last
 * tokens where they came before is the guess. Of one sequence: how long its guesses are goes by how they did.
 */
export class NgramDraft {
  readonly #long: Positions
  readonly #short: Positions | undefined
  readonly #most: number
  readonly #pace = new Pace()

  /** @param lookup Tokens that are looked for first @param most Tokens of one guess */
  constructor(lookup: number, most: number) {
    this.#long = new Positions(lookup)
    this.#short = lookup > SHORTEST ? new Positions(SHORTEST) : undefined
    this.#most = most
  }

  /** Puts a guess of at most `most` tokens behind the sequence's own. */
  propose(seq: Sequence, most: number): void {
    const longest = this.#pace.next(this.#most)
    if (longest === 0) return
    const { tokens, length } = seq
    this.#long.learn(tokens, length)
    let from = this.#long.find(tokens, length)
    // after wrong guesses a short match is not worth another
    if (from === 0 && !this.#pace.isDoubtful && this.#short !== undefined) {
      this.#short.learn(tokens, length)
      from = this.#short.find(tokens, length)
    }
    if (from === 0) return
    const count = Math.min(longest, most)
    // reads on into the guess itself where the text repeats with a short period
    for (let i = 0; i < count; i++) seq.guess(seq.tokens[from + i] as number)
  }

  observe(drafted: number, accepted: number): void {
    this.#pace.observe(drafted, accepted)
  }
}
