import { bertNormalizer } from "./normalizers.ts"
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

/** White space, and each punctuation mark of Unicode or ASCII, ends a word; the marks are words themselves. */
export const BERT_PIECES: RegExp = /[\p{P}$+<=>^`|~]|[^\p{White_Space}\p{P}$+<=>^`|~]+/gu

/** BERT's basic tokenizer. */
export function bertWords(options: BertTextOptions): (text: string) => readonly string[] {
  const normalize = bertNormalizer({ ...options, cleanText: true, spacesHan: true })
  return (text) => normalize(text).match(BERT_PIECES) ?? []
}
