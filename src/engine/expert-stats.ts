import { readFileSync } from "node:fs"

import { ConfigError } from "../errors.ts"

/** How often the experts of each layer were chosen, by the path of their module. */
export interface ExpertStats {
  readonly tokens: number
  readonly layers: Readonly<Record<string, readonly number[]>>
}

/** A file that `kt experts record` wrote. @throws ConfigError that names what is wrong with it */
export function readExpertStats(file: string): ExpertStats {
  const fail = (problem: string, cause?: unknown): never => {
    throw new ConfigError(`--expert-stats ${file}: ${problem}`, { cause })
  }
  let value: unknown
  try {
    value = JSON.parse(readFileSync(file, "utf8"))
  } catch (cause) {
    return fail(cause instanceof Error ? cause.message : String(cause), cause)
  }
  if (typeof value !== "object" || value === null || !("layers" in value))
    return fail("no file of `kt experts record`")
  const { layers } = value
  const isCounts = (counts: unknown): counts is number[] =>
    Array.isArray(counts) && counts.every((n) => typeof n === "number" && n >= 0)
  if (typeof layers !== "object" || layers === null || !Object.values(layers).every(isCounts))
    return fail("layers: expected counts of each layer's experts")
  const tokens = "tokens" in value && typeof value.tokens === "number" ? value.tokens : 0
  return { tokens, layers: layers as Record<string, number[]> }
}
