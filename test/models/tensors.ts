import { readFileSync } from "node:fs"
import { join } from "node:path"

import { configFromJson } from "../../src/models/config-hf.ts"
import { createModel } from "../../src/models/registry.ts"
import { namedModules } from "../../src/nn/module.ts"
import { toFloat32 } from "../../src/weights/vector.ts"
import type { Matrix } from "../fixtures/quantized-folder.ts"
import { randomArray } from "../ops/harness.ts"
import { golden } from "../setup.ts"
import { openHfGolden } from "./goldens.ts"

/** Sizes that whole blocks of every type fit. */
export const WIDE: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  llama: { hidden_size: 128, intermediate_size: 256, head_dim: 32 },
  phi3: {
    hidden_size: 128,
    intermediate_size: 256,
    num_attention_heads: 8,
    num_key_value_heads: 4,
  },
  internlm2: { hidden_size: 128, intermediate_size: 256 },
  qwen3_moe: { hidden_size: 128, moe_intermediate_size: 128, head_dim: 32 },
  deepseek_v3: {
    hidden_size: 128,
    intermediate_size: 256,
    moe_intermediate_size: 128,
    kv_lora_rank: 128,
    q_lora_rank: 128,
    v_head_dim: 64,
    qk_nope_head_dim: 24,
  },
}

export type Json = Record<string, unknown>

export function configOf(name: string): Json {
  return JSON.parse(readFileSync(join(golden("hf", name), "config.json"), "utf8")) as Json
}

export function goldenTensors(name: string): Map<string, Matrix> {
  const { weights } = openHfGolden(name)
  const out = new Map<string, Matrix>()
  for (const tensor of weights.names()) {
    const { dtype, shape } = weights.get(tensor)!
    out.set(tensor, { shape, data: toFloat32(dtype, weights.bytes(tensor)) })
  }
  weights.close()
  return out
}

/** Random values for every parameter of a model, its experts one by one. */
export async function randomTensors(config: Json): Promise<Map<string, Matrix>> {
  const out = new Map<string, Matrix>()
  let seed = 1
  const add = (name: string, shape: readonly number[]): void => {
    const data = randomArray(
      shape.reduce((a, b) => a * b, 1),
      seed++,
      0.1,
    )
    if (/norm/.test(name)) for (let i = 0; i < data.length; i++) data[i]! += 1
    out.set(name, { shape, data })
  }
  const model = await createModel(configFromJson("config.json", config))
  for (const [path, module] of namedModules(model)) {
    for (const { name, kind, shape } of module.parameters()) {
      const full = path === "" ? name : `${path}.${name}`
      const dot = full.lastIndexOf(".")
      if (kind !== "experts") add(full, shape)
      else
        for (let e = 0; e < shape[0]!; e++)
          add(`${full.slice(0, dot)}.${e}${full.slice(dot)}.weight`, shape.slice(1))
    }
  }
  return out
}
