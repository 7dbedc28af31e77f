import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs"
import { basename, dirname, join } from "node:path"

import { FormatError } from "../errors.ts"

/** One call of the system takes less than 2 GiB; smaller pieces also let the page cache breathe. */
const MAX_WRITE_BYTES = 64 * 2 ** 20

/**
 * A file that is written from front to back under a temporary name beside `path` and renamed when
 * it is whole, so that `path` is never half a file. Disposing of it before `close` leaves nothing.
 */
export class OutputFile implements Disposable {
  readonly path: string
  readonly #temporary: string
  #fd: number
  #size = 0

  /** @throws FormatError naming `path` where the file cannot be made */
  constructor(path: string) {
    this.path = path
    this.#temporary = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`)
    this.#fd = this.#try(() => openSync(this.#temporary, "w"))
  }

  /** Bytes written so far. */
  get size(): number {
    return this.#size
  }

  write(bytes: Uint8Array): void {
    this.#try(() => {
      for (let at = 0; at < bytes.length;) {
        at += writeSync(this.#fd, bytes, at, Math.min(bytes.length - at, MAX_WRITE_BYTES))
      }
    })
    this.#size += bytes.length
  }

  /** Zeros up to the next multiple of `alignment`. */
  pad(alignment: number): void {
    const rest = this.#size % alignment
    if (rest !== 0) this.write(new Uint8Array(alignment - rest))
  }

  /** Makes the bytes durable; the file still has its temporary name. */
  flush(): void {
    if (this.#fd < 0) return
    this.#try(() => fsyncSync(this.#fd))
    closeSync(this.#fd)
    this.#fd = -1
  }

  /** Gives the whole file its name, or another one that became known while it was written. */
  close(path: string = this.path): void {
    this.flush()
    this.#try(() => renameSync(this.#temporary, path))
  }

  [Symbol.dispose](): void {
    if (this.#fd >= 0) closeSync(this.#fd)
    this.#fd = -1
    rmSync(this.#temporary, { force: true })
  }

  #try<T>(action: () => T): T {
    try {
      return action()
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause)
      throw new FormatError(this.path, `cannot be written: ${reason}`, { cause })
    }
  }
}
