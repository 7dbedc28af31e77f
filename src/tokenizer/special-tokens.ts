/** A token that is found in the text before the text itself is tokenised. */
export interface AddedToken {
  readonly id: number
  readonly text: string
  /** Control tokens are only recognised on request; others always. */
  readonly special: boolean
  /** Swallows the white space before it. */
  readonly lstrip: boolean
  /** Swallows the white space after it. */
  readonly rstrip: boolean
}

// Unicode's white space, which differs from JavaScript's by U+0085 and U+FEFF
const WHITE_SPACE = /\p{White_Space}/u

/** A stretch of plain text, or an added token. */
export type Fragment = string | AddedToken

/** Finds added tokens: at each place the longest one, from left to right. */
export class SpecialTokens {
  readonly #byText = new Map<string, AddedToken>()
  /** Per first UTF-16 unit: the lengths that occur, longest first. */
  readonly #lengths = new Map<number, readonly number[]>()
  readonly #firsts = new Uint8Array(65536)

  constructor(tokens: Iterable<AddedToken>) {
    const lengths = new Map<number, Set<number>>()
    for (const token of tokens) {
      if (token.text === "") continue
      this.#byText.set(token.text, token)
      const first = token.text.charCodeAt(0)
      this.#firsts[first] = 1
      const known = lengths.get(first)
      if (known === undefined) lengths.set(first, new Set([token.text.length]))
      else known.add(token.text.length)
    }
    for (const [first, known] of lengths)
      this.#lengths.set(
        first,
        [...known].sort((a, b) => b - a),
      )
  }

  /** Cuts `text` at added tokens; those that are special stay text unless `parseSpecial`. */
  split(text: string, parseSpecial: boolean): Fragment[] {
    const fragments: Fragment[] = []
    let start = 0
    let at = 0
    while (at < text.length) {
      const token =
        this.#firsts[text.charCodeAt(at)] === 0 ? undefined : this.#at(text, at, parseSpecial)
      if (token === undefined) {
        at++
        continue
      }
      const before = text.slice(start, at)
      let end = before.length
      if (token.lstrip) while (end > 0 && WHITE_SPACE.test(before[end - 1]!)) end--
      const kept = before.slice(0, end)
      if (kept !== "") fragments.push(kept)
      fragments.push(token)
      at += token.text.length
      if (token.rstrip) while (at < text.length && WHITE_SPACE.test(text[at]!)) at++
      start = at
    }
    if (start < text.length) fragments.push(text.slice(start))
    return fragments
  }

  #at(text: string, at: number, parseSpecial: boolean): AddedToken | undefined {
    for (const length of this.#lengths.get(text.charCodeAt(at))!) {
      const token = this.#byText.get(text.slice(at, at + length))
      if (token !== undefined && (parseSpecial || !token.special)) return token
    }
    return undefined
  }
}
