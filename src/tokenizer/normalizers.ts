import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers"

import { FormatError } from "../errors.ts"
import { Charsmap } from "./charsmap.ts"

/** A normalizer's entry in tokenizer.json. */
export interface NormalizerJson {
  readonly type: string
  readonly [key: string]: unknown
}

/**
 * Whether a text still begins where it did before it was normalised; the Rust tokenizers put their "first" space only
 * there, not after characters that went.
 */
export function keepsBeginning(text: string, normalize: (text: string) => string): boolean {
  return text === "" || normalize(String.fromCodePoint(text.codePointAt(0)!)) !== ""
}

/** The function that tokenizer.json's `normalizer` stands for. @throws FormatError where its charsmap is broken. */
export function normalizerOf(
  json: NormalizerJson | null | undefined,
  file: string,
): (text: string) => string {
  if (json === null || json === undefined) return (text) => text
  switch (json.type) {
    case "Sequence": {
      const parts = ((json["normalizers"] ?? []) as NormalizerJson[]).map((part) =>
        normalizerOf(part, file),
      )
      return (text) => parts.reduce((normal, part) => part(normal), text)
    }
    case "Precompiled": {
      const bytes = Buffer.from(String(json["precompiled_charsmap"] ?? ""), "base64")
      const charsmap = new Charsmap(bytes, file, "normalizer.precompiled_charsmap")
      return (text) => charsmap.normalizeGraphemes(text)
    }
    case "BertNormalizer":
      return bertNormalizer({
        cleanText: json["clean_text"] !== false,
        spacesHan: json["handle_chinese_chars"] !== false,
        lowercase: json["lowercase"] !== false,
        stripAccents: (json["strip_accents"] ?? json["lowercase"]) !== false,
      })
    case "Lowercase":
      return lowercase
    case "StripAccents":
      return (text) => text.replace(/\p{M}/gu, "")
    case "Nmt":
      return (text) => text.replace(NMT_DROPPED, "").replace(NMT_SPACES, " ")
    default:
      return ofLibrary(json, file)
  }
}

/** Lower case character by character: at the end of a word, sigma is no different. */
export function lowercase(text: string): string {
  return text.replaceAll("\u03a3", "\u03c3").toLowerCase()
}

export interface BertNormalizerOptions {
  readonly cleanText: boolean
  readonly spacesHan: boolean
  readonly stripAccents: boolean
  readonly lowercase: boolean
}

/** BERT's normaliser: control characters go, white space becomes spaces, Han characters stand alone, case and accents fold. */
export function bertNormalizer(options: BertNormalizerOptions): (text: string) => string {
  return (text) => {
    let normal = text
    if (options.cleanText) normal = normal.replace(DROPPED, "").replace(WHITE_SPACE, " ")
    if (options.spacesHan) normal = normal.replace(HAN, " $& ")
    if (options.stripAccents) normal = normal.normalize("NFD").replace(/\p{Mn}/gu, "")
    return options.lowercase ? lowercase(normal) : normal
  }
}

const WHITE_SPACE = /\p{White_Space}/gu
const DROPPED = /[\0\ufffd]|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]/gu
const HAN =
  /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu
/** SentencePiece's rules for machine translation (nmt.tsv). */
const NMT_DROPPED = /[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]/g
const NMT_SPACES = /[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]/g

function ofLibrary(json: NormalizerJson, file: string): (text: string) => string {
  let library: LibraryTokenizer
  try {
    library = new LibraryTokenizer(
      {
        added_tokens: [],
        normalizer: json,
        pre_tokenizer: null,
        post_processor: null,
        decoder: null,
        model: { type: "BPE", vocab: {}, merges: [] },
      },
      {},
    )
  } catch (cause) {
    throw new FormatError(file, `normalizer has the type "${json.type}", which is not supported`, {
      cause,
    })
  }
  const { normalizer } = library
  return normalizer === null ? (text) => text : (text) => normalizer.normalize(text)
}
