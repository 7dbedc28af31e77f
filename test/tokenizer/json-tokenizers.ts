import type { TokenizerJson } from "../../src/tokenizer/tokenizer-json.ts"
import { BYTE_TOKENS, charsmapOf } from "./vocabularies.ts"

const SPACE = "\u2581"
const SPECIAL = ["<unk>", "<s>", "</s>"]
const CHARACTERS = [
  ..."abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-()<>{}=;:/#éßñ日本語中文한국어नमस्तेไทยПривет",
]
const WORDS = [
  "he",
  "ll",
  "o",
  "hello",
  "wor",
  "ld",
  "world",
  "er",
  "in",
  "on",
  "ing",
  "the",
  "123",
  "本語",
  "...",
  "if",
]

const charsmap = charsmapOf({
  ﬁ: "fi",
  "①": "1",
  "㌔": "キロ",
  "\u3000": " ",
  "\u00a0": " ",
  "\n": " ",
  "\t": " ",
  "\u2028": " ",
  Ａ: "A",
  ｂ: "b",
})

function added(texts: readonly string[]): NonNullable<TokenizerJson["added_tokens"]> {
  return texts.map((content, id) => ({
    id,
    content,
    special: true,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
  }))
}

function unigram(
  normalizer: object | null,
  preTokenizer: NonNullable<TokenizerJson["pre_tokenizer"]>,
  byteFallback = false,
): TokenizerJson {
  const bare = [...new Set([...CHARACTERS, ...WORDS])]
  const spaced = [SPACE, SPACE + SPACE, ...WORDS.map((word) => SPACE + word), `${SPACE}a`]
  const pieces = [...bare, ...spaced, ...(byteFallback ? BYTE_TOKENS : [])]
  return {
    version: "1.0",
    added_tokens: added(SPECIAL),
    normalizer,
    pre_tokenizer: preTokenizer,
    post_processor: null,
    decoder: { type: "Metaspace", replacement: SPACE, prepend_scheme: "always", split: true },
    model: {
      type: "Unigram",
      unk_id: 0,
      byte_fallback: byteFallback,
      vocab: [
        ...SPECIAL.map((text) => [text, 0] as const),
        // no two sums of these are equal by chance
        ...pieces.map((text, i) => [text, -3 - Math.sqrt(i + 2) / 7 + text.length * 0.9] as const),
      ],
    },
  }
}

function wordPiece(options: object, preTokenizer: string): TokenizerJson {
  const special = ["[UNK]", "[CLS]", "[SEP]"]
  const starts = [...new Set([...CHARACTERS, ..."ABCIL", ...WORDS])]
  const texts = [...special, ...starts, ...starts.map((text) => `##${text}`)]
  return {
    version: "1.0",
    added_tokens: added(special),
    normalizer: {
      type: "BertNormalizer",
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase: true,
      ...options,
    },
    pre_tokenizer: { type: preTokenizer },
    post_processor: null,
    decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(texts.map((text, id) => [text, id])),
    },
  }
}

function characterBpe(
  normalizer: object,
  preTokenizer: NonNullable<TokenizerJson["pre_tokenizer"]> | null,
  stripsSpace: boolean,
): TokenizerJson {
  const merges: (readonly [string, string])[] = []
  const tokens = new Set([...SPECIAL, ...BYTE_TOKENS, ...CHARACTERS, SPACE])
  for (const word of WORDS.flatMap((each) => [each, SPACE + each])) {
    let text = ""
    for (const char of word) {
      if (text !== "" && !tokens.has(text + char)) merges.push([text, char])
      text += char
      tokens.add(text)
    }
  }
  return {
    version: "1.0",
    added_tokens: added(SPECIAL),
    normalizer,
    pre_tokenizer: preTokenizer,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: SPACE }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(stripsSpace ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: "BPE",
      unk_token: "<unk>",
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries([...tokens].map((text, id) => [text, id])),
      merges,
    },
  }
}

const precompiled = {
  type: "Precompiled",
  precompiled_charsmap: Buffer.from(charsmap).toString("base64"),
}
const metaspace = { type: "Metaspace", replacement: SPACE, prepend_scheme: "always", split: true }
const sequence = (...normalizers: object[]): object => ({ type: "Sequence", normalizers })
const replaceSpaces = { type: "Replace", pattern: { String: " " }, content: SPACE }

/** Small tokenizers of every kind that tokenizer.json describes, beside byte-level BPE. */
export const JSON_TOKENIZERS: Readonly<Record<string, TokenizerJson>> = {
  "unigram, charsmap": unigram(precompiled, metaspace),
  "unigram, bytes": unigram(precompiled, metaspace, true),
  "unigram, white space split first": unigram(
    sequence(precompiled, { type: "Replace", pattern: { Regex: " {2,}" }, content: " " }),
    {
      type: "Sequence",
      pretokenizers: [{ type: "WhitespaceSplit" }, { ...metaspace, prepend_scheme: "always" }],
    },
  ),
  "unigram, whole texts": unigram(sequence({ type: "NFKC" }, { type: "Lowercase" }), {
    ...metaspace,
    prepend_scheme: "never",
    split: false,
  }),
  "WordPiece, uncased": wordPiece({}, "BertPreTokenizer"),
  "WordPiece, cased": wordPiece({ lowercase: false }, "BertPreTokenizer"),
  "WordPiece, accents kept": wordPiece(
    { strip_accents: false, handle_chinese_chars: false },
    "BertPreTokenizer",
  ),
  "WordPiece, words": wordPiece({ clean_text: false }, "Whitespace"),
  "BPE of characters, a space in front": characterBpe(
    sequence({ type: "Prepend", prepend: SPACE }, replaceSpaces),
    null,
    true,
  ),
  "BPE of characters, cut after spaces": characterBpe(
    replaceSpaces,
    { type: "Split", pattern: { String: " " }, behavior: "MergedWithPrevious", invert: false },
    false,
  ),
  "BPE of characters, digits and marks": characterBpe(
    sequence({ type: "NFC" }, { type: "StripAccents" }),
    {
      type: "Sequence",
      pretokenizers: [
        { type: "Punctuation", behavior: "Contiguous" },
        { type: "Digits", individual_digits: true },
        { type: "Metaspace", replacement: SPACE, prepend_scheme: "first", split: true },
      ],
    },
    true,
  ),
}
