import { randomUUID } from "node:crypto"
import { closeSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from "node:fs"
import { basename, dirname, join } from "node:path"

/** Begins the names of what is not whole yet; left behind by a crash, it is removed at the next start. */
export const UNFINISHED = ".new-"

/** A path beside the given one for what will be renamed to it. */
export function unfinished(path: string): string {
  return join(dirname(path), `${UNFINISHED}${randomUUID()}-${basename(path).slice(-40)}`)
}

/** Writes a file that is there whole or not at all, whatever happens meanwhile. */
export function writeAtomically(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true })
  const temporary = unfinished(path)
  try {
    const fd = openSync(temporary, "wx", 0o600)
    try {
      writeSync(fd, text)
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    renameSync(temporary, path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
  syncFolder(dirname(path))
}

/** A name lasts only when its folder is on the disk; not every system can do it. */
export function syncFolder(folder: string): void {
  let fd: number
  try {
    fd = openSync(folder, "r")
  } catch {
    return
  }
  try {
    fsyncSync(fd)
  } catch {
    // Windows has no such thing
  } finally {
    closeSync(fd)
  }
}
