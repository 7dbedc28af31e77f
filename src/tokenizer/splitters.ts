import { SequencePreTokenizer, SplitPreTokenizer } from "@huggingface/tokenizers"

import { ConfigError } from "../errors.ts"
import { GPT2_PATTERN } from "./pre-tokenizers.ts"
import { BERT_PIECES } from "./word-piece.ts"

/** Cuts one text into words that are encoded independently; `first` says that it begins the whole text. */
export type Splitter = (text: string, first: boolean) => readonly string[]

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

/** Applies splitters one after the other, each to the pieces of the one before. */
export function cut(
  text: string,
  splitters: readonly Splitter[],
  first: boolean,
): readonly string[] {
  let pieces: readonly string[] = [text]
  for (const split of splitters)
    pieces =
      pieces.length === 1
        ? split(pieces[0]!, first)
        : pieces.flatMap((piece, i) => split(piece, first && i === 0))
  return pieces
}

/** A stretch of text, and whether the pattern matched it. */
interface Segment {
  readonly text: string
  readonly isMatch: boolean
}

/**
 * A Split pre-tokenizer with any behaviour, as the Rust tokenizers define them; the library knows only Isolated and,
 * in part, Removed.
 */
export function splitBy(pattern: RegExp, behavior: string, invert: boolean): Splitter {
  const segmentsOf = (text: string): Segment[] => {
    const segments: Segment[] = []
    const add = (part: string, matched: boolean): void => {
      if (part !== "") segments.push({ text: part, isMatch: matched !== invert })
    }
    let at = 0
    for (const match of text.matchAll(pattern)) {
      add(text.slice(at, match.index), false)
      add(match[0], true)
      at = match.index + match[0].length
    }
    add(text.slice(at), false)
    return segments
  }
  switch (behavior) {
    case "Isolated":
      return (text) => segmentsOf(text).map((segment) => segment.text)
    case "Removed":
      return (text) =>
        segmentsOf(text).flatMap((segment) => (segment.isMatch ? [] : [segment.text]))
    case "Contiguous":
      return (text) => join(segmentsOf(text), (segment, last) => segment.isMatch === last.isMatch)
    case "MergedWithPrevious":
      return (text) => join(segmentsOf(text), (segment, last) => segment.isMatch && !last.isMatch)
    case "MergedWithNext":
      return (text) => join(segmentsOf(text), (segment, last) => !segment.isMatch && last.isMatch)
    default:
      throw new ConfigError(
        `tokenizer.json: pre_tokenizer has a Split with the unknown behavior "${behavior}"`,
      )
  }
}

/** Joins each segment to the one before it where `belongs` says so. */
function join(
  segments: readonly Segment[],
  belongs: (segment: Segment, last: Segment) => boolean,
): string[] {
  const pieces: string[] = []
  let last: Segment | undefined
  for (const segment of segments) {
    if (last !== undefined && belongs(segment, last)) pieces.push(pieces.pop()! + segment.text)
    else pieces.push(segment.text)
    last = segment
  }
  return pieces
}

/** The expression of a `pattern` entry, in JavaScript's dialect. */
function patternOf(pattern: { Regex?: string; String?: string }): RegExp {
  const config =
    pattern.Regex === undefined ? { String: pattern.String ?? "" } : { Regex: pattern.Regex }
  return new SplitPreTokenizer({ type: "Split", pattern: config, behavior: "Isolated" }).pattern!
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
  if (json.type === "Split") {
    const pattern = (json["pattern"] ?? {}) as { Regex?: string; String?: string }
    const invert = json["invert"] === true
    if (pattern.Regex !== undefined && json["behavior"] === "Isolated" && !invert)
      return { splitters: [isolate(pattern.Regex)], byteLevel: false }
    const behavior = String(json["behavior"] ?? "Removed")
    return { splitters: [splitBy(patternOf(pattern), behavior, invert)], byteLevel: false }
  }
  return { splitters: [wordSplitter(json)], byteLevel: false }
}

const NOT_WHITE_SPACE = /\P{White_Space}+/gu
const RUST_WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}"
const WORDS = new RegExp(`[${RUST_WORD}]+|[^${RUST_WORD}\\p{White_Space}]+`, "gu")
const PUNCTUATION = /[\p{P}$+<=>^`|~]/gu

/** The pre-tokenizers that cut words; the library's own go by JavaScript's idea of spaces, digits and letters. */
function wordSplitter(json: PreTokenizerJson): Splitter {
  switch (json.type) {
    case "WhitespaceSplit":
      return (text) => text.match(NOT_WHITE_SPACE) ?? []
    case "Whitespace":
      return (text) => text.match(WORDS) ?? []
    case "BertPreTokenizer":
      return (text) => text.match(BERT_PIECES) ?? []
    case "Punctuation":
      return splitBy(PUNCTUATION, String(json["behavior"] ?? "Isolated"), false)
    case "Digits":
      return splitBy(
        /\p{N}/gu,
        json["individual_digits"] === true ? "Isolated" : "Contiguous",
        false,
      )
    case "Metaspace":
      return metaspace(json)
  }
  let library: SequencePreTokenizer
  try {
    library = new SequencePreTokenizer({ type: "Sequence", pretokenizers: [json as never] })
  } catch (cause) {
    throw new ConfigError(
      `tokenizer.json: pre_tokenizer has the type "${json.type}", which is not supported`,
      { cause },
    )
  }
  return (text, first) => library.pre_tokenize_text(text, { section_index: first ? 0 : 1 })
}

/** Spaces become U+2581, one may come in front, and each begins a word unless `split` is false. */
function metaspace(json: PreTokenizerJson): Splitter {
  const space = String(json["replacement"] ?? "\u2581")
  const scheme = json["prepend_scheme"] ?? (json["add_prefix_space"] === false ? "never" : "always")
  const splits = json["split"] !== false
  return (text, first) => {
    let spelled = text.replaceAll(" ", space)
    const prepends = scheme === "always" || (scheme === "first" && first)
    if (prepends && !spelled.startsWith(space)) spelled = space + spelled
    if (!splits) return [spelled]
    const words: string[] = []
    let start = 0
    for (let at = spelled.indexOf(space, 1); at >= 0; at = spelled.indexOf(space, at + 1)) {
      words.push(spelled.slice(start, at))
      start = at
    }
    words.push(spelled.slice(start))
    return words
  }
}
