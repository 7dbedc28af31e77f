import { Trie } from "./trie.ts"
import type { TextModel, Vocabulary } from "./vocabulary.ts"

const ESCAPES: Readonly<Record<string, number>> = { t: 9, n: 10, r: 13 }
const utf8 = new TextEncoder()

/** Bytes of a token as RWKV's vocabulary file writes them: UTF-8 with `\t`, `\n`, `\r` and `\xNN`. */
export function unescapeToken(token: string): Uint8Array {
  const bytes: number[] = []
  for (const [part, escaped] of token.matchAll(/\\(x[0-9A-Fa-f]{2}|[^])|[^\\]+|\\/gu)) {
    if (escaped === undefined) bytes.push(...utf8.encode(part))
    else if (escaped.length === 3) bytes.push(parseInt(escaped.slice(1), 16))
    else if (ESCAPES[escaped] !== undefined) bytes.push(ESCAPES[escaped])
    else bytes.push(...utf8.encode(escaped))
  }
  return Uint8Array.from(bytes)
}

/** RWKV World's tokenizer: from the left, the longest token of the text's bytes. */
export class RwkvModel implements TextModel {
  readonly #trie: Trie
  readonly #unknownId: number | undefined

  constructor(
    vocabulary: Vocabulary,
    isText: (id: number) => boolean,
    unknownId: number | undefined,
  ) {
    this.#unknownId = unknownId
    this.#trie = new Trie(vocabulary.size * 4)
    for (let id = 0; id < vocabulary.size; id++)
      if (isText(id) && vocabulary.texts[id] !== "")
        this.#trie.insert(unescapeToken(vocabulary.texts[id]!), id)
  }

  encode(text: string, out: number[]): void {
    const bytes = utf8.encode(text)
    for (let start = 0; start < bytes.length;) {
      let id = -1
      let next = start + 1
      let node = 0
      for (let end = start; end < bytes.length;) {
        node = this.#trie.child(node, bytes[end++]!)
        if (node < 0) break
        if (this.#trie.value(node) < 0) continue
        id = this.#trie.value(node)
        next = end
      }
      if (id >= 0) out.push(id)
      else if (this.#unknownId !== undefined) out.push(this.#unknownId)
      start = next
    }
  }
}
