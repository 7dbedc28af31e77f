/** Words are remembered up to these bounds; the memory is dropped whole when it is full. */
const CACHE_WORDS = 50_000
const CACHE_WORD_LENGTH = 64

/** Ids of words met before: texts repeat their words, and a lookup is cheaper than any algorithm. */
export class WordCache {
  readonly #words = new Map<string, readonly number[]>()

  get(word: string): readonly number[] | undefined {
    return this.#words.get(word)
  }

  set(word: string, ids: readonly number[]): void {
    if (word.length > CACHE_WORD_LENGTH) return
    if (this.#words.size >= CACHE_WORDS) this.#words.clear()
    this.#words.set(word, ids)
  }
}
