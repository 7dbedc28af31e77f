import { existsSync, lstatSync, readFileSync } from "node:fs"
import { join } from "node:path"

import { KtError } from "../../src/errors.ts"
import { lastLines, runCommand } from "./process.ts"
import type { Report, StepResult } from "./progress.ts"
import { hashInputs, isStamped, writeStamp } from "./stamp.ts"

/** Installs the packages of bun.lock, patches applied, unless these very packages are there. */
export async function ensureDependencies(root: string, report: Report): Promise<StepResult> {
  const modules = join(root, "node_modules")
  if (lstatSync(modules, { throwIfNoEntry: false })?.isSymbolicLink()) {
    return { skipped: true, detail: "node_modules is a link, left as it is" }
  }
  const value = hashInputs(
    root,
    [join(root, "package.json"), join(root, "bun.lock"), join(root, "patches")],
    [Bun.version, process.platform, process.arch],
  )
  if (isStamped(root, "dependencies", value) && missingPackage(root) === undefined) {
    return { skipped: true, detail: "as in bun.lock" }
  }
  report("bun install")
  const { code, output } = await runCommand([process.execPath, "install", "--frozen-lockfile"], {
    cwd: root,
  })
  if (code !== 0) throw installError(output)
  const missing = missingPackage(root)
  if (missing !== undefined)
    throw new KtError(`bun install ended well, but ${missing} is not in node_modules`, {
      hint: "rm -r node_modules, then run the same command again",
    })
  writeStamp(root, "dependencies", value)
  return { skipped: false, detail: "installed from bun.lock" }
}

function missingPackage(root: string): string | undefined {
  const { dependencies = {}, devDependencies = {} } = JSON.parse(
    readFileSync(join(root, "package.json"), "utf8"),
  ) as Record<string, Record<string, string>>
  return [...Object.keys(dependencies), ...Object.keys(devDependencies)].find(
    (name) => !existsSync(join(root, "node_modules", name, "package.json")),
  )
}

/** Reads the package manager's output for the reason. */
export function installError(output: string): KtError {
  if (/ENOSPC|No space left/i.test(output)) {
    return new KtError("dependencies: no space left on this disk", {
      hint: "free some (df -h), then run the same command again",
    })
  }
  if (
    /ConnectionRefused|ECONNREFUSED|ENOTFOUND|FailedToOpenSocket|DNS|timed? ?out|ConnectionClosed/i.test(
      output,
    )
  ) {
    return new KtError("dependencies: the package registry cannot be reached", {
      hint: "check the network, or set HTTPS_PROXY or NPM_CONFIG_REGISTRY, then run the same command again",
    })
  }
  if (/lockfile had changes|frozen/i.test(output)) {
    return new KtError("dependencies: package.json and bun.lock do not agree", {
      hint: "git checkout package.json bun.lock, or bun install to update the lock",
    })
  }
  return new KtError(`dependencies: bun install failed:\n${lastLines(output, 12)}`, {
    hint: "see all of it: bun install --frozen-lockfile",
  })
}
