import { join } from "node:path"

import { configFromGguf } from "../../src/models/config-gguf.ts"
import { configFromFolder } from "../../src/models/config-hf.ts"
import type { ModelConfig } from "../../src/models/config.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { openSafetensors, type SafetensorsFile } from "../../src/weights/safetensors.ts"
import { type GoldenTensor, readGoldenTensors } from "../fixtures/golden-tensors.ts"
import { golden } from "../setup.ts"

export const HF_GOLDENS = [
  "llama",
  "llama_dynamic",
  "mistral",
  "qwen2",
  "qwen3",
  "gemma3_text",
  "phi3",
  "qwen3_moe",
  "smallthinker_sigmoid",
  "smallthinker_softmax",
  "llama4_text",
  "gpt_oss",
  "qwen3_next",
  "smollm3",
  "internlm2",
  "mixtral",
  "qwen2_moe",
  "glm4_moe",
  "minimax_m2",
  "deepseek_v2",
  "deepseek_v2_lite",
  "deepseek_v3",
  "kimi_k2",
  "moonlight",
] as const

/** Name of the file, and of its golden. */
export const GGUF_GOLDENS = [
  ["llama-rope-q4_k_m", "llama-rope-q4_k_m"],
  ["llama-tied-bf16", "llama-tied-bf16"],
  ["llama-f16", "llama-f16"],
  ["qwen2-q8_0", "qwen2-q8_0"],
  ["gemma3-q5_0", "gemma3-q5_0"],
  ["qwen3-iq4_xs", "qwen3-iq4_xs"],
  ["qwen3moe-mixed", "qwen3moe-mixed"],
  ["qwen3moe-split-q8_0-00001-of-00002", "qwen3moe-split-q8_0"],
  ["smallthinker-q4_0", "smallthinker-q4_0"],
  ["llama4-q8_0", "llama4-q8_0"],
  ["gpt-oss-mxfp4", "gpt-oss-mxfp4"],
  ["mixtral-q2_k", "mixtral-q2_k"],
  ["qwen2moe-q5_1", "qwen2moe-q5_1"],
  ["glm4moe-q4_0", "glm4moe-q4_0"],
  ["deepseek2-lite-q5_1", "deepseek2-lite-q5_1"],
  ["deepseek2-v3-q4_1", "deepseek2-v3-q4_1"],
  ["qwen3next-iq4_nl", "qwen3next-iq4_nl"],
] as const

/** A reference checkpoint with what a correct engine computes from it. */
export interface Golden {
  readonly name: string
  readonly config: ModelConfig
  readonly weights: GgufFile | SafetensorsFile
  readonly tensors: Map<string, GoldenTensor>
}

export function openHfGolden(name: string): Golden {
  const folder = golden("hf", name)
  return {
    name: `hf/${name}`,
    config: configFromFolder(folder),
    weights: openSafetensors(folder),
    tensors: readGoldenTensors(join(folder, "golden.safetensors")),
  }
}

export function openGgufGolden(file: string, reference: string): Golden {
  const weights = openGguf(golden("gguf", `${file}.gguf`))
  return {
    name: `gguf/${reference}`,
    config: configFromGguf(weights),
    weights,
    tensors: readGoldenTensors(golden("gguf", `${reference}.golden.safetensors`)),
  }
}

export function openAllGoldens(): Golden[] {
  return [
    ...HF_GOLDENS.map(openHfGolden),
    ...GGUF_GOLDENS.map(([file, reference]) => openGgufGolden(file, reference)),
  ]
}
