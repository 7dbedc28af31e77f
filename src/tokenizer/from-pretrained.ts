import { existsSync } from "node:fs"
import { join } from "node:path"

import { FormatError } from "../errors.ts"
import { type Json, partsFromJson } from "./from-json.ts"
import { partsFromMerges } from "./from-merges.ts"
import { partsFromSentencePiece } from "./from-sentencepiece.ts"
import { isTiktoken, partsFromTiktoken } from "./from-tiktoken.ts"
import { endOfGenerationIds, type TokenizerParts } from "./parts.ts"
import type { ModelJson, TokenizerJson } from "./tokenizer-json.ts"

/** Files that hold a tokenizer, in the order in which they are looked for. */
export const TOKENIZER_FILES: readonly string[] = [
  "tokenizer.json",
  "tokenizer.model",
  "tiktoken.model",
  "qwen.tiktoken",
  "vocab.json",
]

/** Whether a folder holds a tokenizer in any form. */
export function hasTokenizer(folder: string): boolean {
  return TOKENIZER_FILES.some((name) => existsSync(join(folder, name)))
}

async function readJson(path: string): Promise<Json | undefined> {
  const file = Bun.file(path)
  if (!(await file.exists())) return undefined
  try {
    return (await file.json()) as Json
  } catch (cause) {
    throw new FormatError(path, "is not valid JSON", { cause })
  }
}

/**
 * Reads a Hugging Face folder: tokenizer.json, else tokenizer.model (SentencePiece's or tiktoken's), tiktoken.model, or
 * vocab.json with merges.txt; and where present tokenizer_config.json, special_tokens_map.json, added_tokens.json,
 * generation_config.json, config.json and chat_template.jinja.
 * @throws FormatError naming the file where one is missing or broken.
 */
export async function partsFromPretrained(folder: string): Promise<TokenizerParts> {
  const [tokenizerConfig, specialMap, addedTokens, generation, modelConfig] = await Promise.all(
    [
      "tokenizer_config.json",
      "special_tokens_map.json",
      "added_tokens.json",
      "generation_config.json",
      "config.json",
    ].map((name) => readJson(join(folder, name))),
  )
  const config: Json = { ...specialMap, ...tokenizerConfig }
  config["added_tokens_decoder"] ??= decoderOf(addedTokens)
  config["model_type"] = modelConfig?.["model_type"]
  const parts = await partsOf(folder, config)
  const named = [generation?.["eos_token_id"], modelConfig?.["eos_token_id"]].flat()
  return {
    ...parts,
    source: folder,
    eogIds: endOfGenerationIds(parts.vocabulary, parts.kinds, [
      parts.eosId,
      ...named.filter((id): id is number => typeof id === "number" && id < parts.vocabulary.size),
    ]),
    chatTemplates: await chatTemplatesOf(folder, config),
  }
}

async function partsOf(folder: string, config: Json): Promise<TokenizerParts> {
  const name = TOKENIZER_FILES.find((each) => existsSync(join(folder, each)))
  if (name === undefined)
    throw new FormatError(join(folder, "tokenizer.json"), "is missing", {
      hint: `The folder of a model needs one of ${TOKENIZER_FILES.join(", ")} (with merges.txt).`,
    })
  const path = join(folder, name)
  if (name === "tokenizer.json") {
    const json = (await readJson(path))!
    const model = json["model"] as ModelJson | undefined
    if (model?.vocab === undefined) throw new FormatError(path, "model.vocab is missing")
    return partsFromJson(json as unknown as TokenizerJson, config, path)
  }
  if (name === "vocab.json") {
    const merges = join(folder, "merges.txt")
    if (!existsSync(merges))
      throw new FormatError(merges, "is missing beside vocab.json", {
        hint: "A vocabulary without its merges cannot encode; tokenizer.json holds both.",
      })
    return partsFromMerges((await readJson(path))!, await Bun.file(merges).text(), config, path)
  }
  const bytes = await Bun.file(path).bytes()
  return isTiktoken(bytes)
    ? partsFromTiktoken(bytes, config, path)
    : partsFromSentencePiece(bytes, config, path)
}

/** added_tokens.json ({text: id}) in the form of tokenizer_config.json's `added_tokens_decoder`. */
function decoderOf(addedTokens: Json | undefined): Json | undefined {
  if (addedTokens === undefined) return undefined
  return Object.fromEntries(
    Object.entries(addedTokens).map(([content, id]) => [String(id), { content, special: true }]),
  )
}

async function chatTemplatesOf(folder: string, config: Json): Promise<Map<string, string>> {
  const templates = new Map<string, string>()
  const inConfig = config["chat_template"]
  if (typeof inConfig === "string") templates.set("default", inConfig)
  else if (Array.isArray(inConfig))
    for (const entry of inConfig as { name: string; template: string }[])
      templates.set(entry.name, entry.template)
  const own = Bun.file(join(folder, "chat_template.jinja"))
  if (await own.exists()) templates.set("default", await own.text())
  return templates
}
