import { readFileSync, statSync } from "node:fs"

import { z } from "zod"

import { FormatError } from "../errors.ts"

/**
 * A config.json is some kilobytes; longrope factors and label maps make the largest reach a few
 * hundred.
 */
const MAX_CONFIG_BYTES = 16 * 1024 * 1024

/** What a file of JSON holds, or an error that says why it holds none. */
export function readJson(file: string): unknown {
  const stat = statSync(file, { throwIfNoEntry: false })
  if (stat === undefined) throw new FormatError(file, "no such file")
  if (stat.size > MAX_CONFIG_BYTES)
    throw new FormatError(file, `${stat.size} bytes, more than the limit of ${MAX_CONFIG_BYTES}`)
  try {
    return JSON.parse(readFileSync(file, "utf8"))
  } catch (cause) {
    throw new FormatError(
      file,
      `is no valid JSON (${cause instanceof Error ? cause.message : String(cause)})`,
      { cause },
    )
  }
}

/**
 * `json` checked; the message names the first offending key and its value. `names`: what the file calls keys that
 * the schema has under other names.
 */
export function parsed<T>(
  file: string,
  at: string,
  json: unknown,
  schema: z.ZodType<T>,
  names: Readonly<Record<string, string>> = {},
): T {
  const result = schema.safeParse(json)
  if (result.success) return result.data
  const [issue] = result.error.issues
  const path = issue?.path ?? []
  let value: unknown = json
  for (const key of path)
    value = typeof value === "object" && value !== null ? Reflect.get(value, key) : undefined
  const [first, ...rest] = path.map(String)
  const named = first === undefined ? [] : [names[first] ?? first, ...rest]
  const field = [...(at === "" ? [] : [at]), ...named].join(".")
  const found = value === undefined ? "missing" : shown(value)
  throw new FormatError(
    file,
    `${field === "" ? "content" : field}: ${found} (${issue?.message ?? "invalid"})`,
  )
}

/** A value as messages show it. */
export function shown(value: unknown): string {
  if (value === undefined) return "missing"
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 80 ? `${text.slice(0, 80)}…` : text
}

export function withoutUndefined(
  record: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  return Object.fromEntries(Object.entries(record).filter(([, value]) => value !== undefined))
}
