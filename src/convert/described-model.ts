import { join } from "node:path"

import { configFromFolder } from "../models/config-hf.ts"
import { ggufConfigFields, ggufConfigTensors, ggufFamily } from "../models/config-to-gguf.ts"
import type { ModelConfig } from "../models/config.ts"
import { createModel } from "../models/registry.ts"
import { namedModules } from "../nn/module.ts"
import { byteLength } from "../tensor/tensor.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { parameterPath } from "../weights/load.ts"
import { ggufName } from "../weights/names.ts"
import type { WeightEntry } from "../weights/source.ts"
import { describeGguf } from "./convert-folder.ts"
import type { FileType } from "./file-types.ts"
import { planQuantization } from "./quantize-plan.ts"

export interface NamedShape {
  readonly name: string
  readonly shape: readonly number[]
}

/** Names and shapes of the tensors that a GGUF of this model has. */
export async function ggufTensors(
  config: ModelConfig,
  architecture: string,
): Promise<NamedShape[]> {
  const found = new Map<string, NamedShape>()
  const add = (path: string, shape: readonly number[]): void => {
    const name = ggufName(architecture, path)
    if (name === undefined) throw new Error(`${architecture} has no name for ${path}`)
    if (!found.has(name)) found.set(name, { name, shape })
  }
  const { mla, num_attention_heads: heads } = config
  for (const [modulePath, module] of namedModules(await createModel(config))) {
    for (const { name, shape, fallback } of module.parameters()) {
      const path = parameterPath(modulePath, name)
      if (fallback !== undefined && config.tie_word_embeddings) continue
      if (mla !== undefined && path.endsWith(".kv_b_proj.weight")) {
        add(path.replace("kv_b_proj", "k_b_proj"), [heads, mla.kv_lora_rank, mla.qk_nope_head_dim])
        add(path.replace("kv_b_proj", "v_b_proj"), [heads, mla.v_head_dim, mla.kv_lora_rank])
      } else add(path, shape)
    }
  }
  return [...found.values()]
}

/**
 * The GGUF that a model would be as a file type, by its folder's config.json alone: names, shapes and types, no values.
 *
 * @throws FormatError where there is no config.json, or a value in it is not understood
 */
export async function describedModel(folder: string, type: FileType): Promise<GgufFile> {
  const config = configFromFolder(folder)
  const file = join(folder, "config.json")
  const { architecture } = ggufFamily(file, config.model_type)
  const fields = ggufConfigFields(file, config)
  const tensors = await ggufTensors(config, architecture)
  const shapes = describeGguf(folder, fields, tensors, ggufConfigTensors(config))
  const planned = planQuantization(shapes, { fileType: type, hasImatrix: false })
  const entries = new Map<string, WeightEntry>(
    planned.map(({ entry, dtype }) => [
      entry.name,
      { ...entry, dtype, byteLength: byteLength(dtype, entry.shape) },
    ]),
  )
  return {
    ...shapes,
    totalBytes: [...entries.values()].reduce((sum, entry) => sum + entry.byteLength, 0),
    get: (name) => entries.get(name),
  }
}
