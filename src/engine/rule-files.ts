import { existsSync } from "node:fs"

import { ConfigError } from "../errors.ts"
import { parseRules, readRules, type RuleSet } from "../inject/rules.ts"
import { ruleFiles } from "./rule-files.macro.ts" with { type: "macro" }

const DEFAULT = "default-cpu"
const BUILT_IN: Readonly<Record<string, string>> = ruleFiles()

/** Names of the rule files that come with the program. */
export const BUILT_IN_RULES: readonly string[] = Object.keys(BUILT_IN)

/**
 * The rules of a file, or of one that comes with the program by its name ("qwen3-moe" or
 * "rules/qwen3-moe.yaml"); a file of that path goes first. Undefined: everything on the CPU.
 * @throws ConfigError as `readRules` does
 */
export function loadRules(nameOrPath?: string): RuleSet {
  const name = (nameOrPath ?? DEFAULT).replace(/^rules[\\/]/, "").replace(/\.yaml$/, "")
  const text = Object.hasOwn(BUILT_IN, name) ? BUILT_IN[name] : undefined
  if (nameOrPath === undefined || !existsSync(nameOrPath)) {
    if (text !== undefined) return parseRules(text, `rules/${name}.yaml`)
    if (nameOrPath !== undefined && /^[\w-]+$/.test(nameOrPath)) {
      throw new ConfigError(`--rules ${nameOrPath}: no such file, and no rules of that name`, {
        hint: `a path, or one of ${BUILT_IN_RULES.join(", ")}`,
      })
    }
  }
  return readRules(nameOrPath ?? name)
}
