import { existsSync, statSync } from "node:fs"
import { join } from "node:path"

import { KtError } from "../../src/errors.ts"
import { lastLines, runCommand } from "./process.ts"
import type { Report, StepResult } from "./progress.ts"
import { hashInputs, isStamped, writeStamp } from "./stamp.ts"
import { ZIG_VERSION } from "./zig.ts"

/** Where `zig build` puts the CPU library of this machine. */
export function builtLibrary(root: string): string {
  if (process.platform === "win32") return join(root, "zig-out", "bin", "kt_cpu.dll")
  return join(
    root,
    "zig-out",
    "lib",
    process.platform === "darwin" ? "libkt_cpu.dylib" : "libkt_cpu.so",
  )
}

/** Whether the library in zig-out was built from the sources as they are. */
export function kernelsAreBuilt(root: string): boolean {
  return existsSync(builtLibrary(root)) && isStamped(root, "kernels", stampValue(root))
}

/** Builds the CPU library unless it is there, built from these very sources. */
export async function ensureKernels(
  root: string,
  zig: () => Promise<string>,
  report: Report,
): Promise<StepResult> {
  const library = builtLibrary(root)
  if (kernelsAreBuilt(root)) return { skipped: true, detail: library }
  const path = await zig()
  report("zig build")
  const { code, output } = await runCommand([path, "build"], { cwd: root })
  if (code !== 0) {
    const space = /NoSpaceLeft|No space left/i.test(output)
    throw new KtError(
      space
        ? `zig build: no space left on the disk of ${root}`
        : `zig build failed:\n${lastLines(output, 30)}`,
      {
        hint: space
          ? "free some (df -h), then run the same command again"
          : `see all of it: ${path} build`,
      },
    )
  }
  if (!existsSync(library)) throw new KtError(`zig build ended well, but ${library} is not there`)
  writeStamp(root, "kernels", stampValue(root))
  return { skipped: false, detail: library }
}

function stampValue(root: string): string {
  const sources = hashInputs(
    root,
    [join(root, "build.zig"), join(root, "kernels")],
    [ZIG_VERSION, process.platform, process.arch],
  )
  const { size, mtimeMs } = statSync(builtLibrary(root))
  return `${sources} ${size} ${mtimeMs}`
}
