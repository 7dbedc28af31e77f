import { existsSync, statSync } from "node:fs"
import { dirname, join } from "node:path"

import { FormatError } from "../errors.ts"
import { configFromGguf } from "../models/config-gguf.ts"
import { configFromFolder } from "../models/config-hf.ts"
import type { ModelConfig } from "../models/config.ts"
import { hasTokenizer } from "../tokenizer/from-pretrained.ts"
import { Tokenizer } from "../tokenizer/tokenizer.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { openWeights } from "../weights/open.ts"
import { PretrainedModel } from "./model.ts"

/** Configurations by Transformers' name for where they come from. */
export const AutoConfig = {
  /**
   * Of a folder with config.json, or of a GGUF file. @throws FormatError naming file, key and value
   */
  fromPretrained(path: string): Promise<ModelConfig> {
    return fromFolderOrGguf(path, hasConfig, configFromFolder, configFromGguf)
  },
}

export const AutoTokenizer = {
  /** Of a folder with tokenizer.json (or tokenizer.model, tiktoken.model, vocab.json), or of a GGUF file, which holds its tokenizer. */
  fromPretrained(path: string): Promise<Tokenizer> {
    return fromFolderOrGguf(
      path,
      hasTokenizer,
      (folder) => Tokenizer.fromPretrained(folder),
      (gguf) => Tokenizer.fromGguf(gguf.metadata, gguf.path),
    )
  },
}

export const AutoModelForCausalLM = {
  /** A model without weights; `optimizeAndLoadGguf` gives it some. */
  fromConfig(config: ModelConfig): Promise<PretrainedModel> {
    return PretrainedModel.fromConfig(config)
  },
}

function hasConfig(folder: string): boolean {
  return existsSync(join(folder, "config.json"))
}

/** Reads from a folder that `isSource`, or from the folder that a file lies in, else from a GGUF file. */
async function fromFolderOrGguf<T>(
  path: string,
  isSource: (folder: string) => boolean,
  fromFolder: (folder: string) => T | Promise<T>,
  fromGguf: (gguf: GgufFile) => T | Promise<T>,
): Promise<T> {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) throw new FormatError(path, "no such file or folder")
  if (stat.isDirectory() && isSource(path)) return fromFolder(path)
  const weights = openWeights(path)
  try {
    if (weights.kind === "gguf") return await fromGguf(weights)
  } finally {
    weights.close()
  }
  return fromFolder(stat.isDirectory() ? path : dirname(path))
}
