import { RequestError } from "../../errors.ts"

/** How long a model that a request brought in stays without being used. */
export const DEFAULT_KEEP_ALIVE_MS = 5 * 60_000

const UNITS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
}
const DURATION = /^(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)/

/**
 * Ollama's `keep_alive` in ms: seconds as a number, or a duration as Go writes it ("5m", "1h30m"). Negative is for ever
 * (Infinity); undefined where the request says nothing.
 *
 * @throws RequestError 400
 */
export function keepAliveMs(value: string | number | null | undefined): number | undefined {
  if (value === undefined || value === null || value === "") return undefined
  const ms = typeof value === "number" ? value * 1000 : durationMs(value)
  if (ms === undefined || Number.isNaN(ms))
    throw new RequestError(
      400,
      `keep_alive ${JSON.stringify(value)}: expected seconds, or a duration such as "5m" or "1h30m"`,
      { code: "invalid_value", param: "keep_alive" },
    )
  return ms < 0 ? Number.POSITIVE_INFINITY : ms
}

/** Undefined where the text is no duration. */
export function durationMs(text: string): number | undefined {
  const sign = text.startsWith("-") ? -1 : 1
  let rest = text.replace(/^[+-]/, "")
  // a number alone is seconds, also as a text
  if (/^\d+(\.\d+)?$/.test(rest)) return sign * Number(rest) * 1000
  if (rest === "") return undefined
  let ms = 0
  while (rest !== "") {
    const match = DURATION.exec(rest)
    if (match === null) return undefined
    ms += Number(match[1]) * (UNITS[match[3] as string] as number)
    rest = rest.slice(match[0].length)
  }
  return sign * ms
}
