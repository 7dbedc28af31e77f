import { FormatError } from "../errors.ts"
import type { Json } from "./from-json.ts"
import type { AddedTokenJson } from "./tokenizer-json.ts"

/** Ids above this are a mistake in the file. */
const MAX_ID = 4_000_000

/**
 * `added_tokens_decoder` of tokenizer_config.json: tokens beyond the vocabulary file, by id.
 * @throws FormatError naming the file where an entry is no token.
 */
export function addedTokensOf(config: Json, file: string): AddedTokenJson[] {
  const decoder = (config["added_tokens_decoder"] ?? {}) as Record<string, Partial<AddedTokenJson>>
  return Object.entries(decoder)
    .map(([key, token]) => {
      const id = Number(key)
      if (!Number.isInteger(id) || id < 0 || id > MAX_ID || typeof token?.content !== "string")
        throw new FormatError(file, `added_tokens_decoder has no token at "${key}"`)
      return { ...token, id, content: token.content, special: token.special ?? false }
    })
    .sort((a, b) => a.id - b.id)
}

/** The text that a name such as `bos_token` stands for. */
export function namedToken(config: Json, name: string): string | undefined {
  const value = config[name]
  return typeof value === "string"
    ? value
    : ((value as { content?: string } | null | undefined)?.content ?? undefined)
}
