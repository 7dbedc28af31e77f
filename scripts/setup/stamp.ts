import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from "node:fs"
import { dirname, join, relative } from "node:path"

import { toolchainFolder } from "./zig.ts"

/** Files below the given files and folders, sorted, as paths. */
export function filesBelow(paths: readonly string[]): string[] {
  const files: string[] = []
  const walk = (path: string): void => {
    let entries
    try {
      entries = readdirSync(path, { withFileTypes: true })
    } catch {
      if (existsSync(path)) files.push(path)
      return
    }
    for (const entry of entries) {
      if (entry.isDirectory()) walk(join(path, entry.name))
      else files.push(join(path, entry.name))
    }
  }
  for (const path of paths) walk(path)
  return files.sort()
}

/** SHA-256 over names and contents of files, and over what else decides the result. */
export function hashInputs(
  root: string,
  paths: readonly string[],
  extra: readonly string[] = [],
): string {
  const hash = new Bun.CryptoHasher("sha256")
  for (const text of extra) hash.update(`${text}\0`)
  for (const file of filesBelow(paths)) {
    const content = readFileSync(file)
    hash.update(`${relative(root, file)}\0${content.length}\0`)
    hash.update(content)
  }
  return hash.digest("hex")
}

function stampFile(root: string, name: string): string {
  return join(toolchainFolder(root), "stamps", name)
}

/** Whether a step ended well with these inputs before. */
export function isStamped(root: string, name: string, value: string): boolean {
  try {
    return readFileSync(stampFile(root, name), "utf8") === value
  } catch {
    return false
  }
}

/** Records that a step ended well; written whole or not at all. */
export function writeStamp(root: string, name: string, value: string): void {
  const file = stampFile(root, name)
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(`${file}.${process.pid}`, value)
  renameSync(`${file}.${process.pid}`, file)
}
