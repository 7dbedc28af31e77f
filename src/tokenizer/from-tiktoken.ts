import { FormatError } from "../errors.ts"
import { addedTokensOf, namedToken } from "./added-tokens.ts"
import { BpeModel } from "./bpe.ts"
import type { Json } from "./from-json.ts"
import type { TokenizerParts } from "./parts.ts"
import { preTokenizer } from "./pre-tokenizers.ts"
import { isolate } from "./splitters.ts"
import { BYTE_TO_CHAR, TokenKind, Vocabulary } from "./vocabulary.ts"

const LINE = /^([A-Za-z0-9+/]+={0,2}) (\d+)$/
/** Ids above this are a mistake in the file. */
const MAX_ID = 4_000_000

/** Which pre-tokenizer the code of each tokenizer class cuts words with; the file itself does not say. */
const PATTERNS: Readonly<Record<string, string>> = {
  TikTokenTokenizer: "kimi-k2",
  ChatGLM4Tokenizer: "glm4",
  QWenTokenizer: "qwen2",
}
/** Kimi's class gives names to this many ids after the vocabulary. */
const KIMI_RESERVED = 256

/** Whether a vocabulary file has tiktoken's form: lines of a token in base64 and its rank. */
export function isTiktoken(bytes: Uint8Array): boolean {
  const end = bytes.subarray(0, 1024).indexOf(10)
  if (end <= 0) return false
  return LINE.test(new TextDecoder().decode(bytes.subarray(0, end)).trimEnd())
}

/**
 * Reads tiktoken's vocabulary, where two neighbours merge when their joint bytes are a token, the lowest rank first.
 * @throws FormatError naming file and line, or the tokenizer class where its pattern is not known.
 */
export function partsFromTiktoken(bytes: Uint8Array, config: Json, file: string): TokenizerParts {
  const name = String(config["tokenizer_class"] ?? "")
  const pre = preTokenizer(PATTERNS[name] ?? "")
  if (pre === undefined)
    throw new FormatError(
      file,
      `tokenizer_class is "${name}", for which it is not known how words are cut`,
      { hint: `Known ones: ${Object.keys(PATTERNS).join(", ")}; a tokenizer.json says it.` },
    )
  const texts: string[] = []
  const lines = new TextDecoder().decode(bytes).split("\n")
  for (const [i, line] of lines.entries()) {
    if (line.trim() === "") continue
    const [, base64, rank] = LINE.exec(line.trimEnd()) ?? []
    if (base64 === undefined || Number(rank) > MAX_ID)
      throw new FormatError(file, `line ${i + 1} is no token and rank: ${line.slice(0, 60)}`)
    let text = ""
    for (const byte of Buffer.from(base64, "base64")) text += BYTE_TO_CHAR[byte]!
    texts[Number(rank)] = text
  }
  const ranks = texts.length
  const added = addedTokensOf(config, file)
  for (const token of added) texts[token.id] = token.content
  if (name === "TikTokenTokenizer")
    for (let id = ranks; id < ranks + KIMI_RESERVED; id++) {
      if (texts[id] !== undefined) continue
      texts[id] = `<|reserved_token_${id}|>`
      added.push({ id, content: texts[id]!, special: true })
    }
  for (let id = 0; id < texts.length; id++) texts[id] ??= ""
  const kinds = new Uint8Array(texts.length).fill(TokenKind.normal)
  for (const token of added)
    kinds[token.id] = token.special === true ? TokenKind.control : TokenKind.userDefined
  const vocabulary = new Vocabulary(texts)
  const idOf = (key: string): number | undefined =>
    vocabulary.ids.get(namedToken(config, key) ?? "")
  const bosId = idOf("bos_token")
  return {
    source: file,
    vocabulary,
    kinds,
    model: new BpeModel({
      vocabulary,
      merges: { below: ranks },
      byteLevel: true,
      wholeWords: () => true,
      normalize: (text) => text,
      splitters: pre.patterns.map(isolate),
      byteFallback: false,
      unknownId: undefined,
      fuseUnknown: false,
    }),
    spelling: "byte-level",
    verbatim: new Set(added.map((token) => token.id)),
    added: added.map((token) => ({
      id: token.id,
      text: token.content,
      special: token.special ?? false,
      lstrip: token.lstrip ?? false,
      rstrip: token.rstrip ?? false,
    })),
    prefix: config["add_bos_token"] === true && bosId !== undefined ? [bosId] : [],
    suffix: [],
    stripsLeadingSpace: false,
    bosId,
    eosId: idOf("eos_token"),
    padId: idOf("pad_token"),
    unknownId: undefined,
    eogIds: [],
    chatTemplates: new Map(),
  }
}
