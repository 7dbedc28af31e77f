import { SAMPLER_NAMES, type SamplerName } from "../worker/protocol.ts"
import type { ServerTokenizer } from "./types.ts"

/** llama.cpp's letters for a string of samplers. */
const LETTERS: Readonly<Record<string, SamplerName>> = {
  e: "penalties",
  d: "dry",
  s: "top_n_sigma",
  k: "top_k",
  y: "typ_p",
  p: "top_p",
  m: "min_p",
  x: "xtc",
  t: "temperature",
}

const ALIASES: Readonly<Record<string, SamplerName>> = {
  temp: "temperature",
  typical: "typ_p",
  typical_p: "typ_p",
  typ: "typ_p",
  nucleus: "top_p",
}

const KNOWN = new Map<string, SamplerName>([
  ...Object.entries(ALIASES),
  ...SAMPLER_NAMES.flatMap((name) => [
    [name, name] as const,
    [name.replaceAll("_", ""), name] as const,
  ]),
])

/** An order of samplers, by names or as a string of llama.cpp's letters; a sentence where it is none. */
export function readSamplers(value: string | readonly string[]): readonly SamplerName[] | string {
  const found: SamplerName[] = []
  for (const text of typeof value === "string" ? value : value.map((name) => name.toLowerCase())) {
    const known =
      typeof value === "string" ? LETTERS[text] : KNOWN.get(text.replaceAll("-", "_").trim())
    if (known === undefined) {
      const all = typeof value === "string" ? Object.keys(LETTERS) : SAMPLER_NAMES
      return `"${text}" is no sampler: ${all.join(", ")}`
    }
    if (found.includes(known)) return `"${text}": a sampler may be named once`
    found.push(known)
  }
  return found.length > 0 ? found : "expected at least one sampler"
}

/** llama.cpp's: DRY sees no repetition across them. */
export const DRY_BREAKERS: readonly string[] = ["\n", ":", '"', "*"]

/** Lists of breakers that are kept for each tokenizer. */
const MAX_KEPT = 16

interface Vocabulary {
  /** Each token's bytes, a character each. */
  readonly texts: readonly string[]
  readonly breakers: Map<string, readonly (readonly number[])[]>
}

const vocabularies = new WeakMap<ServerTokenizer, Vocabulary>()

/**
 * Tokens that hold a breaker, and those in which one begins, each with the tokens of the rest: what DRY looks for
 * among ids. The first call reads the whole vocabulary.
 */
export function breakerTokens(
  tokenizer: ServerTokenizer,
  breakers: readonly string[],
): readonly (readonly number[])[] {
  let vocabulary = vocabularies.get(tokenizer)
  if (vocabulary === undefined) {
    const texts = Array.from({ length: tokenizer.vocabSize }, (_, id) =>
      Buffer.from(tokenizer.tokenBytes(id)).toString("latin1"),
    )
    vocabularies.set(tokenizer, (vocabulary = { texts, breakers: new Map() }))
  }
  const key = JSON.stringify(breakers)
  const kept = vocabulary.breakers.get(key)
  if (kept !== undefined) return kept
  const found: (readonly number[])[] = []
  for (const breaker of breakers) {
    const bytes = Buffer.from(breaker)
    const text = bytes.toString("latin1")
    // the tokens of what is left of the breaker after so many bytes
    const tails = Array.from({ length: text.length }, (_, taken) =>
      taken === 0
        ? []
        : [
            ...tokenizer.encode(bytes.subarray(taken).toString(), {
              addSpecial: false,
              parseSpecial: false,
            }),
          ],
    )
    for (const [id, token] of vocabulary.texts.entries()) {
      if (token.includes(text)) {
        found.push([id])
        continue
      }
      for (let taken = Math.min(text.length - 1, token.length); taken > 0; taken--)
        if (token.endsWith(text.slice(0, taken))) found.push([id, ...(tails[taken] ?? [])])
    }
  }
  if (vocabulary.breakers.size >= MAX_KEPT) vocabulary.breakers.clear()
  vocabulary.breakers.set(key, found)
  return found
}
