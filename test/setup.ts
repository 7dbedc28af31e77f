import { existsSync } from "node:fs"
import { join, resolve } from "node:path"

/** Project root. */
export const ROOT = resolve(import.meta.dir, "..")

/** Path of a file of the reference data, which lies beside the checkout (or where KT_SHARED says). */
export function golden(...parts: string[]): string {
  const path = join(process.env["KT_SHARED"] ?? join(ROOT, "..", "shared"), "golden", ...parts)
  if (!existsSync(path))
    throw new Error(
      `reference data missing: ${path} (set KT_SHARED to the folder that holds golden/)`,
    )
  return path
}
