import { EMPTY_SETTINGS, type Settings } from "./types.ts"

export type SamplingKey = Exclude<keyof Settings, "system">

/** One row of the settings form: range, step and what it does. */
export interface SamplingField {
  key: SamplingKey
  label: string
  hint: string
  min: number
  max: number
  step: number
  integer: boolean
}

export const SAMPLING_FIELDS: readonly SamplingField[] = [
  {
    key: "temperature",
    label: "Temperature",
    hint: "0 always takes the likeliest token; higher is more varied",
    min: 0,
    max: 2,
    step: 0.05,
    integer: false,
  },
  {
    key: "top_p",
    label: "Top-p",
    hint: "Keep the likeliest tokens up to this share of probability",
    min: 0.01,
    max: 1,
    step: 0.01,
    integer: false,
  },
  {
    key: "top_k",
    label: "Top-k",
    hint: "Keep this many of the likeliest tokens; 0 keeps all",
    min: 0,
    max: 1000,
    step: 1,
    integer: true,
  },
  {
    key: "min_p",
    label: "Min-p",
    hint: "Drop tokens below this fraction of the likeliest one",
    min: 0,
    max: 1,
    step: 0.01,
    integer: false,
  },
  {
    key: "repetition_penalty",
    label: "Repetition penalty",
    hint: "Above 1 makes repeating less likely; 1 is off",
    min: 0.5,
    max: 2,
    step: 0.01,
    integer: false,
  },
  {
    key: "max_tokens",
    label: "Max tokens",
    hint: "An answer ends here at the latest",
    min: 1,
    max: 1_000_000,
    step: 1,
    integer: true,
  },
  {
    key: "seed",
    label: "Seed",
    hint: "The same seed and prompt give the same answer",
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
  if (!Number.isFinite(value)) return `${field.label} must be a number`
  if (field.integer && !Number.isInteger(value)) return `${field.label} must be a whole number`
  if (value < field.min || value > field.max)
    return `${field.label} must be between ${field.min} and ${field.max}`
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
