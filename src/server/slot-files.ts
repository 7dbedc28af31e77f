import { mkdir, open, readdir, rename, rm, stat } from "node:fs/promises"
import { join } from "node:path"

import { RequestError } from "../errors.ts"
import { randomId } from "./ids.ts"

/** A name and nothing of a path; names with a dot before them are our own. */
const NAME = /^(?!\.)[\w.-]{1,128}$/

/** Files that clients save slots to: in one folder, under plain names, within a number of bytes. */
export class SlotFiles {
  readonly #folder: string
  readonly #limitBytes: number

  constructor(folder: string, limitBytes: number) {
    this.#folder = folder
    this.#limitBytes = limitBytes
  }

  /** Writes pieces to a file, whole or not at all; returns its bytes. RequestError 400, 507. */
  async write(name: string, pieces: AsyncIterable<Uint8Array>): Promise<number> {
    const path = this.#path(name)
    await mkdir(this.#folder, { recursive: true, mode: 0o700 })
    const others = await this.#bytes(name)
    const temporary = join(this.#folder, `.${randomId(16)}.part`)
    let bytes = 0
    try {
      const file = await open(temporary, "wx", 0o600)
      try {
        for await (const piece of pieces) {
          bytes += piece.length
          if (others + bytes > this.#limitBytes)
            throw new RequestError(
              507,
              `filename ${name}: saved slots have at most ${this.#limitBytes} bytes in all (--slot-save-limit)`,
              { code: "no_space", param: "filename" },
            )
          await file.writeFile(piece)
        }
        await file.sync()
      } finally {
        await file.close()
      }
      await rename(temporary, path)
    } catch (error) {
      await rm(temporary, { force: true })
      throw error
    }
    return bytes
  }

  /** A file's pieces of so many bytes, the last perhaps shorter. RequestError 400, 404. */
  async *read(name: string, pieceBytes: number): AsyncGenerator<Uint8Array> {
    const path = this.#path(name)
    const file = await open(path, "r").catch(() => {
      throw new RequestError(404, `filename ${name}: there is no saved slot of that name`, {
        code: "not_found",
        param: "filename",
      })
    })
    try {
      for (;;) {
        const piece = new Uint8Array(pieceBytes)
        let length = 0
        while (length < pieceBytes) {
          const { bytesRead } = await file.read(piece, length, pieceBytes - length)
          if (bytesRead === 0) break
          length += bytesRead
        }
        if (length > 0) yield piece.subarray(0, length)
        if (length < pieceBytes) return
      }
    } finally {
      await file.close()
    }
  }

  #path(name: string): string {
    if (NAME.test(name)) return join(this.#folder, name)
    throw new RequestError(
      400,
      `filename ${JSON.stringify(name.slice(0, 60))}: expected 1 to 128 letters, digits, "_", "-" and ".", no dot first, no folder`,
      { code: "invalid_value", param: "filename" },
    )
  }

  async #bytes(except: string): Promise<number> {
    let bytes = 0
    for (const name of await readdir(this.#folder)) {
      if (name === except) continue
      bytes += (await stat(join(this.#folder, name)).catch(() => undefined))?.size ?? 0
    }
    return bytes
  }
}
