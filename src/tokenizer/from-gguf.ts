import { FormatError } from "../errors.ts"
import type { GgufArray, GgufMetadata, GgufValue } from "../weights/metadata.ts"
import { BpeModel } from "./bpe.ts"
import { endOfGenerationIds, type TokenizerParts } from "./parts.ts"
import { type PreTokenizer, preTokenizer, preTokenizerNames } from "./pre-tokenizers.ts"
import type { AddedToken } from "./special-tokens.ts"
import { isolate } from "./splitters.ts"
import { SpmModel } from "./spm.ts"
import { type Spelling, type TextModel, TokenKind, Vocabulary } from "./vocabulary.ts"

const KEY = "tokenizer.ggml."
/** Models whose vocabularies are byte-pair merges; gemma4's names no pre-tokenizer. */
const BPE_MODELS: readonly string[] = ["gpt2", "gemma4"]
const ALWAYS = (): boolean => true
const NEVER = (): boolean => false
const LINE_FEEDS = (word: string): boolean => /^\n+$/.test(word)
const SAME = (text: string): string => text
const SPACES_TO_METASPACE = (text: string): string => text.replaceAll(" ", "\u2581")

/** Typed access to `tokenizer.ggml.*`, with errors that name file, key and value. */
class Fields {
  readonly file: string
  readonly #metadata: GgufMetadata

  constructor(metadata: GgufMetadata, file: string) {
    this.#metadata = metadata
    this.file = file
  }

  raw(name: string): GgufValue | undefined {
    return this.#metadata.get(KEY + name)
  }

  fail(name: string, detail: string): never {
    throw new FormatError(this.file, `${KEY}${name} ${detail}`)
  }

  string(name: string): string | undefined {
    const value = this.raw(name)
    if (value === undefined || typeof value === "string") return value
    return this.fail(name, `is not a string but ${describe(value)}`)
  }

  boolean(name: string): boolean | undefined {
    const value = this.raw(name)
    if (value === undefined || typeof value === "boolean") return value
    return this.fail(name, `is not a boolean but ${describe(value)}`)
  }

  strings(name: string): readonly string[] | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (Array.isArray(value) && value.every((item) => typeof item === "string"))
      return value as string[]
    return this.fail(name, `is not an array of strings but ${describe(value)}`)
  }

  numbers(name: string, length: number): ArrayLike<number> | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    if (
      !ArrayBuffer.isView(value) ||
      value instanceof BigInt64Array ||
      value instanceof BigUint64Array
    )
      return this.fail(name, `is not an array of numbers but ${describe(value)}`)
    const numbers = value as Exclude<GgufArray, readonly unknown[] | BigInt64Array | BigUint64Array>
    if (numbers.length < length)
      return this.fail(name, `has ${numbers.length} entries for ${length} tokens`)
    return numbers
  }

  /** A token id; one outside the vocabulary is an error. */
  id(name: string, size: number): number | undefined {
    const value = this.raw(name)
    if (value === undefined) return undefined
    const id = typeof value === "bigint" ? Number(value) : value
    if (typeof id !== "number" || !Number.isInteger(id))
      return this.fail(name, `is not a token id but ${describe(value)}`)
    // 0xffffffff is how converters write "none"
    if (id === 0xffffffff || id === -1) return undefined
    if (id < 0 || id >= size) return this.fail(name, `is ${id}, outside the vocabulary of ${size}`)
    return id
  }
}

function describe(value: GgufValue): string {
  if (typeof value === "object") return `an array of ${value.length}`
  return `${typeof value} ${String(value).slice(0, 40)}`
}

/** What the metadata says about word cutting; an unknown name is an error, because ids would be subtly wrong. */
function preTokenizerOf(fields: Fields, model: string): PreTokenizer {
  const name = model === "gemma4" ? "gemma4" : (fields.string("pre") ?? "default")
  const pre = preTokenizer(name)
  if (pre === undefined)
    throw new FormatError(fields.file, `${KEY}pre is "${name}", an unknown pre-tokenizer`, {
      hint: `Known ones: ${preTokenizerNames().join(", ")}.`,
    })
  return pre
}

function chatTemplatesOf(metadata: GgufMetadata): Map<string, string> {
  const templates = new Map<string, string>()
  for (const [key, value] of metadata) {
    if (typeof value !== "string") continue
    if (key === "tokenizer.chat_template") templates.set("default", value)
    else if (key.startsWith("tokenizer.chat_template."))
      templates.set(key.slice("tokenizer.chat_template.".length), value)
  }
  return templates
}

/**
 * Reads a tokenizer out of GGUF metadata (`tokenizer.ggml.*` of the format's specification).
 * @throws FormatError naming file, key and value where they are missing, wrong or not supported.
 */
export function partsFromGguf(metadata: GgufMetadata, file: string): TokenizerParts {
  const fields: Fields = new Fields(metadata, file)
  const modelName = fields.string("model")
  if (modelName === undefined) fields.fail("model", "is missing")
  const isBpe = BPE_MODELS.includes(modelName)
  if (!isBpe && modelName !== "llama")
    throw new FormatError(
      file,
      `${KEY}model is "${modelName}", a tokenizer that is not supported`,
      {
        hint: `Supported: ${[...BPE_MODELS, "llama"].join(", ")}.`,
      },
    )
  const tokens = fields.strings("tokens")
  if (tokens === undefined) fields.fail("tokens", "is missing")
  const vocabulary = new Vocabulary(tokens)
  const { size } = vocabulary
  const types = fields.numbers("token_type", size)
  const kinds = Uint8Array.from({ length: size }, (_, id) => types?.[id] ?? TokenKind.normal)

  const none = isBpe ? undefined : 0
  const bosId = fields.id("bos_token_id", size) ?? (isBpe ? undefined : inside(1, size))
  const eosId = fields.id("eos_token_id", size) ?? (isBpe ? undefined : inside(2, size))
  const unknownId =
    fields.id("unknown_token_id", size) ?? (none === undefined ? undefined : inside(0, size))
  const pre = isBpe ? preTokenizerOf(fields, modelName) : undefined
  const addSpacePrefix = !isBpe && (fields.boolean("add_space_prefix") ?? true)

  let model: TextModel
  if (pre === undefined) {
    const scores = fields.numbers("scores", size) ?? new Float32Array(size)
    model = new SpmModel({ vocabulary, scores, addSpacePrefix, unknownId })
  } else {
    const merges = fields.strings("merges")
    if (merges === undefined) fields.fail("merges", "is missing")
    model = new BpeModel({
      vocabulary,
      merges,
      byteLevel: pre.metaspace !== true,
      wholeWords:
        pre.wholeWords === "always" ? ALWAYS : pre.wholeWords === "line-feeds" ? LINE_FEEDS : NEVER,
      normalize: pre.metaspace === true ? SPACES_TO_METASPACE : SAME,
      splitters: pre.patterns.map(isolate),
      byteFallback: pre.metaspace === true,
      unknownId,
      fuseUnknown: false,
    })
  }

  const spelling: Spelling =
    pre === undefined || pre.metaspace === true ? "metaspace" : "byte-level"
  // Gemma 4's files say false, but the model needs its start token
  const addBos =
    pre?.metaspace === true && pre.addBos === true ? true : fields.boolean("add_bos_token")
  const putBos = addBos ?? (pre === undefined || pre.addBos === true)
  const putEos = fields.boolean("add_eos_token") ?? false
  if (putBos && bosId === undefined)
    fields.fail("bos_token_id", "is missing, but texts are to begin with it")
  if (putEos && eosId === undefined)
    fields.fail("eos_token_id", "is missing, but texts are to end with it")

  const eogIds = endOfGenerationIds(vocabulary, kinds, [
    eosId,
    fields.id("eot_token_id", size),
    fields.id("eom_token_id", size),
  ])
  // some converters mark turn ends as ordinary tokens, which plain text could then produce
  for (const id of eogIds) kinds[id] = TokenKind.control

  const added = addedTokens(vocabulary, kinds, metadata)
  return {
    source: file,
    vocabulary,
    kinds,
    model,
    spelling,
    verbatim: new Set(added.map((token) => token.id)),
    added,
    prefix: putBos ? [bosId!] : [],
    suffix: putEos ? [eosId!] : [],
    stripsLeadingSpace: addSpacePrefix,
    bosId,
    eosId,
    padId: fields.id("padding_token_id", size),
    unknownId,
    eogIds,
    chatTemplates: chatTemplatesOf(metadata),
  }
}

function inside(id: number, size: number): number | undefined {
  return id < size ? id : undefined
}

function addedTokens(
  vocabulary: Vocabulary,
  kinds: Uint8Array,
  metadata: GgufMetadata,
): AddedToken[] {
  // the file has no field for it, but Phi-3's special tokens swallow the white space that follows
  const phi3 = /phi-?3/i.test(String(metadata.get("general.name") ?? ""))
  const keep = new Set(["<unk>", "<s>", "<|endoftext|>"])
  const added: AddedToken[] = []
  for (let id = 0; id < vocabulary.size; id++) {
    const kind = kinds[id]
    const special = kind === TokenKind.control || kind === TokenKind.unknown
    if (!special && kind !== TokenKind.userDefined) continue
    const text = vocabulary.texts[id]!
    added.push({ id, text, special, lstrip: false, rstrip: phi3 && !keep.has(text) })
  }
  return added
}
