import { ConfigError } from "../errors.ts"
import type { GgufMetadata } from "../weights/metadata.ts"
import { partsFromGguf } from "./from-gguf.ts"
import { partsFromPretrained } from "./from-pretrained.ts"
import type { TokenizerParts } from "./parts.ts"
import { unescapeToken } from "./rwkv.ts"
import { SpecialTokens } from "./special-tokens.ts"
import { byteOfToken, CHAR_TO_BYTE, TokenKind, type Vocabulary } from "./vocabulary.ts"

export interface EncodeOptions {
  /** Put the model's start token (and end token, where it has one) around the text; default true. */
  readonly addSpecial?: boolean
  /** Recognise the text of control tokens; otherwise it is ordinary text. Default false. */
  readonly parseSpecial?: boolean
}

export interface DecodeOptions {
  /** Leave out control tokens; default false. */
  readonly skipSpecial?: boolean
}

const utf8 = new TextEncoder()
const NOTHING = new Uint8Array(0)

/** Text ⇄ token ids of one model. */
export class Tokenizer {
  readonly vocabSize: number
  readonly bosId: number | undefined
  readonly eosId: number | undefined
  readonly padId: number | undefined
  /** Stands for text that the vocabulary cannot spell. */
  readonly unknownId: number | undefined
  /** Ids after which generation stops. */
  readonly eogIds: readonly number[]
  /** By name; the plain one is "default". */
  readonly chatTemplates: ReadonlyMap<string, string>
  /** Texts begin with a space that is not the user's; `decode` takes it away. */
  readonly stripsLeadingSpace: boolean
  readonly #parts: TokenizerParts
  readonly #vocabulary: Vocabulary
  readonly #special: SpecialTokens
  readonly #bytes: (Uint8Array | undefined)[] = []

  constructor(parts: TokenizerParts) {
    this.#parts = parts
    this.#vocabulary = parts.vocabulary
    this.vocabSize = parts.vocabulary.size
    this.bosId = parts.bosId
    this.eosId = parts.eosId
    this.padId = parts.padId
    this.unknownId = parts.unknownId
    this.eogIds = parts.eogIds
    this.chatTemplates = parts.chatTemplates
    this.stripsLeadingSpace = parts.stripsLeadingSpace
    this.#special = new SpecialTokens(parts.added)
  }

  /** From the metadata of a GGUF file; `file` is for messages. */
  static fromGguf(metadata: GgufMetadata, file = "GGUF metadata"): Tokenizer {
    return new Tokenizer(partsFromGguf(metadata, file))
  }

  /** From a folder with tokenizer.json and, where present, tokenizer_config.json and its companions. */
  static async fromPretrained(folder: string): Promise<Tokenizer> {
    return new Tokenizer(await partsFromPretrained(folder))
  }

  /** The model's chat template, or undefined. */
  get chatTemplate(): string | undefined {
    return this.chatTemplates.get("default")
  }

  encode(text: string, options: EncodeOptions = {}): Int32Array {
    const { addSpecial = true, parseSpecial = false } = options
    const ids: number[] = addSpecial ? [...this.#parts.prefix] : []
    let first = true
    for (const fragment of this.#special.split(text.toWellFormed(), parseSpecial)) {
      if (typeof fragment === "string") this.#parts.model.encode(fragment, ids, first)
      else ids.push(fragment.id)
      first = false
    }
    if (addSpecial) for (const id of this.#parts.suffix) ids.push(id)
    return Int32Array.from(ids)
  }

  /** Two texts that a model compares, as BERT's kind gets them, and where the second begins. */
  encodePair(first: string, second: string): { ids: Int32Array; secondFrom: number } {
    const start = this.encode(first)
    const rest = this.encode(second, { addSpecial: false })
    const ids = Int32Array.from([...start, ...rest, ...this.#parts.suffix])
    return { ids, secondFrom: start.length }
  }

  /** A text's ids cut to `limit`; what ends texts still ends them. */
  truncate(ids: Int32Array, limit: number): Int32Array {
    if (ids.length <= limit) return ids
    const { suffix } = this.#parts
    const isEnded =
      suffix.length < limit && suffix.every((id, i) => ids.at(i - suffix.length) === id)
    if (!isEnded) return ids.slice(0, limit)
    return Int32Array.from([...ids.subarray(0, limit - suffix.length), ...suffix])
  }

  /**
   * Encodes a rendered chat template: control tokens are recognised, and the start token is put in front only
   * where the template has not written it.
   */
  encodePrompt(text: string): Int32Array {
    const ids = this.encode(text, { addSpecial: false, parseSpecial: true })
    const prefix = this.#parts.prefix
    if (prefix.length === 0 || ids[0] === prefix[0]) return ids
    return Int32Array.from([...prefix, ...ids])
  }

  /** Invalid UTF-8 becomes U+FFFD. Ids outside the vocabulary (padding rows of the output matrix) are nothing. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const { skipSpecial = false } = options
    const pieces: Uint8Array[] = []
    let length = 0
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i]!
      if (skipSpecial && this.isSpecial(id)) continue
      const bytes = this.tokenBytes(id)
      pieces.push(bytes)
      length += bytes.length
    }
    const all = new Uint8Array(length)
    let at = 0
    for (const piece of pieces) {
      all.set(piece, at)
      at += piece.length
    }
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(all)
    return this.stripsLeadingSpace && text.startsWith(" ") ? text.slice(1) : text
  }

  /** UTF-8 bytes (perhaps of part of a character) that the token adds to the text. */
  tokenBytes(id: number): Uint8Array {
    if (id < 0 || id >= this.vocabSize) return NOTHING
    return (this.#bytes[id] ??= this.#spell(id))
  }

  /** The token as it stands in the vocabulary, e.g. `Ġthe` or `▁the`. */
  tokenText(id: number): string {
    if (id < 0 || id >= this.vocabSize)
      throw new ConfigError(`token id ${id} is outside the vocabulary of ${this.vocabSize}`)
    return this.#vocabulary.texts[id]!
  }

  /** Id of the token that stands so in the vocabulary. */
  tokenId(text: string): number | undefined {
    return this.#vocabulary.ids.get(text)
  }

  /** Control and unknown tokens: those that are not text. */
  isSpecial(id: number): boolean {
    const kind = this.#parts.kinds[id]
    return kind === TokenKind.control || kind === TokenKind.unknown
  }

  isEndOfGeneration(id: number): boolean {
    return this.eogIds.includes(id)
  }

  #spell(id: number): Uint8Array {
    const text = this.#vocabulary.texts[id]!
    if (this.#parts.verbatim.has(id) || this.isSpecial(id)) return utf8.encode(text)
    switch (this.#parts.spelling) {
      case "byte-level": {
        const bytes = new Uint8Array(text.length)
        for (let i = 0; i < text.length; i++) {
          const byte = CHAR_TO_BYTE[text.charCodeAt(i)] ?? -1
          // some vocabularies have plain text among their tokens
          if (byte < 0) return utf8.encode(text)
          bytes[i] = byte
        }
        return bytes
      }
      case "metaspace": {
        const byte = byteOfToken(text)
        return byte >= 0 ? Uint8Array.of(byte) : utf8.encode(text.replaceAll("\u2581", " "))
      }
      case "plain": {
        const byte = byteOfToken(text)
        return byte >= 0 ? Uint8Array.of(byte) : utf8.encode(text)
      }
      case "escaped":
        return unescapeToken(text)
      case "word-piece":
        return utf8.encode(text.startsWith("##") ? text.slice(2) : ` ${text}`)
    }
  }
}
