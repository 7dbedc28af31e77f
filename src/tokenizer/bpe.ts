import { ID_SPAN, Merger, type PairTable } from "./merge.ts"
import { keepsBeginning } from "./normalizers.ts"
import { cut, type Splitter } from "./splitters.ts"
import { BYTE_TO_CHAR, byteToken, type TextModel, type Vocabulary } from "./vocabulary.ts"
import { WordCache } from "./word-cache.ts"

export interface BpeOptions {
  readonly vocabulary: Vocabulary
  /**
   * In order of rank: "left right", or the two apart. As `below`: two symbols merge when their joint text is a token below
   * that id, which is also the rank (tiktoken).
   */
  readonly merges:
    readonly string[] | readonly (readonly [string, string])[] | { readonly below: number }
  /** Symbols are bytes written as GPT-2's characters; otherwise code points. */
  readonly byteLevel: boolean
  /** A word that is a token is taken whole without merging. */
  readonly wholeWords: (word: string) => boolean
  /** Applied to the text before anything else. */
  readonly normalize: (text: string) => string
  /** Applied one after the other, each to the pieces of the one before. */
  readonly splitters: readonly Splitter[]
  /** Code points outside the vocabulary become `<0xNN>` tokens. */
  readonly byteFallback: boolean
  /** Stands for what cannot be encoded; without it such text is dropped. */
  readonly unknownId: number | undefined
  /** Neighbouring unknowns become one. */
  readonly fuseUnknown: boolean
}

/** Merges keyed by the two ids, in an open-addressed table of typed arrays (a Map costs 4 times the memory and time). */
class MergeTable implements PairTable {
  readonly #mask: number
  readonly #left: Int32Array
  readonly #right: Int32Array
  readonly #packed: Float64Array

  constructor(count: number) {
    const capacity = 2 ** Math.ceil(Math.log2(Math.max(16, count * 2)))
    this.#mask = capacity - 1
    this.#left = new Int32Array(capacity).fill(-1)
    this.#right = new Int32Array(capacity)
    this.#packed = new Float64Array(capacity)
  }

  #slot(left: number, right: number): number {
    let hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)
    hash ^= hash >>> 15
    let slot = hash & this.#mask
    while (this.#left[slot] !== -1 && (this.#left[slot] !== left || this.#right[slot] !== right))
      slot = (slot + 1) & this.#mask
    return slot
  }

  /** The first rank given to a pair counts. */
  add(left: number, right: number, rank: number, merged: number): void {
    const slot = this.#slot(left, right)
    if (this.#left[slot] !== -1) return
    this.#left[slot] = left
    this.#right[slot] = right
    this.#packed[slot] = rank * ID_SPAN + merged
  }

  lookup(left: number, right: number): number {
    const slot = this.#slot(left, right)
    return this.#left[slot] === -1 ? -1 : this.#packed[slot]!
  }
}

/** Remembered pairs; the memory is dropped whole when it is full. */
const CACHE_PAIRS = 500_000

const utf8 = new TextEncoder()

/** Byte-pair encoding with a rank list, as in GPT-2 (bytes) and in converted SentencePiece models (code points). */
export class BpeModel implements TextModel {
  readonly #options: BpeOptions
  readonly #table: PairTable
  readonly #merger = new Merger()
  readonly #vocabularySize: number
  /** Texts that occur in merges or input without being tokens; their ids follow the vocabulary's. */
  readonly #strangers = new Map<string, number>()
  readonly #strangerTexts: string[] = []
  readonly #byteIds = new Int32Array(256)
  readonly #cache = new WordCache()
  #bytes = new Uint8Array(1024)
  #symbols = new Int32Array(1024)

  constructor(options: BpeOptions) {
    this.#options = options
    this.#vocabularySize = options.vocabulary.size
    const { merges } = options
    this.#table =
      "below" in merges ? this.#pairsOfTokens(merges.below) : this.#pairsOfMerges(merges)
    if (!options.byteLevel) return
    for (let byte = 0; byte < 256; byte++) this.#byteIds[byte] = this.#id(BYTE_TO_CHAR[byte]!)
  }

  #pairsOfMerges(merges: readonly (string | readonly [string, string])[]): PairTable {
    const table = new MergeTable(merges.length)
    for (let rank = 0; rank < merges.length; rank++) {
      const merge = merges[rank]!
      let left: string
      let right: string
      if (typeof merge === "string") {
        const cut = merge.indexOf(" ", 1)
        if (cut < 0) continue
        left = merge.slice(0, cut)
        right = merge.slice(cut + 1)
      } else [left, right] = merge
      table.add(this.#id(left), this.#id(right), rank, this.#id(left + right))
    }
    return table
  }

  #pairsOfTokens(below: number): PairTable {
    const { texts, ids } = this.#options.vocabulary
    const known = new Map<number, number>()
    return {
      lookup: (left, right) => {
        const key = left * ID_SPAN + right
        let packed = known.get(key)
        if (packed === undefined) {
          const id = ids.get(texts[left]! + texts[right]!) ?? below
          packed = id < below ? id * ID_SPAN + id : -1
          if (known.size >= CACHE_PAIRS) known.clear()
          known.set(key, packed)
        }
        return packed
      },
    }
  }

  encode(text: string, out: number[], first: boolean): void {
    const { normalize, splitters } = this.#options
    const normal = normalize(text)
    if (normal === "") return
    for (const word of cut(normal, splitters, first && keepsBeginning(text, normalize))) {
      const ids = this.#cache.get(word) ?? this.#word(word)
      for (let i = 0; i < ids.length; i++) out.push(ids[i]!)
    }
  }

  #word(word: string): readonly number[] {
    const ids = this.#encodeWord(word)
    this.#cache.set(word, ids)
    return ids
  }

  #encodeWord(word: string): readonly number[] {
    const { byteLevel, vocabulary, wholeWords } = this.#options
    let count: number
    if (byteLevel) {
      if (this.#bytes.length < word.length * 3) this.#bytes = new Uint8Array(word.length * 6)
      count = utf8.encodeInto(word, this.#bytes).written
      if (wholeWords(word)) {
        let spelled = ""
        for (let i = 0; i < count; i++) spelled += BYTE_TO_CHAR[this.#bytes[i]!]!
        const id = vocabulary.ids.get(spelled)
        if (id !== undefined) return [id]
      }
      this.#reserve(count)
      for (let i = 0; i < count; i++) this.#symbols[i] = this.#byteIds[this.#bytes[i]!]!
    } else {
      if (wholeWords(word)) {
        const id = vocabulary.ids.get(word)
        if (id !== undefined) return [id]
      }
      this.#reserve(word.length)
      count = 0
      for (const char of word) this.#symbols[count++] = this.#id(char)
    }
    const left = this.#merger.run(this.#symbols, count, this.#table)
    const ids: number[] = []
    for (let i = 0; i < left; i++) {
      const id = this.#symbols[i]!
      if (id < this.#vocabularySize) ids.push(id)
      else this.#spell(this.#strangerTexts[id - this.#vocabularySize]!, ids)
    }
    return ids
  }

  /** A text that is no token: byte by byte where the vocabulary has bytes, else as the unknown token. */
  #spell(text: string, out: number[]): void {
    const { byteLevel, byteFallback, vocabulary, unknownId, fuseUnknown } = this.#options
    const pieces = byteLevel
      ? [...text]
      : byteFallback
        ? Array.from(utf8.encode(text), byteToken)
        : []
    const ids = pieces.map((piece) => vocabulary.ids.get(piece))
    if (ids.length > 0 && ids.every((id) => id !== undefined)) {
      out.push(...ids)
      return
    }
    if (byteLevel) out.push(...ids.filter((id) => id !== undefined))
    else if (unknownId !== undefined && !(fuseUnknown && out.at(-1) === unknownId))
      out.push(unknownId)
  }

  #reserve(count: number): void {
    if (this.#symbols.length < count) this.#symbols = new Int32Array(count * 2)
  }

  #id(text: string): number {
    const known = this.#options.vocabulary.ids.get(text) ?? this.#strangers.get(text)
    if (known !== undefined) return known
    const id = this.#vocabularySize + this.#strangerTexts.length
    this.#strangers.set(text, id)
    this.#strangerTexts.push(text)
    return id
  }
}
