import { SequencePreTokenizer, SplitPreTokenizer } from "@huggingface/tokenizers"

import type { Splitter } from "./bpe.ts"
import { GPT2_PATTERN } from "./pre-tokenizers.ts"

/** A pre-tokenizer's entry in tokenizer.json. */
export interface PreTokenizerJson {
  readonly type: string
  readonly [key: string]: unknown
}

/** Cuts at the matches of a pattern in tokenizer.json's dialect (Oniguruma); the pieces between them are kept too. */
export function isolate(pattern: string): Splitter {
  const split = new SplitPreTokenizer({
    type: "Split",
    pattern: { Regex: pattern },
    behavior: "Isolated",
    invert: false,
  })
  return (text) => {
    // most patterns cover the text without gaps, and then the matches alone are the pieces
    const matches = text.match(split.pattern!)
    if (matches === null) return text === "" ? [] : [text]
    let covered = 0
    for (const match of matches) covered += match.length
    return covered === text.length ? matches : split.pre_tokenize_text(text)
  }
}

/** The splitters of tokenizer.json's `pre_tokenizer`, and whether words are spelled in bytes afterwards. */
export function splittersOf(json: PreTokenizerJson | null | undefined): {
  splitters: Splitter[]
  byteLevel: boolean
} {
  if (json === null || json === undefined) return { splitters: [], byteLevel: false }
  if (json.type === "Sequence") {
    const parts = ((json["pretokenizers"] ?? []) as PreTokenizerJson[]).map(splittersOf)
    return {
      splitters: parts.flatMap((part) => part.splitters),
      byteLevel: parts.some((part) => part.byteLevel),
    }
  }
  if (json.type === "ByteLevel") {
    const splitters: Splitter[] = []
    if (json["add_prefix_space"] === true)
      splitters.push((text) => [text.startsWith(" ") ? text : ` ${text}`])
    if (json["use_regex"] !== false) splitters.push(isolate(GPT2_PATTERN))
    return { splitters, byteLevel: true }
  }
  const pattern = json["pattern"] as { Regex?: string } | undefined
  if (
    json.type === "Split" &&
    pattern?.Regex !== undefined &&
    json["behavior"] === "Isolated" &&
    json["invert"] !== true
  )
    return { splitters: [isolate(pattern.Regex)], byteLevel: false }
  const library = new SequencePreTokenizer({ type: "Sequence", pretokenizers: [json as never] })
  return {
    splitters: [(text, first) => library.pre_tokenize_text(text, { section_index: first ? 0 : 1 })],
    byteLevel: false,
  }
}
