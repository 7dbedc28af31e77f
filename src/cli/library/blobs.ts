import { createHash } from "node:crypto"
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
} from "node:fs"
import { open } from "node:fs/promises"
import { join } from "node:path"

import { RequestError } from "../../errors.ts"
import { syncFolder, UNFINISHED, unfinished } from "./atomic.ts"

const DIGEST = /^sha256[:-]([0-9a-f]{64})$/
/** Kept free on the disk. */
const RESERVE_BYTES = 256 * 2 ** 20
/** How often the disk is asked while a body comes. */
const CHECK_BYTES = 64 * 2 ** 20
/** Blobs that no model was made of in this time are removed at a start. */
const UNUSED_MS = 24 * 3600 * 1000

/** Files that clients sent, by the SHA-256 of their bytes. */
export class Blobs {
  readonly #folder: string

  constructor(folder: string) {
    this.#folder = folder
  }

  has(digest: string): boolean {
    return existsSync(this.path(digest))
  }

  /** RequestError 400 where the words are no digest: they become a file's name. */
  path(digest: string): string {
    const hex = DIGEST.exec(digest)?.[1]
    if (hex === undefined)
      throw new RequestError(
        400,
        `digest ${JSON.stringify(digest.slice(0, 80))}: expected sha256: and 64 hexadecimal digits`,
        { code: "invalid_value", param: "digest" },
      )
    return join(this.#folder, `sha256-${hex}`)
  }

  /** RequestError 400 where the bytes have another digest, 507 where the disk is full. */
  async put(digest: string, body: ReadableStream<Uint8Array> | null): Promise<void> {
    const path = this.path(digest)
    if (existsSync(path)) return void (await body?.cancel())
    mkdirSync(this.#folder, { recursive: true })
    const temporary = unfinished(path)
    try {
      const hex = await write(temporary, body)
      if (!path.endsWith(hex))
        throw new RequestError(400, `the body's digest is sha256:${hex}, not ${digest}`, {
          code: "digest_mismatch",
          param: "digest",
        })
      renameSync(temporary, path)
      syncFolder(this.#folder)
    } catch (error) {
      rmSync(temporary, { force: true })
      throw error
    }
  }

  /** The blob under a name of its own in a folder, without taking place twice where the disk can do it. */
  link(digest: string, path: string): void {
    const blob = this.path(digest)
    if (!existsSync(blob))
      throw new RequestError(400, `there is no blob ${digest}: send it to /api/blobs first`, {
        code: "blob_not_found",
        param: "files",
      })
    try {
      linkSync(blob, path)
    } catch {
      copyFileSync(blob, path)
    }
  }

  remove(digest: string): void {
    rmSync(this.path(digest), { force: true })
  }

  /** Removes what a crash or a client that did not go on left behind. */
  sweep(): void {
    if (!existsSync(this.#folder)) return
    for (const name of readdirSync(this.#folder)) {
      const path = join(this.#folder, name)
      const { mtimeMs = 0 } = statSync(path, { throwIfNoEntry: false }) ?? {}
      const isOld = Date.now() - mtimeMs > UNUSED_MS
      if (isOld && (name.startsWith(UNFINISHED) || name.startsWith("sha256-")))
        rmSync(path, { force: true })
    }
  }
}

/** Writes the body and gives its digest. */
async function write(path: string, body: ReadableStream<Uint8Array> | null): Promise<string> {
  const hash = createHash("sha256")
  const file = await open(path, "wx", 0o600)
  try {
    let left = 0
    for await (const chunk of body ?? []) {
      left -= chunk.length
      if (left < 0) {
        checkSpace(path)
        left = CHECK_BYTES
      }
      hash.update(chunk)
      await file.writeFile(chunk)
    }
    await file.sync()
  } finally {
    await file.close()
  }
  return hash.digest("hex")
}

function checkSpace(path: string): void {
  const { bavail, bsize } = statfsSync(join(path, ".."))
  if (bavail * bsize > RESERVE_BYTES + CHECK_BYTES) return
  throw new RequestError(507, "the disk is full", { code: "disk_full" })
}
