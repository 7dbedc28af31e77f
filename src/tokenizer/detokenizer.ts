/** What a detokenizer needs of a tokenizer. */
export interface TokenBytes {
  tokenBytes(id: number): Uint8Array
  isSpecial(id: number): boolean
}

export interface DetokenizerOptions {
  /** Leave out control tokens; default true. */
  readonly skipSpecial?: boolean
  /** Control tokens that are not left out. */
  readonly keepToken?: (id: number) => boolean
  /** The text begins here, so a leading space that the tokenizer adds is taken away; default false: it continues a prompt. */
  readonly atStart?: boolean
}

/** Turns tokens into text as they come; a character whose bytes are spread over tokens is held back until it is whole. */
export class Detokenizer {
  readonly #tokenizer: TokenBytes
  readonly #skipSpecial: boolean
  readonly #keepToken: ((id: number) => boolean) | undefined
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true })
  #stripSpace: boolean

  constructor(
    tokenizer: TokenBytes & { readonly stripsLeadingSpace?: boolean },
    options: DetokenizerOptions = {},
  ) {
    this.#tokenizer = tokenizer
    this.#skipSpecial = options.skipSpecial ?? true
    this.#keepToken = options.keepToken
    this.#stripSpace = options.atStart === true && tokenizer.stripsLeadingSpace === true
  }

  /** The text that this token completes, perhaps empty. */
  push(id: number): string {
    if (this.#skipSpecial && this.#tokenizer.isSpecial(id) && this.#keepToken?.(id) !== true)
      return ""
    return this.#strip(this.#decoder.decode(this.#tokenizer.tokenBytes(id), { stream: true }))
  }

  /** What is left at the end: U+FFFD where a character stayed incomplete. The detokenizer can be used again. */
  flush(): string {
    return this.#strip(this.#decoder.decode())
  }

  #strip(text: string): string {
    if (!this.#stripSpace || text === "") return text
    this.#stripSpace = false
    return text.startsWith(" ") ? text.slice(1) : text
  }
}

/** Text that may be passed on, and the stop string once one has come. */
export interface StopResult {
  readonly text: string
  /** The stop string that ended the text; it is not part of it, and nothing after it is passed on. */
  readonly stop: string | undefined
}

/**
 * Watches streamed text for stop strings. Text that could still turn out to begin one is held back, so the result does
 * not depend on how the text was cut: the stop string that is complete first counts, the longest where several are
 * complete at the same character.
 */
export class StopMatcher {
  readonly #stops: readonly string[]
  #held = ""
  #stop: string | undefined

  constructor(stops: Iterable<string>) {
    this.#stops = [...stops].filter((stop) => stop !== "")
  }

  /** The stop string found so far. */
  get stopped(): string | undefined {
    return this.#stop
  }

  push(text: string): StopResult {
    if (this.#stop !== undefined) return { text: "", stop: this.#stop }
    const buffer = this.#held + text
    let start = -1
    let end = Infinity
    for (const stop of this.#stops) {
      const at = buffer.indexOf(stop)
      if (at < 0) continue
      const after = at + stop.length
      if (after < end || (after === end && at < start)) {
        start = at
        end = after
        this.#stop = stop
      }
    }
    if (this.#stop !== undefined) {
      this.#held = ""
      return { text: buffer.slice(0, start), stop: this.#stop }
    }
    const keep = partialEnd(buffer, this.#stops)
    this.#held = buffer.slice(buffer.length - keep)
    return { text: buffer.slice(0, buffer.length - keep), stop: undefined }
  }

  /** The text held back, which nothing follows. */
  flush(): string {
    const text = this.#held
    this.#held = ""
    return text
  }
}

/** Length of the longest end of `text` with which, but not whole, some marker begins. */
export function partialEnd(text: string, markers: readonly string[]): number {
  let longest = 0
  for (const marker of markers)
    for (let n = Math.min(marker.length - 1, text.length); n > longest; n--)
      if (text.endsWith(marker.slice(0, n))) {
        longest = n
        break
      }
  return longest
}
