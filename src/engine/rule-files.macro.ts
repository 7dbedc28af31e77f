import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"

/** Every file of rules/ by its name without ".yaml", for the bundler to read (`with { type: "macro" }`). */
export function ruleFiles(): Record<string, string> {
  const folder = join(import.meta.dir, "..", "..", "rules")
  const names = readdirSync(folder).filter((name) => name.endsWith(".yaml"))
  return Object.fromEntries(
    names.toSorted().map((name) => [name.slice(0, -5), readFileSync(join(folder, name), "utf8")]),
  )
}
