import { t } from "./language.ts"

const count = new Intl.NumberFormat("en")

/** 12345 → "12,345". */
export function formatCount(value: number): string {
  return count.format(Math.round(value))
}

/** Milliseconds as a person would say them: "85 ms", "1.24 s", "2 min 5 s". */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 9_995) return `${(ms / 1000).toFixed(2)} s`
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`
  const seconds = Math.round(ms / 1000)
  return t("minutes", { m: Math.floor(seconds / 60), s: seconds % 60 })
}

/** "8.3" below 100, "142" from there on. */
export function formatSpeed(tokensPerSecond: number): string {
  return tokensPerSecond < 99.95 ? tokensPerSecond.toFixed(1) : formatCount(tokensPerSecond)
}

/** Tokens in short: 900, "8.2k", "128k", "1.0M". */
export function formatTokens(tokens: number): string {
  if (tokens < 1000) return String(tokens)
  if (tokens < 99_950) return `${(tokens / 1000).toFixed(1).replace(/\.0$/, "")}k`
  if (tokens < 999_500) return `${Math.round(tokens / 1000)}k`
  return `${(tokens / 1_000_000).toFixed(1)}M`
}

const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB"] as const

/** "512 B", "1.20 GiB", "16.0 GiB", "638 MiB", as the command line shows them. */
export function formatBytes(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < BYTE_UNITS.length - 1) {
    value /= 1024
    unit++
  }
  const digits = unit === 0 ? 0 : value < 10 ? 2 : value < 100 ? 1 : 0
  return `${value.toFixed(digits)} ${BYTE_UNITS[unit]}`
}

export type AgeGroup = "today" | "yesterday" | "lastWeek" | "earlier"

/** Which heading of the conversation list a time falls under, relative to `now` (both ms, local days). */
export function ageGroup(time: number, now: number): AgeGroup {
  const today = new Date(now).setHours(0, 0, 0, 0)
  if (time >= today) return "today"
  // 20 hours back from midnight is yesterday whatever daylight saving does
  const yesterday = new Date(today - 20 * 3_600_000).setHours(0, 0, 0, 0)
  if (time >= yesterday) return "yesterday"
  if (time >= yesterday - 6 * 86_400_000) return "lastWeek"
  return "earlier"
}
