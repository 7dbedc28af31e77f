import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { ROOT } from "../setup.ts"

export interface Result {
  readonly status: number
  readonly out: string
  readonly err: string
}

export interface RunOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly stdin?: string
  readonly cwd?: string
}

/** Runs the command line in a process of its own, with an environment that holds nothing of the user's. */
export async function kt(args: readonly string[], options: RunOptions = {}): Promise<Result> {
  const child = startKt(args, options)
  if (options.stdin !== undefined) child.stdin.write(options.stdin)
  await child.stdin.end()
  const [out, err, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { status, out, err }
}

export function startKt(
  args: readonly string[],
  { env = {}, cwd = ROOT }: RunOptions = {},
): Bun.Subprocess<"pipe", "pipe", "pipe"> {
  const { PATH = "", HOME = "", KT_LIB_DIR, KT_SHARED } = process.env
  return Bun.spawn([process.execPath, join(ROOT, "src/cli/main.ts"), ...args], {
    cwd,
    env: {
      PATH,
      HOME,
      NO_COLOR: "1",
      KT_HOME: "/nonexistent/kt",
      ...(KT_LIB_DIR === undefined ? {} : { KT_LIB_DIR }),
      ...(KT_SHARED === undefined ? {} : { KT_SHARED }),
      ...env,
    },
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
  })
}

/** A folder that goes away with the tests. */
export function temporaryFolder(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), "kt-cli-"))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}
