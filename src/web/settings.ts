import { t } from "./language.ts"
import { EMPTY_SETTINGS, type SamplerName, SAMPLERS, type Settings, THINKING } from "./types.ts"

/** Settings that are numbers. */
export type SamplingKey = {
  [Key in keyof Settings]: Settings[Key] extends number | null ? Key : never
}[keyof Settings]

/** One row of the settings form: its range and step. Its names are those of strings/. */
export interface SamplingField {
  key: SamplingKey
  min: number
  max: number
  step: number
  integer: boolean
}

export const THINKING_BUDGET: SamplingField = {
  key: "thinking_budget_tokens",
  min: -1,
  max: 1_000_000,
  step: 1,
  integer: true,
}

/** Those that many people know. */
export const MAIN_FIELDS: readonly SamplingField[] = [
  { key: "temperature", min: 0, max: 2, step: 0.05, integer: false },
  { key: "top_p", min: 0.01, max: 1, step: 0.01, integer: false },
  { key: "top_k", min: 0, max: 1000, step: 1, integer: true },
  { key: "min_p", min: 0, max: 1, step: 0.01, integer: false },
  { key: "repetition_penalty", min: 0.5, max: 2, step: 0.01, integer: false },
  { key: "presence_penalty", min: -2, max: 2, step: 0.1, integer: false },
  { key: "frequency_penalty", min: -2, max: 2, step: 0.1, integer: false },
  { key: "max_tokens", min: 1, max: 1_000_000, step: 1, integer: true },
  { key: "seed", min: 0, max: 2 ** 31 - 1, step: 1, integer: true },
]

/** The others, which are folded away. */
export const MORE_FIELDS: readonly SamplingField[] = [
  { key: "repeat_last_n", min: -1, max: 1_000_000, step: 1, integer: true },
  { key: "typical_p", min: 0, max: 1, step: 0.01, integer: false },
  { key: "top_n_sigma", min: -1, max: 10, step: 0.1, integer: false },
  { key: "xtc_probability", min: 0, max: 1, step: 0.05, integer: false },
  { key: "xtc_threshold", min: 0, max: 1, step: 0.01, integer: false },
  { key: "dynatemp_range", min: 0, max: 2, step: 0.05, integer: false },
  { key: "dynatemp_exponent", min: 0, max: 10, step: 0.1, integer: false },
  { key: "dry_multiplier", min: 0, max: 10, step: 0.1, integer: false },
  { key: "dry_base", min: 0, max: 10, step: 0.05, integer: false },
  { key: "dry_allowed_length", min: 0, max: 1000, step: 1, integer: true },
  { key: "dry_penalty_last_n", min: -1, max: 1_000_000, step: 1, integer: true },
  { key: "mirostat", min: 0, max: 2, step: 1, integer: true },
  { key: "mirostat_tau", min: 0, max: 20, step: 0.1, integer: false },
  { key: "mirostat_eta", min: 0, max: 1, step: 0.01, integer: false },
]

export const SAMPLING_FIELDS: readonly SamplingField[] = [
  THINKING_BUDGET,
  ...MAIN_FIELDS,
  ...MORE_FIELDS,
]

/** The system prompt may be this long; longer ones would not fit a context anyway. */
export const MAX_SYSTEM_CHARS = 200_000
/** The same for the texts of tools and schema. */
export const MAX_JSON_CHARS = 200_000

/** What the server takes of DRY's breakers. */
const MAX_BREAKERS = 64
const MAX_BREAKER_CHARS = 40

/** Reads breakers as they are typed, one a line, with \\n for a line break: the list, `null` for empty, or what is wrong. */
export function parseBreakers(text: string): string[] | null | string {
  const lines = text.split("\n").filter((line) => line !== "")
  if (lines.length === 0) return null
  const breakers = [...new Set(lines.map(unescaped))]
  if (breakers.length > MAX_BREAKERS) return t("breakersTooMany", { n: MAX_BREAKERS })
  const long = breakers.find(({ length }) => length > MAX_BREAKER_CHARS)
  return long === undefined ? breakers : t("breakerTooLong", { n: MAX_BREAKER_CHARS })
}

/** The text that `parseBreakers` reads. */
export function breakersText(breakers: readonly string[] | null): string {
  return (breakers ?? [])
    .map((one) => one.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t"))
    .join("\n")
}

function unescaped(line: string): string {
  return line.replace(/\\([nt\\])/g, (_, letter: string) =>
    letter === "n" ? "\n" : letter === "t" ? "\t" : "\\",
  )
}

/** Reads one field's text: a number in range, `null` for empty, or a sentence that says what is wrong. */
export function parseField(field: SamplingField, text: string): number | null | string {
  const trimmed = text.trim()
  if (trimmed === "") return null
  const value = Number(trimmed)
  if (!Number.isFinite(value)) return t("mustBeNumber", { field: t(field.key) })
  if (field.integer && !Number.isInteger(value)) return t("mustBeWhole", { field: t(field.key) })
  if (value < field.min || value > field.max)
    return t("mustBeBetween", { field: t(field.key), min: field.min, max: field.max })
  return value
}

/** Reads the tools' text: the tools, `undefined` for empty, or a sentence that says what is wrong. */
export function parseTools(text: string): readonly object[] | undefined | string {
  const data = parseJsonField(text)
  if (data === undefined || typeof data === "string") return data
  const isTool = (tool: unknown): boolean => {
    const { type, function: named } = (tool ?? {}) as Record<string, unknown>
    const name = (named as Record<string, unknown> | undefined | null)?.["name"]
    return type === "function" && typeof name === "string" && name !== ""
  }
  return Array.isArray(data.value) && data.value.length > 0 && data.value.every(isTool)
    ? (data.value as object[])
    : t("toolsShape")
}

/** Reads the schema's text in the same way. */
export function parseSchema(text: string): object | undefined | string {
  const data = parseJsonField(text)
  if (data === undefined || typeof data === "string") return data
  const { value } = data
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? value
    : t("schemaShape")
}

function parseJsonField(text: string): { value: unknown } | undefined | string {
  if (text.trim() === "") return undefined
  try {
    return { value: JSON.parse(text) as unknown }
  } catch (error) {
    return t("notJsonBecause", { reason: error instanceof Error ? error.message : String(error) })
  }
}

/** Settings out of unknown data (stored, imported); fields that are missing or out of range become unset. */
export function readSettings(data: unknown): Settings {
  const settings: Settings = { ...EMPTY_SETTINGS }
  if (typeof data !== "object" || data === null) return settings
  const record = data as Record<string, unknown>
  if (typeof record["system"] === "string")
    settings.system = record["system"].slice(0, MAX_SYSTEM_CHARS)
  for (const [key, parse] of [
    ["tools", parseTools],
    ["schema", parseSchema],
  ] as const) {
    const text = record[key]
    if (
      typeof text === "string" &&
      text.length <= MAX_JSON_CHARS &&
      typeof parse(text) === "object"
    )
      settings[key] = text
  }
  const thinking = THINKING.find((each) => each === record["thinking"])
  if (thinking !== undefined) settings.thinking = thinking
  settings.samplers = readOrder(record["samplers"])
  const breakers = record["dry_sequence_breakers"]
  if (Array.isArray(breakers) && breakers.every((each) => typeof each === "string")) {
    const parsed = parseBreakers(breakersText(breakers))
    if (typeof parsed !== "string") settings.dry_sequence_breakers = parsed
  }
  for (const field of SAMPLING_FIELDS) {
    const value = record[field.key]
    if (typeof value !== "number") continue
    const parsed = parseField(field, String(value))
    if (typeof parsed === "number") settings[field.key] = parsed
  }
  return settings
}

/** An order of samplers, each at most once; `null` where it is none, or the server's own. */
function readOrder(data: unknown): SamplerName[] | null {
  if (!Array.isArray(data)) return null
  const known = data.flatMap((each) => SAMPLERS.filter((name) => name === each))
  const order = [...new Set(known)]
  return order.length === 0 || isServersOrder(order) ? null : order
}

export function isServersOrder(order: readonly SamplerName[]): boolean {
  return order.length === SAMPLERS.length && order.every((name, i) => name === SAMPLERS[i])
}

/** Number of settings that differ from the server's own. */
export function countChanged(settings: Settings): number {
  return (
    SAMPLING_FIELDS.filter((field) => settings[field.key] !== null).length +
    [settings.samplers, settings.dry_sequence_breakers].filter((list) => list !== null).length +
    [settings.system, settings.tools, settings.schema, settings.thinking].filter(
      (text) => text.trim() !== "",
    ).length
  )
}
