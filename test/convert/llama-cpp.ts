import { existsSync } from "node:fs"
import { join } from "node:path"

/** Folder of llama.cpp's programs, which some tests compare with; undefined where none is named. */
export const LLAMA_CPP: string | undefined = process.env["KT_LLAMA_CPP"]

/** Why a test that needs a program of llama.cpp cannot run, or undefined. */
export function missingProgram(name: string): string | undefined {
  if (LLAMA_CPP === undefined) return "KT_LLAMA_CPP names no folder of llama.cpp's programs"
  return existsSync(join(LLAMA_CPP, name)) ? undefined : `${join(LLAMA_CPP, name)} is missing`
}

/** Both outputs of a program of llama.cpp, and its status. */
export function llamaCpp(name: string, args: readonly string[]): { status: number; text: string } {
  const child = Bun.spawnSync([join(LLAMA_CPP ?? "", name), ...args])
  return { status: child.exitCode, text: child.stdout.toString() + child.stderr.toString() }
}
