import { FormatError } from "../errors.ts"
import type { GgufValue } from "../weights/metadata.ts"
import { addedTokensOf, namedToken } from "./added-tokens.ts"
import { Charsmap } from "./charsmap.ts"
import { partsFromGguf } from "./from-gguf.ts"
import type { Json } from "./from-json.ts"
import { KEY } from "./gguf-fields.ts"
import type { TokenizerParts } from "./parts.ts"
import { fieldsOf, type FieldValue } from "./protobuf.ts"
import { SpmModel } from "./spm.ts"
import { TokenKind } from "./vocabulary.ts"

/** `model_type` of sentencepiece_model.proto, and what GGUF calls it. */
const MODELS: Readonly<Record<number, string>> = { 1: "t5", 2: "llama" }

interface Settings {
  model: number
  unknownId: number
  bosId: number
  eosId: number
  padId: number
  charsmap: Uint8Array | undefined
  addsSpace: boolean
  mergesSpaces: boolean
}

/**
 * Reads SentencePiece's model file (sentencepiece_model.proto: pieces in field 1, trainer_spec in 2, normalizer_spec in
 * 3), with the tokens that tokenizer_config.json adds.
 * @throws FormatError naming the file and what is wrong with it.
 */
export function partsFromSentencePiece(
  bytes: Uint8Array,
  config: Json,
  file: string,
): TokenizerParts {
  const tokens: string[] = []
  const scores: number[] = []
  const types: number[] = []
  const settings: Settings = {
    model: 1,
    unknownId: 0,
    bosId: 1,
    eosId: 2,
    padId: -1,
    charsmap: undefined,
    addsSpace: true,
    mergesSpaces: true,
  }
  for (const [field, value] of fieldsOf(bytes, file)) {
    if (typeof value === "number") continue
    if (field === 1) {
      const piece = readPiece(value, file)
      tokens.push(piece.text)
      scores.push(piece.score)
      types.push(piece.type)
    } else if (field === 2) readTrainer(value, settings, file)
    else if (field === 3) readNormalizer(value, settings, file)
  }
  if (tokens.length === 0)
    throw new FormatError(file, "holds no pieces, so it is no SentencePiece model")
  const model = MODELS[settings.model]
  if (model === undefined)
    throw new FormatError(file, `trainer_spec.model_type is ${settings.model}, not unigram or BPE`)

  const added = addedTokensOf(config, file)
  for (const token of added) {
    while (tokens.length <= token.id) {
      tokens.push("")
      scores.push(0)
      types.push(TokenKind.unused)
    }
    tokens[token.id] = token.content
    if (token.id !== settings.unknownId)
      types[token.id] = token.special === true ? TokenKind.control : TokenKind.userDefined
  }
  const idOf = (key: string, own: number): number => {
    const id = tokens.indexOf(namedToken(config, key) ?? "\0")
    return id >= 0 ? id : own
  }
  const values: Record<string, GgufValue> = {
    model,
    tokens,
    scores: Float32Array.from(scores),
    token_type: Int32Array.from(types),
    unknown_token_id: settings.unknownId,
    bos_token_id: idOf("bos_token", settings.bosId),
    eos_token_id: idOf("eos_token", settings.eosId),
    padding_token_id: idOf("pad_token", settings.padId),
    add_space_prefix: settings.addsSpace,
    remove_extra_whitespaces: settings.mergesSpaces,
    ...(settings.charsmap === undefined ? {} : { precompiled_charsmap: settings.charsmap }),
  }
  for (const name of ["add_bos_token", "add_eos_token"])
    if (typeof config[name] === "boolean") values[name] = config[name] as boolean
  const metadata = new Map(Object.entries(values).map(([key, value]) => [KEY + key, value]))
  const parts = partsFromGguf(metadata, file)
  const flags = new Map(added.map((token) => [token.id, token]))
  return {
    ...parts,
    ...(model === "llama" ? { model: mergingModel(parts, settings, scores, file) } : {}),
    added: parts.added.map((token) => ({
      ...token,
      lstrip: flags.get(token.id)?.lstrip ?? false,
      rstrip: flags.get(token.id)?.rstrip ?? false,
    })),
  }
}

/** GGUF's score-based models know no normaliser, but SentencePiece's file may have one. */
function mergingModel(
  parts: TokenizerParts,
  settings: Settings,
  scores: readonly number[],
  file: string,
): SpmModel {
  const charsmap =
    settings.charsmap === undefined
      ? undefined
      : new Charsmap(settings.charsmap, file, "normalizer_spec.precompiled_charsmap")
  const { vocabulary, unknownId } = parts
  return new SpmModel({
    vocabulary,
    scores,
    addSpacePrefix: settings.addsSpace,
    unknownId,
    normalize: (text) => {
      const normal = charsmap?.normalize(text) ?? text
      return settings.mergesSpaces ? normal.replace(/ +/g, " ").replace(/^ | $/g, "") : normal
    },
  })
}

function readPiece(bytes: Uint8Array, file: string): { text: string; score: number; type: number } {
  const piece = { text: "", score: 0, type: TokenKind.normal as number }
  for (const [field, value] of fieldsOf(bytes, file)) {
    if (field === 1) piece.text = new TextDecoder().decode(bytesOf(value, file))
    else if (field === 2) {
      const four = bytesOf(value, file)
      piece.score = new DataView(four.buffer, four.byteOffset, 4).getFloat32(0, true)
    } else if (field === 3) piece.type = Number(value)
  }
  return piece
}

function readTrainer(bytes: Uint8Array, settings: Settings, file: string): void {
  for (const [field, value] of fieldsOf(bytes, file)) {
    if (typeof value !== "number") continue
    // negative ids, "none", are written as 64-bit two's complement
    const id = value >= 2 ** 63 ? -1 : value
    if (field === 3) settings.model = value
    else if (field === 40) settings.unknownId = id
    else if (field === 41) settings.bosId = id
    else if (field === 42) settings.eosId = id
    else if (field === 43) settings.padId = id
  }
}

function readNormalizer(bytes: Uint8Array, settings: Settings, file: string): void {
  for (const [field, value] of fieldsOf(bytes, file)) {
    if (field === 2) {
      const table = bytesOf(value, file)
      settings.charsmap = table.length === 0 ? undefined : table
    } else if (field === 3) settings.addsSpace = value !== 0
    else if (field === 4) settings.mergesSpaces = value !== 0
  }
}

function bytesOf(value: FieldValue, file: string): Uint8Array {
  if (typeof value === "number" || value.length > 2 ** 30)
    throw new FormatError(file, "has a number where a text belongs")
  return value
}
