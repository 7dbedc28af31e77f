import { readFileSync } from "node:fs"
import { join } from "node:path"

import { FormatError } from "../errors.ts"
import { preTokenizer, preTokenizerNames } from "../tokenizer/pre-tokenizers.ts"
import type { ModelJson, TokenizerJson } from "../tokenizer/tokenizer-json.ts"
import { Tokenizer } from "../tokenizer/tokenizer.ts"
import { byteOfToken, TokenKind } from "../tokenizer/vocabulary.ts"
import type { GgufField } from "../weights/gguf-writer.ts"
import type { GgufMetadata } from "../weights/metadata.ts"

const KEY = "tokenizer.ggml."
/** Score of pieces that no merge makes. */
const NO_MERGE = -1e6

/** Which of the equal names a model family's files have. */
const PREFERRED: Readonly<Record<string, readonly string[]>> = {
  llama: ["llama-bpe", "smollm", "deepseek-llm", "deepseek-coder"],
  mistral: ["tekken"],
  qwen2: ["qwen2", "deepseek-r1-qwen"],
  qwen3: ["qwen2"],
  qwen2_moe: ["qwen2"],
  qwen3_moe: ["qwen2"],
  qwen3_next: ["qwen2"],
  smallthinker: ["qwen2"],
  deepseek_v2: ["deepseek-llm"],
  deepseek_v3: ["deepseek-v3"],
  kimi_k2: ["kimi-k2"],
  glm4_moe: ["glm4"],
  llama4_text: ["llama4"],
  gpt_oss: ["gpt-4o"],
  smollm3: ["smaug-bpe"],
  minimax_m2: ["minimax-m2"],
  phi3: ["dbrx"],
}

/**
 * Texts on which two ways of cutting words that differ at all are likely to differ. All are in Unicode's composed form:
 * GGUF has no field for a normalizer, and no program normalizes what it reads.
 */
const PROBES: readonly string[] = [
  "Hello, world! It's 12345678 o'clock, I'LL say; we've DONE'em 3.14159.\n\n  indented\n\t\ttabs \r\n end   ",
  "naïve Ünïcödé façade — “quotes” … 日本語の文章、中文字符和标点。한국어 텍스트 кириллица ελληνικά עברית العربية हिन्दी ไทย",
  "for (let i=0;i<10;i++){ foo_bar(i) /* x */ } // http://example.com/a?b=1&c=2#d CamelCaseWord XMLHttpRequest",
  " leading space\u00a0nbsp 🚀👩‍👩‍👧 ½ ² Ⅷ $99.99 50% a.b.c x'y 'S 'T\n \n\n \n   \u3042\u3044 0001 1,000,000 ________ ====",
]

/** Ids that the model's configuration names. */
export interface SpecialIds {
  readonly bos?: number | undefined
  readonly eos: readonly number[]
}

/**
 * `tokenizer.*` of a GGUF from the tokenizer.json of a Hugging Face folder and the files beside it.
 *
 * @param rows of the embedding: as many tokens are written
 * @param ids where the tokenizer's own files name none, and further ids that end a text
 * @param pre name of the pre-tokenizer, where it is not to be found out by comparing results
 * @throws FormatError where the vocabulary's kind has no counterpart in GGUF, or none of the known ways of cutting words
 *   gives the tokenizer's own ids
 */
export async function tokenizerFields(
  folder: string,
  modelType: string,
  rows: number,
  ids: SpecialIds,
  pre?: string,
): Promise<Map<string, GgufField>> {
  const file = join(folder, "tokenizer.json")
  const tokenizer = await Tokenizer.fromPretrained(folder) // says what is wrong with the files
  const json = JSON.parse(readFileSync(file, "utf8")) as TokenizerJson
  if (json.model.type !== "BPE" && json.model.merges === undefined)
    throw new FormatError(
      file,
      `model.type: "${json.model.type ?? ""}" cannot be written as GGUF, only BPE vocabularies can`,
    )
  const isMetaspace = json.model.byte_fallback === true
  const fields = new Map<string, GgufField>()
  vocabularyFields(fields, file, json, rows, isMetaspace)
  specialFields(fields, tokenizer, ids)
  if (isMetaspace) {
    fields.set(`${KEY}model`, { type: "string", value: "llama" })
    fields.set(`${KEY}pre`, { type: "string", value: "default" })
    fields.set(`${KEY}scores`, { type: "f32", value: mergeScores(json.model, fields, rows) })
    const spaces = tokenizer.stripsLeadingSpace
    fields.set(`${KEY}add_space_prefix`, { type: "bool", value: spaces })
    if (!agrees(tokenizer, fields))
      throw new FormatError(file, "score-based merging does not give this vocabulary's own ids")
    return ordered(fields)
  }
  fields.set(`${KEY}model`, { type: "string", value: "gpt2" })
  fields.set(`${KEY}merges`, { type: "string", value: mergeTexts(json.model) })
  fields.set(`${KEY}pre`, { type: "string", value: pre ?? "" })
  if (pre === undefined) {
    const found = candidates(modelType).find((name) => {
      fields.set(`${KEY}pre`, { type: "string", value: name })
      return agrees(tokenizer, fields)
    })
    if (found === undefined)
      throw new FormatError(file, "no known pre-tokenizer gives this vocabulary's own ids", {
        hint: `--pre names one: ${preTokenizerNames().join(", ")}`,
      })
  } else if (preTokenizer(pre) === undefined)
    throw new FormatError(file, `pre-tokenizer "${pre}" is unknown`, {
      hint: `known are ${preTokenizerNames().join(", ")}`,
    })
  return ordered(fields)
}

/** One name of each way of cutting words, the family's usual ones first. */
function candidates(modelType: string): string[] {
  const seen = new Set<unknown>()
  const preferred = PREFERRED[modelType] ?? []
  return [...preferred, "llama-bpe", "gpt-2", "qwen2", ...preTokenizerNames()].filter((name) => {
    const pre = preTokenizer(name)
    if (pre === undefined || pre.metaspace === true || seen.has(pre)) return false
    seen.add(pre)
    return true
  })
}

/** Whether a tokenizer made from the fields gives the same ids. */
function agrees(tokenizer: Tokenizer, fields: ReadonlyMap<string, GgufField>): boolean {
  const metadata: GgufMetadata = new Map([...fields].map(([key, { value }]) => [key, value]))
  const other = Tokenizer.fromGguf(metadata, "the fields of this tokenizer")
  return PROBES.every((text) => {
    const wanted = tokenizer.encode(text)
    const got = other.encode(text)
    return wanted.length === got.length && wanted.every((id, i) => id === got[i])
  })
}

function vocabularyFields(
  fields: Map<string, GgufField>,
  file: string,
  { model, added_tokens: added = [] }: TokenizerJson,
  rows: number,
  isMetaspace: boolean,
): void {
  const tokens = Array.from({ length: rows }, (_, id) => `[PAD${id}]`)
  const kinds = new Int32Array(rows).fill(TokenKind.unused)
  const place = (text: string, id: number, kind: number): void => {
    if (id >= rows)
      throw new FormatError(
        file,
        `token "${text}" has the id ${id}, the embedding has ${rows} rows`,
      )
    tokens[id] = text
    kinds[id] = kind
  }
  for (const [text, id] of vocabularyOf(model)) {
    const isByte = isMetaspace && byteOfToken(text) >= 0
    place(text, id, isByte ? TokenKind.byte : TokenKind.normal)
  }
  for (const { content, id, special } of added)
    place(content, id, special === true ? TokenKind.control : TokenKind.userDefined)
  const unknown = vocabularyOf(model).find(([text]) => text === model.unk_token)
  if (unknown !== undefined && isMetaspace) kinds[unknown[1]] = TokenKind.unknown
  fields.set(`${KEY}tokens`, { type: "string", value: tokens })
  fields.set(`${KEY}token_type`, { type: "i32", value: kinds })
}

function vocabularyOf({ vocab }: ModelJson): (readonly [string, number])[] {
  return Array.isArray(vocab)
    ? vocab.map(([text], id) => [text as string, id] as const)
    : Object.entries(vocab as Record<string, number>)
}

function mergeTexts({ merges = [] }: ModelJson): string[] {
  return merges.map((merge) => (typeof merge === "string" ? merge : merge.join(" ")))
}

/** A piece's score is above another's where the merge that makes it comes first. */
function mergeScores(
  model: ModelJson,
  fields: ReadonlyMap<string, GgufField>,
  rows: number,
): Float32Array {
  const ids = new Map(vocabularyOf(model))
  const scores = new Float32Array(rows).fill(NO_MERGE)
  mergeTexts(model).forEach((merge, rank) => {
    const id = ids.get(merge.replace(" ", ""))
    if (id !== undefined && scores[id] === NO_MERGE) scores[id] = -rank
  })
  const kinds = fields.get(`${KEY}token_type`)?.value as Int32Array
  kinds.forEach((kind, id) => {
    if (kind !== TokenKind.normal) scores[id] = 0
  })
  return scores
}

function specialFields(
  fields: Map<string, GgufField>,
  tokenizer: Tokenizer,
  given: SpecialIds,
): void {
  const { padId } = tokenizer
  const bosId = tokenizer.bosId ?? given.bos
  const eosId = tokenizer.eosId ?? given.eos[0]
  const id = (name: string, value: number | undefined): void => {
    if (value !== undefined) fields.set(`${KEY}${name}_token_id`, { type: "u32", value })
  }
  id("bos", bosId)
  id("eos", eosId)
  // further ids that end a text, where generation_config.json names them
  const [eot, eom] = given.eos.filter((other) => other !== eosId)
  id("eot", eot)
  id("eom", eom)
  id("padding", padId)
  const ids = tokenizer.encode("")
  fields.set(`${KEY}add_bos_token`, {
    type: "bool",
    value: bosId !== undefined && ids[0] === bosId,
  })
  fields.set(`${KEY}add_eos_token`, {
    type: "bool",
    value: eosId !== undefined && ids.length > 1 && ids.at(-1) === eosId,
  })
  const names: string[] = []
  for (const [name, template] of tokenizer.chatTemplates) {
    const isDefault = name === "default"
    if (!isDefault) names.push(name)
    fields.set(isDefault ? "tokenizer.chat_template" : `tokenizer.chat_template.${name}`, {
      type: "string",
      value: template,
    })
  }
  if (names.length > 0) fields.set("tokenizer.chat_templates", { type: "string", value: names })
}

/** The model first, as other writers have it. */
function ordered(fields: ReadonlyMap<string, GgufField>): Map<string, GgufField> {
  const first = [`${KEY}model`, `${KEY}pre`]
  const rank = (key: string): number => (first.includes(key) ? first.indexOf(key) : first.length)
  return new Map([...fields].toSorted((a, b) => rank(a[0]) - rank(b[0])))
}
