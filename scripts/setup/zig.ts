import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs"
import { join } from "node:path"

import { KtError } from "../../src/errors.ts"
import { runPip } from "./pip.ts"
import { removeLeftovers, requireSpace, runCommand } from "./process.ts"
import type { Report, StepResult } from "./progress.ts"

export const ZIG_VERSION = "0.15.2"
/** The wheel and what it unpacks to. */
const ZIG_BYTES = 600e6

export interface ZigChoice {
  /** The compiler to use, if one of the pinned version is here. */
  readonly path: string | undefined
  /** Others that were found, as "path is version". */
  readonly others: readonly string[]
}

/** Folder of what the set-up installs for this checkout. */
export function toolchainFolder(root: string): string {
  return join(root, ".toolchain")
}

function installedZig(folder: string): string {
  return join(folder, "ziglang", process.platform === "win32" ? "zig.exe" : "zig")
}

/** Looks for the pinned Zig: KT_ZIG, PATH, the checkout's own. */
export async function findZig(root: string): Promise<ZigChoice> {
  const others: string[] = []
  const candidates = [
    process.env["KT_ZIG"],
    Bun.which("zig"),
    installedZig(join(toolchainFolder(root), "zig")),
  ]
  for (const path of candidates) {
    if (!path || (path.includes("/") && !existsSync(path))) continue
    const version = await zigVersion(path)
    if (version === ZIG_VERSION) return { path, others }
    others.push(`${path} is ${version ?? "no working Zig"}`)
  }
  return { path: undefined, others }
}

async function zigVersion(path: string): Promise<string | undefined> {
  const { code, output } = await runCommand([path, "version"])
  return code === 0 ? output.trim() : undefined
}

/** The pinned Zig's path, from what is here or through pip into .toolchain/zig. */
export async function ensureZig(
  root: string,
  report: Report,
): Promise<StepResult & { readonly path: string }> {
  const folder = toolchainFolder(root)
  removeLeftovers(folder, "zig-partial-")
  const found = await findZig(root)
  if (found.path !== undefined) return { skipped: true, detail: found.path, path: found.path }
  const note = found.others.length === 0 ? "" : ` (${found.others.join(", ")})`
  const otherwise = `or put zig ${ZIG_VERSION} on PATH, or name it with KT_ZIG${note}`
  requireSpace(folder, ZIG_BYTES, "free some space there (df -h), then run the same command again")
  const partial = join(folder, `zig-partial-${process.pid}`)
  mkdirSync(partial, { recursive: true })
  try {
    await runPip(
      {
        what: `Zig ${ZIG_VERSION}`,
        args: [
          "install",
          "--no-deps",
          "--target",
          join(partial, "site"),
          `ziglang==${ZIG_VERSION}`,
        ],
        folder: partial,
        otherwise,
      },
      report,
    )
    const version = await zigVersion(installedZig(join(partial, "site")))
    if (version !== ZIG_VERSION) {
      throw new KtError(
        `Zig ${ZIG_VERSION}: what pip installed does not run (zig version says ${version ?? "nothing"})`,
        { hint: otherwise },
      )
    }
    const target = join(folder, "zig")
    // another set-up of this checkout may have been faster, and be compiling with it by now
    if ((await zigVersion(installedZig(target))) !== ZIG_VERSION) {
      rmSync(target, { recursive: true, force: true })
      renameSync(join(partial, "site"), target)
    }
    return {
      skipped: false,
      detail: `installed into .toolchain/zig${note}`,
      path: installedZig(target),
    }
  } finally {
    rmSync(partial, { recursive: true, force: true })
  }
}
