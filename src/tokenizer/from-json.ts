import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers"

import { FormatError } from "../errors.ts"
import { BpeModel } from "./bpe.ts"
import { keepsBeginning, type NormalizerJson, normalizerOf } from "./normalizers.ts"
import type { TokenizerParts } from "./parts.ts"
import type { AddedToken } from "./special-tokens.ts"
import { cut, splittersOf } from "./splitters.ts"
import type { DecoderJson, ModelJson, TokenizerJson } from "./tokenizer-json.ts"
import { UnigramModel } from "./unigram.ts"
import { type Spelling, type TextModel, TokenKind, Vocabulary } from "./vocabulary.ts"
import { WordPieceModel } from "./word-piece.ts"

export type Json = Record<string, unknown>

/** Stands for the text while the post-processor is asked what it puts around it. */
const MARK = "\u0000text"

/**
 * What a tokenizer.json says, with the names of special tokens from `config` (tokenizer_config.json); templates and the
 * ends of generation are the folder's.
 * @throws FormatError naming the file where it is broken.
 */
export function partsFromJson(json: TokenizerJson, config: Json, path: string): TokenizerParts {
  const { model } = json
  const texts: string[] = []
  const entries: Iterable<readonly [string, number]> = Array.isArray(model.vocab)
    ? model.vocab.map(([text], id) => [text as string, id] as const)
    : Object.entries(model.vocab as Record<string, number>)
  for (const [text, id] of entries) {
    if (!Number.isInteger(id) || id < 0 || id > 4_000_000)
      throw new FormatError(path, `model.vocab gives "${text}" the id ${id}`)
    texts[id] = text
  }
  for (const token of json.added_tokens ?? []) texts[token.id] = token.content
  for (let id = 0; id < texts.length; id++) texts[id] ??= ""
  const vocabulary = new Vocabulary(texts)

  const added: AddedToken[] = (json.added_tokens ?? []).map((token) => ({
    id: token.id,
    text: token.content,
    special: token.special ?? false,
    lstrip: token.lstrip ?? false,
    rstrip: token.rstrip ?? false,
  }))
  const kinds = new Uint8Array(texts.length).fill(TokenKind.normal)
  for (const token of added)
    kinds[token.id] = token.special ? TokenKind.control : TokenKind.userDefined

  // the library knows the post-processors: what surrounds the text
  const library = new LibraryTokenizer(
    {
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: null,
      post_processor: json.post_processor ?? null,
      decoder: null,
      model: { type: "BPE", vocab: {}, merges: [] },
    },
    config,
  )
  const idOf = (name: string): number | undefined => {
    const value = config[name]
    const text = typeof value === "string" ? value : (value as { content?: string } | null)?.content
    return text === undefined ? undefined : vocabulary.ids.get(text)
  }
  const bosId = idOf("bos_token")
  const eosId = idOf("eos_token")
  const unknownId =
    model.unk_token != null ? vocabulary.ids.get(model.unk_token) : (model.unk_id ?? undefined)
  const { prefix, suffix } = surroundings(library, vocabulary, path)
  if (prefix.length === 0 && bosId !== undefined && config["add_bos_token"] === true)
    prefix.push(bosId)
  if (suffix.length === 0 && eosId !== undefined && config["add_eos_token"] === true)
    suffix.push(eosId)

  const spelling = spellingOf(json)
  return {
    source: path,
    vocabulary,
    kinds,
    model: textModel(json, config, vocabulary, kinds, unknownId, path),
    spelling,
    // the Metaspace decoder also reads U+2581 in added tokens, such as Gemma's runs of spaces
    verbatim: new Set(spelling === "metaspace" ? [] : added.map((token) => token.id)),
    added,
    prefix,
    suffix,
    stripsLeadingSpace: stripsLeadingSpace(json.decoder, spelling),
    bosId,
    eosId,
    padId: idOf("pad_token"),
    unknownId,
    eogIds: [],
    chatTemplates: new Map(),
  }
}

function textModel(
  json: TokenizerJson,
  config: Json,
  vocabulary: Vocabulary,
  kinds: Uint8Array,
  unknownId: number | undefined,
  path: string,
): TextModel {
  const { model } = json
  const normalize = normalizerOf(json.normalizer as NormalizerJson | null | undefined, path)
  const { splitters, byteLevel } = splittersOf(json.pre_tokenizer)
  const words = (text: string, first: boolean): readonly string[] => {
    const normal = normalize(text)
    return normal === "" ? [] : cut(normal, splitters, first && keepsBeginning(text, normalize))
  }
  switch (model.type ?? (model.merges === undefined ? undefined : "BPE")) {
    case "BPE": {
      if (model.continuing_subword_prefix || model.end_of_word_suffix) break
      const whole = model.ignore_merges === true
      return new BpeModel({
        vocabulary,
        merges: model.merges ?? [],
        byteLevel,
        wholeWords: () => whole,
        normalize,
        splitters,
        byteFallback: model.byte_fallback === true,
        unknownId,
        fuseUnknown: model.fuse_unk === true,
      })
    }
    case "Unigram": {
      const entries = model.vocab as readonly (readonly [string, number])[]
      const scores = entries.map(([, score]) => score)
      const byteFallback = model.byte_fallback === true
      return new UnigramModel({ vocabulary, kinds, scores, unknownId, byteFallback, words })
    }
    case "WordPiece":
      return new WordPieceModel({
        vocabulary,
        wordPrefix: "",
        continuingPrefix: model.continuing_subword_prefix ?? "##",
        unknownId,
        maxWordLength: model.max_input_chars_per_word ?? 100,
        words,
      })
  }
  // BPE with prefixes or suffixes and WordLevel: the library does all of it
  const whole = new LibraryTokenizer({ ...json, added_tokens: [] }, config)
  return {
    encode(text, out, first) {
      for (const token of whole.model!._call(words(text, first) as string[])) {
        const id = vocabulary.ids.get(token) ?? unknownId
        if (id !== undefined) out.push(id)
      }
    },
  }
}

/** Ids that the post-processor puts before and after a text. */
function surroundings(
  library: LibraryTokenizer,
  vocabulary: Vocabulary,
  path: string,
): { prefix: number[]; suffix: number[] } {
  const processor = library.post_processor
  if (processor === null) return { prefix: [], suffix: [] }
  const { tokens } = processor.post_process([MARK], null, true) as { tokens: string[] }
  const at = tokens.indexOf(MARK)
  const idsOf = (part: string[]): number[] =>
    part.map((token) => {
      const id = vocabulary.ids.get(token)
      if (id === undefined)
        throw new FormatError(path, `post_processor adds "${token}", which is no token`)
      return id
    })
  return { prefix: idsOf(tokens.slice(0, at)), suffix: idsOf(tokens.slice(at + 1)) }
}

function decoderTypes(decoder: DecoderJson | null | undefined): string[] {
  if (decoder === null || decoder === undefined) return []
  return [decoder.type, ...(decoder.decoders ?? []).flatMap(decoderTypes)]
}

function spellingOf(json: TokenizerJson): Spelling {
  const types = decoderTypes(json.decoder)
  if (types.includes("ByteLevel") || splittersOf(json.pre_tokenizer).byteLevel) return "byte-level"
  return types.includes("WordPiece") ? "word-piece" : "metaspace"
}

function stripsLeadingSpace(decoder: DecoderJson | null | undefined, spelling: Spelling): boolean {
  if (spelling === "word-piece") return true
  const types = decoderTypes(decoder)
  if (types.includes("Strip")) return true
  const metaspace = [decoder, ...(decoder?.decoders ?? [])].find(
    (part) => part?.type === "Metaspace",
  )
  return metaspace !== undefined && (metaspace as unknown as Json)["prepend_scheme"] !== "never"
}
