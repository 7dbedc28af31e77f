/** What a token is, as GGUF's `tokenizer.ggml.token_type` numbers it. */
export const TokenKind = {
  normal: 1,
  unknown: 2,
  control: 3,
  userDefined: 4,
  unused: 5,
  byte: 6,
} as const

/** How a token's text becomes bytes. */
export type Spelling =
  /** GPT-2's printable stand-ins for bytes */
  | "byte-level"
  /** U+2581 for a space, `<0xNN>` for single bytes */
  | "metaspace"
  /** BERT's: `##` continues a word, everything else begins one */
  | "word-piece"
  /** as it stands, `<0xNN>` for single bytes */
  | "plain"
  /** RWKV's: `\\t`, `\\n`, `\\r` and `\\xNN` */
  | "escaped"

/** Texts of all tokens and the way back. Ids without a token have an empty text. */
export class Vocabulary {
  readonly texts: readonly string[]
  readonly ids: ReadonlyMap<string, number>

  constructor(texts: readonly string[]) {
    this.texts = texts
    const ids = new Map<string, number>()
    for (let id = 0; id < texts.length; id++) {
      const text = texts[id]!
      if (text !== "") ids.set(text, id)
    }
    this.ids = ids
  }

  get size(): number {
    return this.texts.length
  }
}

/** Turns plain text (no special tokens inside) into ids. */
export interface TextModel {
  /** Appends the ids of `text`; `first` says that it begins the whole text. */
  encode(text: string, out: number[], first: boolean): void
}

/** GPT-2's table: each byte as one printable character (`bytes_to_unicode` of its encoder). */
export const BYTE_TO_CHAR: readonly string[] = (() => {
  const table: string[] = []
  let spare = 256
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte !== 173)
    table.push(String.fromCharCode(printable ? byte : spare++))
  }
  return table
})()

/** The way back: character code → byte, -1 for characters outside the table. */
export const CHAR_TO_BYTE: Int16Array = (() => {
  const table = new Int16Array(324).fill(-1)
  for (let byte = 0; byte < 256; byte++) table[BYTE_TO_CHAR[byte]!.charCodeAt(0)] = byte
  return table
})()

/** Text of the token that stands for one byte in vocabularies with byte fallback. */
export function byteToken(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`
}

/** The byte that `<0xNN>` stands for, or -1. */
export function byteOfToken(text: string): number {
  return text.length === 6 && /^<0x[0-9A-Fa-f]{2}>$/.test(text)
    ? parseInt(text.slice(3, 5), 16)
    : -1
}
