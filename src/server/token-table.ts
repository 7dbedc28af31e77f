import type { TokenTable } from "../worker/protocol.ts"
import { isMarker } from "./tools/answer-parser.ts"
import type { ServerTokenizer } from "./types.ts"

/** Tokens between two looks at what else there is to do: some tenths of a millisecond. */
const AT_ONCE = 1024

/**
 * The bytes of all tokens, for grammars; control tokens that neither end the answer nor are a marker have none. A large
 * vocabulary takes a tenth of a second, in which the event loop goes on.
 */
export async function tokenTable(tokenizer: ServerTokenizer): Promise<TokenTable> {
  const { vocabSize, chatFormat: format } = tokenizer
  const eog = new Set(tokenizer.eogIds)
  const decoder = new TextDecoder()
  const ends = new Uint32Array(new SharedArrayBuffer(4 * vocabSize))
  let bytes = new Uint8Array(16 * vocabSize)
  let length = 0
  for (let id = 0; id < vocabSize; id++) {
    if (id % AT_ONCE === 0) await new Promise<void>((resolve) => setImmediate(resolve))
    const token = tokenizer.tokenBytes(id)
    // xgrammar lets those end the text that have one
    const isText =
      eog.has(id) ||
      !tokenizer.isSpecial(id) ||
      (format !== undefined && isMarker(format, decoder.decode(token)))
    if (isText) {
      if (length + token.length > bytes.length) bytes = grown(bytes, length + token.length)
      bytes.set(token, length)
      length += token.length
    }
    ends[id] = length
  }
  const shared = new Uint8Array(new SharedArrayBuffer(length))
  shared.set(bytes.subarray(0, length))
  return { bytes: shared, ends }
}

function grown(bytes: Uint8Array<ArrayBuffer>, least: number): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(Math.max(least, 2 * bytes.length))
  out.set(bytes)
  return out
}
