import { createHash, type Hash } from "node:crypto"
import { existsSync, mkdirSync, statfsSync } from "node:fs"
import { type FileHandle, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises"
import { basename, dirname } from "node:path"

import { FormatError, KtError } from "../errors.ts"
import { isAlive } from "./is-alive.ts"
import { reasonOf } from "./kt-config.ts"
import { formatBytes } from "./output.ts"

export interface DownloadRequest {
  readonly url: string
  /** Where the file goes. While it is not whole it is `path`.partial, with a journal beside it. */
  readonly path: string
  /** Sent to the first host only. */
  readonly token?: string | undefined
  /** Lower-case hex, where it is known beforehand; else the server's headers are asked. */
  readonly sha256?: string | undefined
  readonly size?: number | undefined
  readonly onProgress?: (done: number, total: number) => void
  readonly onNote?: (line: string) => void
  /** Ends it; what is here already stays, and a later call goes on from there. */
  readonly signal?: AbortSignal
  /** Interrupted transfers that are continued before it fails. Default 5. */
  readonly retries?: number
  /** Silence after which a transfer counts as interrupted. Default 60 000. */
  readonly stallMs?: number
}

export interface Downloaded {
  readonly path: string
  readonly bytes: number
  readonly sha256: string
  /** Whether a checksum was known to compare with. */
  readonly verified: boolean
  /** The file was there already, whole. */
  readonly skipped: boolean
}

/** What is known of the file whose beginning lies in .partial. */
interface Journal {
  readonly url: string
  readonly etag: string | undefined
  readonly size: number | undefined
  readonly sha256: string | undefined
}

/** A transfer that ended before the file was whole; it can go on. */
const INTERRUPTED = Symbol("interrupted")
/** Kept free on the disk. */
const RESERVE_BYTES = 64 * 1024 * 1024
const MAX_REDIRECTS = 5
const SHA256 = /^[0-9a-f]{64}$/

/**
 * Brings a file here: continues what an earlier call began, checks size and SHA-256 where they are known, and gives it
 * its name only when it is whole and on the disk.
 */
export async function download(request: DownloadRequest): Promise<Downloaded> {
  const present = await alreadyThere(request)
  if (present !== undefined) return present
  makeFolder(dirname(request.path))
  await using _ = await lock(request.path)
  return withRetries(request)
}

async function withRetries(request: DownloadRequest): Promise<Downloaded> {
  const { path, onNote, retries = 5 } = request
  for (let attempt = 0; ; attempt++) {
    request.signal?.throwIfAborted()
    const result = await attemptDownload(request)
    if (result !== INTERRUPTED) return result
    request.signal?.throwIfAborted()
    if (attempt === retries) {
      throw new KtError(`${request.url}: the transfer was interrupted ${retries + 1} times`, {
        hint: "the same command continues it where it stopped",
      })
    }
    onNote?.(`${basename(path)}: interrupted, continuing (${attempt + 1} of ${retries})`)
    await Bun.sleep(Math.min(100 * 2 ** attempt, 10_000))
  }
}

/** One process at a time writes a file; what a killed one left behind does not count. */
async function lock(path: string): Promise<AsyncDisposable> {
  const file = `${path}.lock`
  for (;;) {
    try {
      await writeFile(file, `${process.pid}`, { flag: "wx" })
      return { [Symbol.asyncDispose]: () => rm(file, { force: true }) }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST")
        throw new KtError(`${file}: cannot be written (${reasonOf(error)})`)
    }
    const holder = Number(await readFile(file, "utf8").catch(() => ""))
    if (holder !== process.pid && isAlive(holder)) {
      throw new KtError(`${path}: process ${holder} is fetching it already`, {
        hint: "wait until it is done, then the same command finds the file",
      })
    }
    await rm(file, { force: true })
  }
}

/** A whole file of the right size and checksum need not be brought again. */
async function alreadyThere(request: DownloadRequest): Promise<Downloaded | undefined> {
  const { path, size, sha256 } = request
  if (sha256 === undefined || !existsSync(path)) return undefined
  const bytes = (await stat(path)).size
  if (size !== undefined && bytes !== size) return undefined
  const hash = createHash("sha256")
  await hashFile(path, hash)
  const digest = hash.digest("hex")
  return digest === sha256
    ? { path, bytes, sha256: digest, verified: true, skipped: true }
    : undefined
}

async function attemptDownload(request: DownloadRequest): Promise<Downloaded | typeof INTERRUPTED> {
  const { path, onProgress } = request
  const partial = `${path}.partial`
  const journal = await readJournal(partial)
  const have = journal === undefined ? 0 : await sizeOf(partial)
  const response = await askFor(request, have, journal)
  if (response === INTERRUPTED) return INTERRUPTED
  const { reply, linked } = response
  const facts = { ...factsOf(request, reply, linked, have), url: request.url }
  const resumed = reply.status === 206 && sameFile(journal, facts)
  // the server has another file by now, or cannot continue one
  if (reply.status === 206 && !resumed) {
    await reply.body?.cancel()
    await discard(partial)
    return INTERRUPTED
  }
  const start = resumed ? have : 0
  checkSpace(path, facts.size, start)
  const hash = createHash("sha256")
  if (resumed) await hashFile(partial, hash)
  await writeFile(`${partial}.json`, JSON.stringify(facts))
  const file = await openPartial(partial, resumed)
  let done = start
  try {
    const whole = await transfer(reply, file, hash, request.stallMs ?? 60_000, (bytes) => {
      done += bytes
      onProgress?.(done, facts.size ?? done)
    })
    await file.sync()
    if (!whole || (facts.size !== undefined && done < facts.size)) return INTERRUPTED
  } finally {
    await file.close()
  }
  return finish(request, facts, partial, done, hash.digest("hex"))
}

async function finish(
  request: DownloadRequest,
  facts: Journal,
  partial: string,
  bytes: number,
  sha256: string,
): Promise<Downloaded> {
  const { path } = request
  if (facts.size !== undefined && bytes !== facts.size) {
    await discard(partial)
    throw new FormatError(path, `${bytes} bytes came, but ${facts.size} were announced`)
  }
  if (facts.sha256 !== undefined && facts.sha256 !== sha256) {
    await discard(partial)
    throw new FormatError(path, `the SHA-256 is ${sha256}, expected ${facts.sha256}`, {
      hint: "the download is damaged and was removed; try again",
    })
  }
  await rename(partial, path)
  await rm(`${partial}.json`, { force: true })
  await syncFolder(dirname(path))
  return { path, bytes, sha256, verified: facts.sha256 !== undefined, skipped: false }
}

interface Reply {
  readonly reply: Response
  /** Headers of the first answer, where the hub says what lies behind a redirect. */
  readonly linked: Headers
}

/** Asks for the file from byte `have` on. Redirects are followed by hand: the token is for the first host alone. */
async function askFor(
  request: DownloadRequest,
  have: number,
  journal: Journal | undefined,
): Promise<Reply | typeof INTERRUPTED> {
  let url = new URL(request.url)
  const first = url.origin
  let linked: Headers | undefined
  for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
    const headers: Record<string, string> = { "accept-encoding": "identity" }
    if (request.token !== undefined && url.origin === first)
      headers["authorization"] = `Bearer ${request.token}`
    if (have > 0) headers["range"] = `bytes=${have}-`
    let reply: Response
    try {
      const { signal } = request
      reply = await fetch(url, {
        headers,
        redirect: "manual",
        ...(signal === undefined ? {} : { signal }),
      })
    } catch (cause) {
      request.signal?.throwIfAborted()
      const code = (cause as { code?: string }).code ?? ""
      if (/RESET|CLOSED|TIMEOUT|SOCKET/i.test(code)) return INTERRUPTED
      throw new KtError(`${url.origin} cannot be reached: ${reasonOf(cause)}`, {
        hint: "check the connection, a proxy (HTTPS_PROXY), or HF_ENDPOINT",
        cause,
      })
    }
    linked ??= reply.headers
    const location = reply.headers.get("location")
    if (reply.status >= 300 && reply.status < 400 && location !== null) {
      await reply.body?.cancel()
      url = new URL(location, url)
      continue
    }
    if (reply.ok) return { reply, linked }
    await reply.body?.cancel()
    // the whole file is here, or the server has another one: begin anew
    if (reply.status === 416 && journal !== undefined) {
      await discard(`${request.path}.partial`)
      return INTERRUPTED
    }
    if (reply.status >= 500 || reply.status === 429) return INTERRUPTED
    throw refusal(reply.status, request.url, request.token !== undefined)
  }
  throw new KtError(`${request.url}: more than ${MAX_REDIRECTS} redirects`)
}

/** A refusal in words. */
export function refusal(status: number, url: string, hadToken: boolean): KtError {
  if (status === 401 || status === 403) {
    return new KtError(`${url}: access denied (status ${status})`, {
      hint: hadToken
        ? "the token in HF_TOKEN has no access; a gated model must be agreed to on its page first"
        : "a private or gated model needs a token: set HF_TOKEN",
    })
  }
  if (status === 404)
    return new KtError(`${url}: not found (status 404)`, { hint: "check the name" })
  return new KtError(`${url}: the server answered with status ${status}`)
}

function factsOf(
  request: DownloadRequest,
  reply: Response,
  linked: Headers,
  have: number,
): Omit<Journal, "url"> {
  const unquote = (text: string | null): string | undefined =>
    text?.replace(/^W\//, "").replace(/^"|"$/g, "")
  const etag = unquote(linked.get("x-linked-etag")) ?? unquote(reply.headers.get("etag"))
  const known = request.sha256 ?? (etag !== undefined && SHA256.test(etag) ? etag : undefined)
  return { etag, sha256: known, size: request.size ?? announcedSize(reply, linked, have) }
}

function announcedSize(reply: Response, linked: Headers, have: number): number | undefined {
  const range = /\/(\d+)$/.exec(reply.headers.get("content-range") ?? "")?.[1]
  if (range !== undefined) return Number(range)
  const text = linked.get("x-linked-size") ?? reply.headers.get("content-length")
  if (text === null || !/^\d+$/.test(text)) return undefined
  const isRest = reply.status === 206 && !linked.has("x-linked-size")
  return Number(text) + (isRest ? have : 0)
}

/** Only a file that is known to be the same may be continued. */
function sameFile(journal: Journal | undefined, facts: Journal): boolean {
  if (journal === undefined) return false
  if (journal.size !== facts.size) return false
  if (journal.sha256 !== undefined || facts.sha256 !== undefined)
    return journal.sha256 === facts.sha256
  return journal.etag !== undefined && journal.etag === facts.etag
}

/** False when the connection ended or went silent. */
async function transfer(
  reply: Response,
  file: FileHandle,
  hash: Hash,
  stallMs: number,
  onBytes: (count: number) => void,
): Promise<boolean> {
  const reader = reply.body?.getReader()
  if (reader === undefined) return true
  for (;;) {
    const part = await within(stallMs, reader.read()).catch(() => undefined)
    if (part === undefined) {
      await reader.cancel().catch(() => undefined)
      return false
    }
    if (part.done) return true
    try {
      await file.writeFile(part.value)
    } catch (cause) {
      await reader.cancel().catch(() => undefined)
      throw new KtError(`the download cannot be written: ${reasonOf(cause)}`, { cause })
    }
    hash.update(part.value)
    onBytes(part.value.length)
  }
}

async function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("silence")), ms)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

function checkSpace(path: string, size: number | undefined, have: number): void {
  if (size === undefined) return
  const { bavail, bsize } = statfsSync(dirname(path))
  const free = bavail * bsize
  const needed = size - have + RESERVE_BYTES
  if (needed <= free) return
  throw new KtError(
    `${dirname(path)}: ${formatBytes(size - have)} are still to come, but only ${formatBytes(free)} are free`,
    { hint: "free some space, or set KT_HOME to a folder on another disk" },
  )
}

async function readJournal(partial: string): Promise<Journal | undefined> {
  try {
    return JSON.parse(await readFile(`${partial}.json`, "utf8")) as Journal
  } catch {
    // no journal or half of one: what lies there is of unknown origin
    return undefined
  }
}

async function hashFile(path: string, hash: Hash): Promise<void> {
  for await (const chunk of Bun.file(path).stream()) hash.update(chunk)
}

async function sizeOf(path: string): Promise<number> {
  return existsSync(path) ? (await stat(path)).size : 0
}

async function discard(partial: string): Promise<void> {
  await rm(partial, { force: true })
  await rm(`${partial}.json`, { force: true })
}

async function openPartial(partial: string, append: boolean): Promise<FileHandle> {
  try {
    return await open(partial, append ? "a" : "w")
  } catch (cause) {
    throw new FormatError(partial, `cannot be written: ${reasonOf(cause)}`, { cause })
  }
}

export function makeFolder(folder: string): void {
  try {
    mkdirSync(folder, { recursive: true })
  } catch (cause) {
    throw new FormatError(folder, `cannot be made: ${reasonOf(cause)}`, {
      hint: "set KT_HOME to a folder that can be written",
      cause,
    })
  }
}

/** A name lasts only when its folder is on the disk; not every system can do it. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r").catch(() => undefined)
  await handle?.sync().catch(() => undefined)
  await handle?.close()
}
