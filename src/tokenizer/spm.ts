import { ID_SPAN, Merger, type PairTable } from "./merge.ts"
import { byteToken, type TextModel, type Vocabulary } from "./vocabulary.ts"
import { WordCache } from "./word-cache.ts"

export interface SpmOptions {
  readonly vocabulary: Vocabulary
  /** One per token; higher merges first. */
  readonly scores: ArrayLike<number>
  /** Each text between special tokens gets a space in front. */
  readonly addSpacePrefix: boolean
  /** Applied to the text before that. */
  readonly normalize: (text: string) => string
  readonly unknownId: number | undefined
}

/** Remembered pairs; the memory is dropped whole when it is full. */
const CACHE_PAIRS = 500_000
const SPACE = "\u2581"
const WORDS = /\u2581+[^\u2581]*|[^\u2581]+/g

/** No token has a space after something else, so none crosses the beginning of a word. */
export function cutsAtSpaces(texts: readonly string[]): boolean {
  return !texts.some((text) => text.lastIndexOf(SPACE) > 0 && /[^\u2581]\u2581/.test(text))
}

/** Cuts before each run of U+2581. */
export function spacedWords(spelled: string): readonly string[] {
  return spelled.match(WORDS) ?? []
}

const utf8 = new TextEncoder()

/**
 * SentencePiece's score-based merging: two neighbours merge when their joint text is a token, best score first, the
 * leftmost among equal scores; what stays outside the vocabulary is spelled in byte tokens. The library's ranked merges
 * cannot express this, because there two tokens of one score would never tie.
 */
export class SpmModel implements TextModel, PairTable {
  readonly #options: SpmOptions
  readonly #merger = new Merger()
  /** Per token: place of its score among the distinct scores, best first. */
  readonly #ranks: Int32Array
  readonly #strangers = new Map<string, number>()
  readonly #strangerTexts: string[] = []
  readonly #pairs = new Map<number, number>()
  readonly #cache = new WordCache()
  readonly #cutsAtSpaces: boolean
  #symbols = new Int32Array(1024)

  constructor(options: SpmOptions) {
    this.#options = options
    const { size, texts } = options.vocabulary
    this.#cutsAtSpaces = cutsAtSpaces(texts)
    const distinct = Float64Array.from(
      new Set(Array.from({ length: size }, (_, id) => options.scores[id] ?? 0)),
    )
    distinct.sort().reverse()
    const rankOf = new Map<number, number>()
    for (let rank = 0; rank < distinct.length; rank++) rankOf.set(distinct[rank]!, rank)
    this.#ranks = Int32Array.from({ length: size }, (_, id) => rankOf.get(options.scores[id] ?? 0)!)
  }

  encode(text: string, out: number[]): void {
    const { addSpacePrefix, normalize } = this.#options
    const normal = normalize(text)
    if (normal === "") return
    const spelled = (addSpacePrefix ? SPACE : "") + normal.replaceAll(" ", SPACE)
    const words = this.#cutsAtSpaces ? spacedWords(spelled) : [spelled]
    for (const word of words) {
      const ids = this.#cache.get(word) ?? this.#word(word)
      for (let i = 0; i < ids.length; i++) out.push(ids[i]!)
    }
  }

  #word(word: string): readonly number[] {
    const { vocabulary } = this.#options
    if (this.#symbols.length < word.length) this.#symbols = new Int32Array(word.length * 2)
    let count = 0
    for (const char of word) this.#symbols[count++] = this.#id(char)
    const left = this.#merger.run(this.#symbols, count, this)
    const ids: number[] = []
    for (let i = 0; i < left; i++) {
      const id = this.#symbols[i]!
      if (id < vocabulary.size) ids.push(id)
      else this.#spell(this.#strangerTexts[id - vocabulary.size]!, ids)
    }
    this.#cache.set(word, ids)
    return ids
  }

  lookup(left: number, right: number): number {
    const key = left * ID_SPAN + right
    const known = this.#pairs.get(key)
    if (known !== undefined) return known
    const merged = this.#options.vocabulary.ids.get(this.#text(left) + this.#text(right))
    const packed = merged === undefined ? -1 : this.#ranks[merged]! * ID_SPAN + merged
    if (this.#pairs.size >= CACHE_PAIRS) this.#pairs.clear()
    this.#pairs.set(key, packed)
    return packed
  }

  #spell(text: string, out: number[]): void {
    const { vocabulary, unknownId } = this.#options
    for (const byte of utf8.encode(text)) {
      const id = vocabulary.ids.get(byteToken(byte))
      if (id !== undefined) out.push(id)
      // without byte tokens, neighbouring unknowns are one
      else if (unknownId !== undefined && out.at(-1) !== unknownId) out.push(unknownId)
    }
  }

  #text(id: number): string {
    const { texts } = this.#options.vocabulary
    return id < texts.length ? texts[id]! : this.#strangerTexts[id - texts.length]!
  }

  #id(char: string): number {
    const known = this.#options.vocabulary.ids.get(char) ?? this.#strangers.get(char)
    if (known !== undefined) return known
    const id = this.#options.vocabulary.size + this.#strangerTexts.length
    this.#strangers.set(char, id)
    this.#strangerTexts.push(char)
    return id
  }
}
