import { existsSync } from "node:fs"
import { join } from "node:path"

/** Its `models` folder holds vocabularies with texts and their ids, and published chat templates. */
const named = process.env["KT_LLAMA_CPP"]

/** `models` of the llama.cpp checkout that KT_LLAMA_CPP names, itself or by the programs built in it. */
export const llamaCppModels: string | undefined =
  named === undefined
    ? undefined
    : [named, join(named, "..", "..")]
        .map((folder) => join(folder, "models"))
        .find((folder) => existsSync(join(folder, "templates")))

/** Why there is none. */
export const noLlamaCpp: string | undefined =
  llamaCppModels !== undefined
    ? undefined
    : named === undefined
      ? "KT_LLAMA_CPP, a checkout of llama.cpp, is not set"
      : `${named} is in no checkout of llama.cpp`
