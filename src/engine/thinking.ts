import type { ThinkingParams, TokenTable } from "../worker/protocol.ts"

/** A mark that has begun, or a character that is not whole, delays the end by no more tokens than this. */
const MAX_DELAY = 8

/**
 * Watches an answer's reasoning and ends it when its tokens are used up: from then on the closing tokens are forced, one
 * after the other. Marks are found in the text, however it is cut into tokens.
 */
export class Thinking {
  readonly #params: ThinkingParams
  readonly #table: TokenTable
  readonly #open: Uint8Array
  readonly #close: Uint8Array
  /** The last bytes of the answer, as many as the longer mark has. */
  #tail: number[] = []
  #isInside: boolean
  #used = 0
  #delayed = 0
  /** Closing tokens that are still to come. */
  #closing: number[] = []

  constructor(params: ThinkingParams, table: TokenTable) {
    this.#params = params
    this.#table = table
    const encoder = new TextEncoder()
    this.#open = encoder.encode(params.open)
    this.#close = encoder.encode(params.close)
    this.#isInside = params.isOpen
    this.#settle()
  }

  /** What the next token must be. */
  get forced(): number | undefined {
    return this.#closing[0]
  }

  /** Its tokens count: none may be guessed ahead. */
  get isInside(): boolean {
    return this.#isInside
  }

  accept(token: number): void {
    const { bytes, ends } = this.#table
    const end = ends[token] ?? 0
    for (let i = token > 0 ? (ends[token - 1] as number) : 0; i < end; i++)
      this.#tail.push(bytes[i] as number)
    if (this.#closing.length > 0) {
      this.#closing.shift()
      if (this.#closing.length === 0) this.#leave()
      return
    }
    // a mark may end within a token
    const at = this.#find(this.#isInside ? this.#close : this.#open)
    if (this.#isInside) this.#used++
    if (at >= 0) {
      this.#isInside = !this.#isInside
      this.#tail = this.#tail.slice(at)
    } else {
      const most = Math.max(this.#open.length, this.#close.length)
      if (this.#tail.length > most) this.#tail = this.#tail.slice(-most)
    }
    this.#settle()
  }

  /** Begins to close where the tokens are used up and nothing would be cut in two. */
  #settle(): void {
    if (!this.#isInside || this.#used < this.#params.budget) return
    if (this.#isWithin() && this.#delayed++ < MAX_DELAY) return
    this.#closing = [...this.#params.closing]
    if (this.#closing.length === 0) this.#leave()
  }

  #leave(): void {
    this.#isInside = false
    this.#delayed = 0
    this.#tail = []
  }

  /** Where a mark ends in the tail; -1 where there is none. */
  #find(mark: Uint8Array): number {
    const tail = this.#tail
    for (let start = tail.length - mark.length; start >= 0; start--)
      if (mark.every((byte, i) => tail[start + i] === byte)) return start + mark.length
    return -1
  }

  /** The tail ends within the closing mark or within a character. */
  #isWithin(): boolean {
    const tail = this.#tail
    for (let length = Math.min(tail.length, this.#close.length - 1); length > 0; length--) {
      const start = tail.length - length
      if (tail.slice(start).every((byte, i) => byte === this.#close[i])) return true
    }
    for (let back = 1; back <= Math.min(3, tail.length); back++) {
      const byte = tail[tail.length - back] as number
      if (byte >= 0xc0) return back < (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2)
      if (byte < 0x80) return false
    }
    return false
  }
}
