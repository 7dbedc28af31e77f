import { UsageError } from "../errors.ts"

/** Flag of commands that write GGUF files. */
export const SPLIT_FLAG = {
  "split-max-size": {
    type: "string",
    hint: "size",
    help: "begin another file of the model at this size, such as 500M or 40G",
  },
} as const

const UNITS: Readonly<Record<string, number>> = { "": 1, K: 1e3, M: 1e6, G: 1e9, T: 1e12 }

/** "40G" in bytes; units are powers of 1000. @throws UsageError naming the flag */
export function parseSize(flag: string, text: string): number {
  const match = /^(\d+(?:\.\d+)?)([KMGT]?)B?$/i.exec(text)
  const bytes = match === null ? 0 : Number(match[1]) * (UNITS[(match[2] ?? "").toUpperCase()] ?? 1)
  if (!(bytes >= 1)) throw new UsageError(`${flag} ${text}: expected a size such as 500M or 40G`)
  return Math.floor(bytes)
}
