import { FormatError } from "../errors.ts"
import type { GgufMetadata } from "../weights/metadata.ts"
import { GgufFields, KEY } from "./gguf-fields.ts"
import { type Family, type FamilyContext, familyOf } from "./gguf-models.ts"
import { endOfGenerationIds, type TokenizerParts } from "./parts.ts"
import type { AddedToken } from "./special-tokens.ts"
import { TokenKind, Vocabulary } from "./vocabulary.ts"

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
  const fields: GgufFields = new GgufFields(metadata, file)
  const family = familyOf(fields)
  const tokens = fields.strings("tokens")
  if (tokens === undefined) fields.fail("tokens", "is missing")
  const vocabulary = new Vocabulary(tokens)
  const { size } = vocabulary
  const types = fields.numbers("token_type", size)
  const kinds = Uint8Array.from({ length: size }, (_, id) => types?.[id] ?? TokenKind.normal)
  const idOf = (key: string, byDefault: number | undefined): number | undefined =>
    fields.id(key, size) ?? (byDefault !== undefined && byDefault < size ? byDefault : undefined)
  const bosId = idOf("bos_token_id", family.bosId)
  const eosId = idOf("eos_token_id", family.eosId)
  const unknownId = idOf("unknown_token_id", family.unknownId)

  const eogIds = endOfGenerationIds(vocabulary, kinds, [
    eosId,
    fields.id("eot_token_id", size),
    fields.id("eom_token_id", size),
  ])
  // some converters mark turn ends as ordinary tokens, which plain text could then produce
  for (const id of eogIds) kinds[id] = TokenKind.control

  const context: FamilyContext = { fields, vocabulary, kinds, unknownId }
  const { model, spelling, stripsLeadingSpace } = family.build(context)
  const { prefix, suffix } = surroundings(fields, family, size, bosId, eosId)
  const added = addedTokens(vocabulary, kinds, metadata)
  return {
    source: file,
    vocabulary,
    kinds,
    model,
    spelling,
    verbatim: new Set(added.map((token) => token.id)),
    added,
    prefix,
    suffix,
    stripsLeadingSpace,
    bosId,
    eosId,
    padId: fields.id("padding_token_id", size),
    unknownId,
    eogIds,
    chatTemplates: chatTemplatesOf(metadata),
  }
}

function surroundings(
  fields: GgufFields,
  family: Family,
  size: number,
  bosId: number | undefined,
  eosId: number | undefined,
): { prefix: number[]; suffix: number[] } {
  if (family.separatorId !== undefined) {
    // the key is misspelt in the format itself
    const separatorId = fields.id("seperator_token_id", size) ?? family.separatorId
    if (bosId === undefined || separatorId >= size)
      throw new FormatError(
        fields.file,
        `${KEY}seperator_token_id is missing, but texts are to end with it`,
      )
    return { prefix: [bosId], suffix: [separatorId] }
  }
  const putBos = family.forcesBos === true || (fields.boolean("add_bos_token") ?? family.addBos)
  const putEos = fields.boolean("add_eos_token") ?? family.addEos === true
  if (putBos && bosId === undefined)
    fields.fail("bos_token_id", "is missing, but texts are to begin with it")
  if (putEos && eosId === undefined)
    fields.fail("eos_token_id", "is missing, but texts are to end with it")
  return { prefix: putBos ? [bosId!] : [], suffix: putEos ? [eosId!] : [] }
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
