import { dirname, join } from "node:path"

import { FormatError } from "../errors.ts"
import { hasTokenizer } from "../tokenizer/from-pretrained.ts"
import { Tokenizer } from "../tokenizer/tokenizer.ts"
import { openGguf } from "../weights/gguf.ts"
import { locateWeights } from "../weights/open.ts"

/**
 * The tokenizer of a model: of the folder given for it, else of the model's own folder or GGUF metadata. A GGUF that
 * holds only a vocabulary will do.
 */
export async function loadTokenizer(model: string, modelPath?: string): Promise<Tokenizer> {
  if (modelPath !== undefined && hasTokenizer(modelPath)) return Tokenizer.fromPretrained(modelPath)
  if (hasTokenizer(model)) return Tokenizer.fromPretrained(model)
  const where = locateWeights(model)
  if (where.kind === "gguf") {
    const gguf = openGguf(where.path)
    try {
      return Tokenizer.fromGguf(gguf.metadata, where.path)
    } finally {
      gguf.close()
    }
  }
  const folder = where.path.endsWith(".safetensors") ? dirname(where.path) : where.path
  if (!hasTokenizer(folder))
    throw new FormatError(
      join(folder, "tokenizer.json"),
      "no such file: the model has no tokenizer",
      {
        hint: "--model-path names a folder that has one",
      },
    )
  return Tokenizer.fromPretrained(folder)
}
