import { t } from "./language.ts"
import type { TextFile } from "./types.ts"

/** Larger texts do not fit a context, and would make each message slow to send. */
export const MAX_FILE_BYTES = 500_000
/** Files of one message. */
export const MAX_FILES = 20

/** Reads a file as text (UTF-8, or UTF-16 with a byte order mark); a sentence where it is too large or no text. */
export async function readTextFile(file: File): Promise<TextFile | string> {
  const name = file.name.replace(/[\r\n`]+/g, " ").trim()
  if (file.size > MAX_FILE_BYTES)
    return t("fileTooLarge", { name, n: Math.round(MAX_FILE_BYTES / 1000) })
  let bytes: Uint8Array
  try {
    bytes = new Uint8Array(await file.arrayBuffer())
  } catch {
    return t("fileUnreadable", { name })
  }
  const text = decode(bytes)
  if (text === undefined) return t("fileBinary", { name })
  return text.trim() === "" ? t("fileEmpty", { name }) : { name, text }
}

/** `undefined` for what is no text: other encodings, control characters that texts do not have. */
function decode(bytes: Uint8Array): string | undefined {
  const [first, second] = bytes
  const encoding =
    first === 0xff && second === 0xfe
      ? "utf-16le"
      : first === 0xfe && second === 0xff
        ? "utf-16be"
        : "utf-8"
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes)
    return /[\u0000-\u0008\u000e-\u001a\u001c-\u001f]/.test(text) ? undefined : text
  } catch {
    return undefined
  }
}

/** A text in a fence with a name, longer than any within. */
export function fenced(name: string, text: string): string {
  const longest = Math.max(2, ...Array.from(text.matchAll(/`+/g), ([run]) => run.length))
  const fence = "`".repeat(longest + 1)
  return `${fence}${name}\n${text}${text.endsWith("\n") ? "" : "\n"}${fence}`
}
