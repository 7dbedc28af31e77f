import { readdirSync, rmSync, statfsSync, statSync } from "node:fs"
import { dirname, join } from "node:path"

import { isAlive } from "../../src/cli/is-alive.ts"
import { KtError } from "../../src/errors.ts"

export interface CommandResult {
  readonly code: number
  /** Both streams in the order of arrival, cut at the front. */
  readonly output: string
}

export interface CommandOptions {
  readonly cwd?: string
  readonly env?: Readonly<Record<string, string | undefined>>
  /** Called about every half second while the command runs. */
  readonly onTick?: () => void
  /** Called with each piece of output. */
  readonly onOutput?: (text: string) => void
  /** Kills the command after this time. */
  readonly timeoutMs?: number
}

/** Enough for every error message, and no log that a runaway command could grow without end. */
const MAX_OUTPUT_CHARS = 1 << 22
const TICK_MS = 500

const running = new Set<Bun.Subprocess>()
let watching = false

/** A set-up that is stopped stops what it started. */
function watchSignals(): void {
  if (watching) return
  watching = true
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const) {
    process.on(signal, () => {
      for (const child of running) child.kill(signal)
      process.exit(code)
    })
  }
}

/** Runs a command to its end and keeps its output; a command that does not exist gives code 127. */
export async function runCommand(
  command: readonly string[],
  options: CommandOptions = {},
): Promise<CommandResult> {
  watchSignals()
  let output = ""
  const keep = (text: string): void => {
    output = (output + text).slice(-MAX_OUTPUT_CHARS)
    options.onOutput?.(text)
  }
  let child: Bun.Subprocess<"ignore", "pipe", "pipe">
  try {
    child = Bun.spawn([...command], {
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      env: { ...process.env, ...options.env },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    })
  } catch (error) {
    return { code: 127, output: error instanceof Error ? error.message : String(error) }
  }
  running.add(child)
  const timer = setInterval(() => options.onTick?.(), TICK_MS)
  const deadline = options.timeoutMs
  const killer =
    deadline === undefined
      ? undefined
      : setTimeout(() => {
          keep(`\nkilled after ${deadline / 1000} s\n`)
          child.kill("SIGKILL")
        }, deadline)
  const drain = async (stream: ReadableStream<Uint8Array>): Promise<void> => {
    const decoder = new TextDecoder()
    for await (const chunk of stream) keep(decoder.decode(chunk, { stream: true }))
  }
  try {
    const [code] = await Promise.all([child.exited, drain(child.stdout), drain(child.stderr)])
    return { code: code ?? 1, output }
  } finally {
    clearInterval(timer)
    clearTimeout(killer)
    running.delete(child)
  }
}

/** The last lines of a command's output, for an error message. */
export function lastLines(output: string, count: number): string {
  return output.trimEnd().split("\n").slice(-count).join("\n")
}

/** Bytes of all files below a folder; what vanishes meanwhile counts nothing. */
export function folderBytes(folder: string): number {
  let total = 0
  try {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name)
      if (entry.isDirectory()) total += folderBytes(path)
      else total += statSync(path, { throwIfNoEntry: false })?.size ?? 0
    }
  } catch {
    // the folder is being moved or removed by the command that fills it
  }
  return total
}

/** Free bytes for this user where `path` is or will be; undefined when the system does not say. */
export function freeBytes(path: string): number | undefined {
  for (let at = path; ; at = dirname(at)) {
    try {
      const { bavail, bsize } = statfsSync(at)
      return bavail * bsize
    } catch {
      if (dirname(at) === at) return undefined
    }
  }
}

/** @throws KtError when fewer than `bytes` are free where `path` is. */
export function requireSpace(
  path: string,
  bytes: number,
  fix: string,
  free: number | undefined = freeBytes(path),
): void {
  if (free === undefined || free >= bytes) return
  throw new KtError(
    `${path}: ${(free / 1e6).toFixed(0)} MB free, ${(bytes / 1e6).toFixed(0)} MB needed`,
    { hint: fix },
  )
}

/**
 * Removes half-made folders `PREFIX<pid>` of runs that were killed; those of a process that still runs stay.
 */
export function removeLeftovers(folder: string, prefix: string): void {
  let names: string[] = []
  try {
    names = readdirSync(folder)
  } catch {
    return
  }
  for (const name of names) {
    const pid = name.startsWith(prefix) ? Number(name.slice(prefix.length)) : Number.NaN
    if (!Number.isInteger(pid) || (pid !== process.pid && isAlive(pid))) continue
    rmSync(join(folder, name), { recursive: true, force: true })
  }
}
