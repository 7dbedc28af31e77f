import { join } from "node:path"

import type { StoreFiles, StoreLock } from "./store-files.ts"

/** A fingerprint's part of a cache folder: `<fingerprint>/<number>-<random>.data` and `.index`, a lock, and what it is of. */
export interface FolderPart {
  readonly fingerprint: string
  readonly segments: readonly FolderSegment[]
  readonly bytes: number
}

export interface FolderSegment {
  /** Path without its ending. */
  readonly path: string
  readonly name: string
  readonly bytes: number
  /** When a block of it was last used. */
  readonly usedMs: number
}

const FINGERPRINT = /^[0-9a-f]{32}$/
const SEGMENT = /^(\d{10}-[0-9a-f]{8})\.(data|index)$/

/** What a model's blocks are of, for people. */
export const ABOUT_FILE = "about.json"

/** Names of a part's segments with a journal, oldest first, and of data files without one. */
export function segmentNames(
  files: StoreFiles,
  folder: string,
): { readonly names: string[]; readonly orphans: string[] } {
  const data = new Set<string>()
  const index = new Set<string>()
  for (const file of files.list(folder)) {
    const [, name, kind] = SEGMENT.exec(file) ?? []
    if (name !== undefined) (kind === "data" ? data : index).add(name)
  }
  return {
    names: [...index].sort(),
    orphans: [...data].filter((name) => !index.has(name)),
  }
}

/** A name that comes after all of `names` and that no other process chooses. */
export function nextSegmentName(names: readonly string[]): string {
  const last = names.reduce((most, name) => Math.max(most, Number.parseInt(name, 10)), 0)
  const random = crypto.getRandomValues(new Uint8Array(4)).toHex()
  return `${String(last + 1).padStart(10, "0")}-${random}`
}

export function partFolder(folder: string, fingerprint: string): string {
  return join(folder, fingerprint)
}

/** All parts of a folder, files that vanish meanwhile left out. */
export function folderParts(files: StoreFiles, folder: string): FolderPart[] {
  return files
    .list(folder)
    .filter((name) => FINGERPRINT.test(name))
    .map((fingerprint) => {
      const part = partFolder(folder, fingerprint)
      const segments = segmentNames(files, part).names.flatMap((name) => {
        const path = join(part, name)
        try {
          const index = files.stat(`${path}.index`)
          const bytes = index.bytes + files.stat(`${path}.data`).bytes
          return [{ path, name, bytes, usedMs: index.modifiedMs }]
        } catch {
          return []
        }
      })
      return { fingerprint, segments, bytes: segments.reduce((sum, { bytes }) => sum + bytes, 0) }
    })
}

/** The journal goes first: data without a journal is nothing. */
export function removeSegment(files: StoreFiles, path: string): void {
  files.remove(`${path}.index`)
  files.remove(`${path}.data`)
}

/** The right to write a part. Undefined while somebody else has it. */
export function lockPart(
  files: StoreFiles,
  folder: string,
  fingerprint: string,
): StoreLock | undefined {
  return files.lock(join(partFolder(folder, fingerprint), "lock"))
}

/** Removes a part that nobody writes; false where somebody does. */
export function removePart(files: StoreFiles, folder: string, fingerprint: string): boolean {
  const lock = lockPart(files, folder, fingerprint)
  if (lock === undefined) return false
  try {
    const part = partFolder(folder, fingerprint)
    const { names, orphans } = segmentNames(files, part)
    for (const name of [...names, ...orphans]) removeSegment(files, join(part, name))
    files.remove(join(part, ABOUT_FILE))
  } finally {
    lock.release()
  }
  files.remove(partFolder(folder, fingerprint))
  return true
}
