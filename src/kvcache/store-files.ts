import { Database } from "bun:sqlite"
import {
  closeSync,
  fdatasync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeSync,
} from "node:fs"
import { dirname } from "node:path"
import { promisify } from "node:util"

/** Held until it is released or the process ends, however it ends. */
export interface StoreLock {
  release(): void
}

/** What the disk store asks of the file system; tests put failures here. All throw the system's errors. */
export interface StoreFiles {
  makeFolder(path: string): void
  /** Names in a folder; none where it does not exist. */
  list(path: string): string[]
  stat(path: string): { readonly bytes: number; readonly modifiedMs: number }
  /** A new file, to write. */
  create(path: string): number
  open(path: string): number
  /** All of it. */
  write(fd: number, bytes: Uint8Array, at: number): void
  /** Bytes read; fewer than asked for at the end of the file. */
  read(fd: number, bytes: Uint8Array, at: number): number
  truncate(fd: number, bytes: number): void
  /** Resolves when what was written is on the disk. */
  sync(fd: number): Promise<void>
  /** Makes the names in a folder last. */
  syncFolder(path: string): void
  close(fd: number): void
  /** Whole or not at all: written beside and renamed. */
  replace(path: string, text: string): void
  remove(path: string): void
  touch(path: string): void
  /** Undefined while another process, or another part of this one, holds it. */
  lock(path: string): StoreLock | undefined
}

const dataSync = promisify(fdatasync)

/** The system's own files. Locks are those of SQLite, which the kernel gives up when the process ends. */
export const SYSTEM_FILES: StoreFiles = {
  makeFolder: (path) => void mkdirSync(path, { recursive: true }),
  list(path) {
    try {
      return readdirSync(path)
    } catch (error) {
      if (codeOf(error) === "ENOENT") return []
      throw error
    }
  },
  stat(path) {
    const { size, mtimeMs } = statSync(path)
    return { bytes: size, modifiedMs: mtimeMs }
  },
  create: (path) => openSync(path, "wx+"),
  open: (path) => openSync(path, "r"),
  write(fd, bytes, at) {
    let done = 0
    while (done < bytes.length) done += writeSync(fd, bytes, done, bytes.length - done, at + done)
  },
  read(fd, bytes, at) {
    let done = 0
    while (done < bytes.length) {
      const count = readSync(fd, bytes, done, bytes.length - done, at + done)
      if (count === 0) break
      done += count
    }
    return done
  },
  truncate: (fd, bytes) => ftruncateSync(fd, bytes),
  sync: (fd) => dataSync(fd),
  syncFolder(path) {
    // Windows opens no folders, and needs none of this
    if (process.platform === "win32") return
    const fd = openSync(path, "r")
    try {
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
  },
  close: (fd) => closeSync(fd),
  replace(path, text) {
    const beside = `${path}.new`
    const fd = openSync(beside, "w")
    try {
      writeSync(fd, text)
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    renameSync(beside, path)
    SYSTEM_FILES.syncFolder(dirname(path))
  },
  remove: (path) => rmSync(path, { force: true, recursive: true }),
  touch(path) {
    const now = new Date()
    utimesSync(path, now, now)
  },
  lock(path) {
    const database = new Database(path, { create: true, readwrite: true })
    try {
      database.run("PRAGMA busy_timeout = 0")
      database.run("BEGIN EXCLUSIVE")
    } catch (error) {
      database.close()
      if (codeOf(error).startsWith("SQLITE_BUSY")) return undefined
      throw error
    }
    return {
      release() {
        database.run("ROLLBACK")
        database.close()
      },
    }
  },
}

/** The system's name of an error, such as ENOSPC. */
export function codeOf(error: unknown): string {
  const code = (error as { code?: unknown }).code
  return typeof code === "string" ? code : ""
}
