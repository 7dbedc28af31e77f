import { existsSync } from "node:fs"
import { resolve } from "node:path"
import { pathToFileURL } from "node:url"

import { plugin } from "bun"
import * as zod from "zod"

import { ConfigError } from "../errors.ts"
import * as authoring from "./authoring.ts"
import "./builtin.ts"

let provided = false

/**
 * Gives files that lie anywhere the modules that operators are written with. Without this they
 * would find other copies of them, or, beside the compiled binary, none.
 */
function provideModules(): void {
  if (provided) return
  provided = true
  plugin({
    name: "ktransformers",
    setup(build) {
      build.module("ktransformers", () => ({ exports: { ...authoring }, loader: "object" }))
      build.module("zod", () => ({ exports: { ...zod }, loader: "object" }))
    },
  })
}

/**
 * Runs TypeScript files of the user's own, which call `registerOperator`.
 * @throws ConfigError naming the file when it is missing or fails
 */
export async function loadUserOperators(files: readonly string[]): Promise<void> {
  if (files.length > 0) provideModules()
  for (const file of files) {
    if (!existsSync(file)) throw new ConfigError(`--operators ${file}: no such file`)
    try {
      await import(pathToFileURL(resolve(file)).href)
    } catch (cause) {
      const detail = cause instanceof Error ? cause.message : String(cause)
      throw new ConfigError(`--operators ${file}: ${detail}`, { cause })
    }
  }
}
