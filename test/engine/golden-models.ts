import { engineConfig } from "../../src/config.ts"
import type { EngineConfig } from "../../src/config.ts"
import { Engine } from "../../src/engine/engine.ts"
import { openSafetensors } from "../../src/weights/safetensors.ts"
import type { GenerateParams } from "../../src/worker/protocol.ts"
import { golden } from "../setup.ts"
import { GREEDY } from "./fake-runner.ts"

/** A tiny checkpoint with reference outputs: prompts and their greedy continuations in f32. */
export interface GoldenModel {
  readonly name: string
  readonly path: string
  readonly prompts: readonly Int32Array[]
  readonly greedy: readonly Int32Array[]
}

const HF = [
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
  "qwen3_next",
]
const GGUF: readonly (readonly [name: string, file: string])[] = [
  ["llama-rope-q4_k_m", "llama-rope-q4_k_m.gguf"],
  ["llama-tied-bf16", "llama-tied-bf16.gguf"],
  ["llama-f16", "llama-f16.gguf"],
  ["qwen2-q8_0", "qwen2-q8_0.gguf"],
  ["gemma3-q5_0", "gemma3-q5_0.gguf"],
  ["qwen3-iq4_xs", "qwen3-iq4_xs.gguf"],
  ["qwen3moe-mixed", "qwen3moe-mixed.gguf"],
  ["qwen3moe-split-q8_0", "qwen3moe-split-q8_0-00001-of-00002.gguf"],
  ["smallthinker-q4_0", "smallthinker-q4_0.gguf"],
  ["llama4-q8_0", "llama4-q8_0.gguf"],
  ["gpt-oss-mxfp4", "gpt-oss-mxfp4.gguf"],
  ["mixtral-q2_k", "mixtral-q2_k.gguf"],
  ["qwen2moe-q5_1", "qwen2moe-q5_1.gguf"],
  ["glm4moe-q4_0", "glm4moe-q4_0.gguf"],
  ["deepseek2-lite-q5_1", "deepseek2-lite-q5_1.gguf"],
  ["deepseek2-v3-q4_1", "deepseek2-v3-q4_1.gguf"],
  ["qwen3next-iq4_nl", "qwen3next-iq4_nl.gguf"],
]

export function goldenModels(): GoldenModel[] {
  const hf = HF.map((name) => {
    const outputs = golden("hf", name, "golden.safetensors")
    return { name: `hf/${name}`, path: golden("hf", name), ...references(outputs) }
  })
  const gguf = GGUF.map(([name, file]) => {
    const outputs = golden("gguf", `${name}.golden.safetensors`)
    return { name: `gguf/${name}`, path: golden("gguf", file), ...references(outputs) }
  })
  return [...hf, ...gguf]
}

function references(file: string): Pick<GoldenModel, "prompts" | "greedy"> {
  const source = openSafetensors(file)
  const rows = (name: string): Int32Array[] => {
    const shape = source.get(name)?.shape ?? []
    const bytes = source.bytes(name).slice()
    const length = shape.at(-1) as number
    const count = shape.length === 1 ? 1 : (shape[0] as number)
    return Array.from(
      { length: count },
      (_, i) => new Int32Array(bytes.buffer, i * length * 4, length),
    )
  }
  try {
    return { prompts: rows("input_ids"), greedy: rows("greedy_ids") }
  } finally {
    source.close()
  }
}

export function createEngine(
  model: GoldenModel,
  options: Partial<EngineConfig> = {},
): Promise<Engine> {
  const { path } = model
  return Engine.create(
    engineConfig({ model: path, threads: 1, pageSize: 8, precision: "f32", ...options }),
  )
}

/** All prompts at once; the tokens of each. */
export function generateAll(
  engine: Engine,
  prompts: readonly Int32Array[],
  params: Partial<GenerateParams> = {},
): number[][] {
  const out: number[][] = prompts.map(() => [])
  for (const [id, ids] of prompts.entries())
    engine.add(id, ids, { ...GREEDY, maxTokens: 8, ...params })
  while (engine.hasWork) {
    for (const event of engine.step()) {
      if (event.finish === "error") throw new Error(event.error)
      out[event.id]?.push(event.token)
    }
  }
  return out
}
