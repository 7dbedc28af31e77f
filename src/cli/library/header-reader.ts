import { KtError } from "../../errors.ts"
import type { HeaderRead } from "./metadata-worker.ts"
import { keep, known } from "./metadata.ts"

/** Who reads headers ends when there has been nothing to read for so long. */
const IDLE_MS = 10_000

let worker: Worker | undefined
let idle: ReturnType<typeof setTimeout> | undefined
const waiting = new Map<string, { readonly done: Promise<void>; readonly resolve: () => void }>()

/**
 * Has the headers of these files read by another thread, as far as they are not known: the first look at a folder of large
 * models takes seconds, in which requests go on. Files that cannot be read are left to whoever needs them.
 */
export async function learnHeaders(paths: readonly string[]): Promise<void> {
  const missing = paths.filter((path) => !isKnown(path))
  await Promise.all(missing.map((path) => learn(path)))
}

function isKnown(path: string): boolean {
  try {
    return known(path) !== undefined
  } catch {
    return true
  }
}

function learn(path: string): Promise<void> {
  const before = waiting.get(path)
  if (before !== undefined) return before.done
  const { promise, resolve } = Promise.withResolvers<void>()
  waiting.set(path, { done: promise, resolve })
  clearTimeout(idle)
  worker ??= start()
  worker.postMessage({ path })
  return promise
}

function start(): Worker {
  const started = new Worker(workerEntry().href, { name: "kt-headers" })
  started.addEventListener("message", (event: MessageEvent) => settle(event.data as HeaderRead))
  // what it did not read is read where it is needed
  started.addEventListener("error", (event) => {
    event.preventDefault()
    end()
  })
  return started
}

function settle(read: HeaderRead): void {
  const { path, stamp } = read
  if ("metadata" in read) keep(path, { stamp: read.stamp, metadata: read.metadata })
  else if (stamp !== undefined && "message" in read) {
    const options = read.hint === undefined ? {} : { hint: read.hint }
    keep(path, { stamp, error: new KtError(read.message, options) })
  }
  waiting.get(path)?.resolve()
  waiting.delete(path)
  if (waiting.size > 0) return
  idle = setTimeout(end, IDLE_MS)
  idle.unref()
}

function end(): void {
  worker?.terminate()
  worker = undefined
  for (const { resolve } of waiting.values()) resolve()
  waiting.clear()
}

/** In the binary the bundle's root stands for src/, and this code lies at the root whatever file it came from. */
function workerEntry(): URL {
  return Bun.isStandaloneExecutable
    ? new URL("./cli/library/metadata-worker.ts", import.meta.url)
    : new URL("./metadata-worker.ts", import.meta.url)
}
