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

/** Whether a process runs, whoever it belongs to. */
export function isAlive(pid: number): boolean {
  if (!Number.isInteger(pid) || pid <= 0) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as { code?: string }).code === "EPERM"
  }
}
