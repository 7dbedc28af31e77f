import type { TextModel, Vocabulary } from "./vocabulary.ts"
import { WordCache } from "./word-cache.ts"

export interface WordPieceOptions {
  readonly vocabulary: Vocabulary
  /** Stands before the first piece of a word: U+2581 in GGUF files, nothing in BERT's own vocabularies. */
  readonly wordPrefix: string
  /** Stands before every further piece: nothing in GGUF files, `##` in BERT's own. */
  readonly continuingPrefix: string
  readonly unknownId: number | undefined
  /** Longer words, in characters, are unknown. */
  readonly maxWordLength: number
  /** Normalises a text and cuts it into words. */
  readonly words: (text: string, first: boolean) => readonly string[]
}

/** BERT's WordPiece: each word is cut from the left into the longest pieces of the vocabulary, or unknown as a whole. */
export class WordPieceModel implements TextModel {
  readonly #options: WordPieceOptions
  readonly #longest: number
  readonly #cache = new WordCache()

  constructor(options: WordPieceOptions) {
    this.#options = options
    this.#longest = options.vocabulary.texts.reduce((most, text) => Math.max(most, text.length), 0)
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
    const { vocabulary, wordPrefix, continuingPrefix, unknownId, maxWordLength } = this.#options
    const unknown = unknownId === undefined ? [] : [unknownId]
    if (word.length > maxWordLength && [...word].length > maxWordLength) return unknown
    const spelled = wordPrefix + word
    const ids: number[] = []
    for (let start = 0; start < spelled.length;) {
      const prefix = start === 0 ? "" : continuingPrefix
      let end = Math.min(spelled.length, start + this.#longest)
      let id: number | undefined
      for (; end > start; end--) {
        id = vocabulary.ids.get(prefix + spelled.slice(start, end))
        if (id !== undefined) break
      }
      if (id === undefined) return unknown
      ids.push(id)
      start = end
    }
    return ids
  }
}

export interface BertTextOptions {
  readonly lowercase: boolean
  readonly stripAccents: boolean
}

const HAN =
  /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu
const DROPPED = /[\0\ufffd]|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Cn}\p{Co}]/gu
const PIECES = /[\p{P}$+<=>^`|~]|[^\p{White_Space}\p{P}$+<=>^`|~]+/gu

/** BERT's basic tokenizer: control characters go, Han characters and punctuation stand alone, case and accents fold. */
export function bertWords(options: BertTextOptions): (text: string) => readonly string[] {
  return (text) => {
    let normal = text.replace(DROPPED, "").replace(HAN, " $& ")
    if (options.stripAccents) normal = normal.normalize("NFD").replace(/\p{Mn}/gu, "")
    // per character: a final sigma is no different
    if (options.lowercase) normal = normal.replaceAll("\u03a3", "\u03c3").toLowerCase()
    return normal.match(PIECES) ?? []
  }
}
