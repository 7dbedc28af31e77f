import { t } from "./language.ts"
import { EMPTY_SETTINGS, type Settings } from "./types.ts"

export type SamplingKey = Exclude<keyof Settings, "system">

/** One row of the settings form: its range and step. Its names are those of strings/. */
export interface SamplingField {
  key: SamplingKey
  min: number
  max: number
  step: number
  integer: boolean
}

export const SAMPLING_FIELDS: readonly SamplingField[] = [
  {
    key: "temperature",
    min: 0,
    max: 2,
    step: 0.05,
    integer: false,
  },
  {
    key: "top_p",
    min: 0.01,
    max: 1,
    step: 0.01,
    integer: false,
  },
  {
    key: "top_k",
    min: 0,
    max: 1000,
    step: 1,
    integer: true,
  },
  {
    key: "min_p",
    min: 0,
    max: 1,
    step: 0.01,
    integer: false,
  },
  {
    key: "repetition_penalty",
    min: 0.5,
    max: 2,
    step: 0.01,
    integer: false,
  },
  {
    key: "max_tokens",
    min: 1,
    max: 1_000_000,
    step: 1,
    integer: true,
  },
  {
    key: "seed",
    min: 0,
    max: 2 ** 31 - 1,
    step: 1,
    integer: true,
  },
]

/** The system prompt may be this long; longer ones would not fit a context anyway. */
export const MAX_SYSTEM_CHARS = 200_000

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

/** Settings out of unknown data (stored, imported); fields that are missing or out of range become unset. */
export function readSettings(data: unknown): Settings {
  const settings: Settings = { ...EMPTY_SETTINGS }
  if (typeof data !== "object" || data === null) return settings
  const record = data as Record<string, unknown>
  if (typeof record["system"] === "string")
    settings.system = record["system"].slice(0, MAX_SYSTEM_CHARS)
  for (const field of SAMPLING_FIELDS) {
    const value = record[field.key]
    if (typeof value !== "number") continue
    const parsed = parseField(field, String(value))
    if (typeof parsed === "number") settings[field.key] = parsed
  }
  return settings
}

/** Number of settings that differ from the server's own. */
export function countChanged(settings: Settings): number {
  return (
    SAMPLING_FIELDS.filter((field) => settings[field.key] !== null).length +
    (settings.system.trim() === "" ? 0 : 1)
  )
}
