import { Trie } from "./trie.ts"
import { byteToken, type TextModel, TokenKind, type Vocabulary } from "./vocabulary.ts"
import { WordCache } from "./word-cache.ts"

export interface UnigramOptions {
  readonly vocabulary: Vocabulary
  /** TokenKind per id; control, unknown and byte tokens are never found in text. */
  readonly kinds: Uint8Array
  /** Log probabilities per token. */
  readonly scores: ArrayLike<number>
  readonly unknownId: number | undefined
  /** Characters outside the vocabulary become `<0xNN>` tokens. */
  readonly byteFallback: boolean
  /** Normalises a text and cuts it into words that are encoded independently. */
  readonly words: (text: string, first: boolean) => readonly string[]
}

/** What an unknown character costs more than the least probable token (SentencePiece's kUnkPenalty). */
const UNKNOWN_PENALTY = 10
const UNKNOWN = -1

const utf8 = new TextEncoder()

/**
 * The most probable segmentation of each word by a unigram language model, found with Viterbi's algorithm (Kudo 2018,
 * as in SentencePiece): among equals the one found first from the left.
 */
export class UnigramModel implements TextModel {
  readonly #options: UnigramOptions
  readonly #trie: Trie
  readonly #scores: Float64Array
  readonly #unknownScore: number
  readonly #cache = new WordCache()
  #best = new Float64Array(256)
  #from = new Int32Array(256)
  #ids = new Int32Array(256)

  constructor(options: UnigramOptions) {
    this.#options = options
    const { vocabulary, kinds, scores } = options
    this.#trie = new Trie(vocabulary.size * 4)
    this.#scores = new Float64Array(vocabulary.size)
    let least = Infinity
    for (let id = 0; id < vocabulary.size; id++) {
      const kind = kinds[id]
      const text = vocabulary.texts[id]!
      if (kind === TokenKind.normal) least = Math.min(least, scores[id] ?? 0)
      // those that the user asks for are always taken
      this.#scores[id] = kind === TokenKind.userDefined ? 0 : (scores[id] ?? 0)
      if (kind !== TokenKind.normal && kind !== TokenKind.userDefined && kind !== TokenKind.unused)
        continue
      if (text !== "") this.#trie.insertText(text, id)
    }
    this.#unknownScore = (least === Infinity ? 0 : least) - UNKNOWN_PENALTY
  }

  encode(text: string, out: number[], first: boolean): void {
    for (const word of this.#options.words(text, first)) {
      let ids = this.#cache.get(word)
      if (ids === undefined) {
        ids = this.#word(word)
        this.#cache.set(word, ids)
      }
      for (let i = 0; i < ids.length; i++) out.push(ids[i]!)
    }
  }

  #word(word: string): readonly number[] {
    const { length } = word
    this.#reset(length)
    const trie = this.#trie
    for (let start = 0; start < length;) {
      const unit = word.codePointAt(start)! > 0xffff ? 2 : 1
      let isCharacter = false
      let node = 0
      for (let end = start; end < length;) {
        node = trie.child(node, word.charCodeAt(end++))
        if (node < 0) break
        const id = trie.value(node)
        if (id < 0) continue
        this.#offer(start, end, id, this.#scores[id]!)
        if (end - start === unit) isCharacter = true
      }
      if (!isCharacter) this.#offer(start, start + unit, UNKNOWN, this.#unknownScore)
      start += unit
    }
    return this.#path(word)
  }

  #reset(length: number): void {
    if (this.#best.length <= length) {
      this.#best = new Float64Array(length * 2)
      this.#from = new Int32Array(length * 2)
      this.#ids = new Int32Array(length * 2)
    }
    this.#best.fill(-Infinity, 0, length + 1)
    this.#best[0] = 0
  }

  #offer(start: number, end: number, id: number, score: number): void {
    const total = this.#best[start]! + score
    if (total <= this.#best[end]!) return
    this.#best[end] = total
    this.#from[end] = start
    this.#ids[end] = id
  }

  /** Reads the best path back from its end; neighbouring unknown characters become one. */
  #path(word: string): readonly number[] {
    const { vocabulary, byteFallback, unknownId } = this.#options
    const ids: number[] = []
    for (let end = word.length; end > 0;) {
      if (this.#ids[end] !== UNKNOWN) {
        ids.push(this.#ids[end]!)
        end = this.#from[end]!
        continue
      }
      let start = end
      while (start > 0 && this.#ids[start] === UNKNOWN) start = this.#from[start]!
      const bytes = byteFallback
        ? Array.from(utf8.encode(word.slice(start, end)), (byte) =>
            vocabulary.ids.get(byteToken(byte)),
          )
        : [undefined]
      if (bytes.every((id) => id !== undefined)) ids.push(...bytes.reverse())
      else if (unknownId !== undefined) ids.push(unknownId)
      end = start
    }
    return ids.reverse()
  }
}
