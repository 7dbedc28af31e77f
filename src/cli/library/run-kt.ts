import { join } from "node:path"

import { KtError } from "../../errors.ts"

/**
 * Runs a command of ours in a process of its own, which ends with the signal: what computes for long must not hold the
 * server's thread.
 *
 * @returns What it printed
 * @throws KtError with the command's own sentence
 */
export async function runKt(args: readonly string[], signal?: AbortSignal): Promise<string> {
  const program = Bun.isStandaloneExecutable ? [] : [join(import.meta.dir, "..", "main.ts")]
  const child = Bun.spawn([process.execPath, ...program, ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    ...(signal === undefined ? {} : { signal }),
  })
  const [printed, text, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  if (status === 0) return printed
  const lines = text.trim().split("\n")
  const sentence = lines.find((line) => line.startsWith("kt: "))?.slice(4) ?? lines.at(-1) ?? ""
  throw new KtError(sentence === "" ? `kt ${args[0]} ended with status ${status}` : sentence)
}
