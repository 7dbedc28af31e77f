import { readFileSync } from "node:fs"

import { FormatError } from "../errors.ts"
import { reasonOf } from "./kt-config.ts"

/** A text file as it is, a byte order mark included; "-" is stdin. */
export function readText(file: string): string {
  const bytes = readBytes(file)
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw new FormatError(file, "is not UTF-8 text", { cause })
  }
}

export function readJson(file: string): unknown {
  const text = readText(file)
  try {
    return JSON.parse(text) as unknown
  } catch (cause) {
    throw new FormatError(file, `is not valid JSON: ${reasonOf(cause)}`, { cause })
  }
}

function readBytes(file: string): Uint8Array {
  try {
    return readFileSync(file === "-" ? 0 : file)
  } catch (cause) {
    throw new FormatError(file, reasonOf(cause), { cause })
  }
}
