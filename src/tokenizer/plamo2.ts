import { Trie } from "./trie.ts"
import { byteToken, type TextModel, TokenKind, type Vocabulary } from "./vocabulary.ts"

export interface Plamo2Options {
  readonly vocabulary: Vocabulary
  readonly kinds: Uint8Array
  readonly scores: ArrayLike<number>
}

/** Scores count in ten-thousandths; tokens at or below the lower one are never taken, unknown characters cost the other. */
const SCALE = 1e4
const INVALID = -20_000_000
const UNKNOWN = -10_000_000

const utf8 = new TextEncoder()

/**
 * PLaMo 2's unigram tokenizer: the segmentation of the highest total score in whole ten-thousandths, decided from the end
 * of the text, the longest first token among equals; unknown characters in bytes. A byte order mark in front is dropped.
 */
export class Plamo2Model implements TextModel {
  readonly #byteIds: readonly (number | undefined)[]
  readonly #trie: Trie
  readonly #scores: Float64Array

  constructor({ vocabulary, kinds, scores }: Plamo2Options) {
    this.#byteIds = Array.from({ length: 256 }, (_, byte) => vocabulary.ids.get(byteToken(byte)))
    this.#trie = new Trie(vocabulary.size * 4)
    this.#scores = new Float64Array(vocabulary.size)
    for (let id = 0; id < vocabulary.size; id++) {
      const score = (scores[id] ?? 0) * SCALE
      // halves away from zero
      this.#scores[id] = Math.sign(score) * Math.round(Math.abs(score))
      const isText = kinds[id] === TokenKind.normal || kinds[id] === TokenKind.userDefined
      if (isText && vocabulary.texts[id] !== "" && this.#scores[id]! > INVALID)
        this.#trie.insertText(vocabulary.texts[id]!, id)
    }
  }

  encode(input: string, out: number[], first: boolean): void {
    const text = first && input.startsWith("\ufeff") ? input.slice(1) : input
    const { length } = text
    const costs = new Float64Array(length + 1)
    const ends = new Int32Array(length)
    const ids = new Int32Array(length)
    for (let start = length - 1; start >= 0; start--) {
      const code = text.charCodeAt(start)
      // the middle of a surrogate pair
      if (code >= 0xdc00 && code < 0xe000) continue
      const unit = code >= 0xd800 && code < 0xdc00 ? 2 : 1
      let cost = costs[start + unit]! - UNKNOWN
      ends[start] = start + unit
      ids[start] = -1
      let node = 0
      for (let end = start; end < length;) {
        node = this.#trie.child(node, text.charCodeAt(end++))
        if (node < 0) break
        const id = this.#trie.value(node)
        if (id < 0) continue
        const candidate = costs[end]! - this.#scores[id]!
        if (candidate > cost) continue
        cost = candidate
        ends[start] = end
        ids[start] = id
      }
      costs[start] = cost
    }
    for (let at = 0; at < length; at = ends[at]!) {
      if (ids[at]! >= 0) out.push(ids[at]!)
      else
        for (const byte of utf8.encode(text.slice(at, ends[at]))) {
          const id = this.#byteIds[byte]
          if (id !== undefined) out.push(id)
        }
    }
  }
}
