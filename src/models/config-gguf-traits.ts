import type { Activation, ModelType } from "./config.ts"

/** What an architecture is beyond its keys. */
export interface Traits {
  readonly modelType: ModelType
  /** The converter permutes q and k rows so that the rope turns adjacent pairs. */
  readonly interleaved?: true
  /** "file": where the file has them. */
  readonly qkNorm?: true | "file"
  readonly gemma?: true
  readonly moe?: true
  /** What the architecture is where the file has experts. */
  readonly withExperts?: Traits
  /** The experts' weights are not normalised where the file does not say. */
  readonly rawWeights?: true
  /** An expert that every token sees, times the sigmoid of its gate. */
  readonly gatedExpert?: true
  /** The router takes sigmoids where the file does not say. */
  readonly sigmoid?: true
  /** Latent attention, and DeepSeek's routers. */
  readonly mla?: true
  readonly act?: Activation
  /** YaRN's bounds are not rounded. */
  readonly exactYarn?: true
  /** Which layers slide where the file has a window and no pattern; default: all. */
  readonly slides?: (layer: number) => boolean
  /** Layers without rope; SmallThinker's only where the file has a window, Llama 4's unless it says 0. */
  readonly nope?: (layer: number) => boolean
  /** Layers are chunked and not sliding, by sizes that no file holds. */
  readonly chunked?: {
    readonly size: number
    readonly temperature: { scale: number; floor: number }
  }
  /** Most layers are gated delta nets. */
  readonly deltaNet?: true
}

/** Converters write Mixtral as a llama with experts. */
const MIXTRAL: Traits = { modelType: "mixtral", interleaved: true, moe: true }

/** Keyed by `general.architecture`. Mistral models are written as llama. */
export const TRAITS: Readonly<Record<string, Traits>> = {
  llama: { modelType: "llama", interleaved: true, withExperts: MIXTRAL },
  qwen2: { modelType: "qwen2" },
  qwen3: { modelType: "qwen3", qkNorm: true },
  smollm3: { modelType: "smollm3", interleaved: true, nope: (layer) => layer % 4 === 3 },
  internlm2: { modelType: "internlm2", interleaved: true },
  gemma3: { modelType: "gemma3_text", qkNorm: true, gemma: true },
  phi3: { modelType: "phi3" },
  qwen3moe: { modelType: "qwen3_moe", qkNorm: true, moe: true },
  smallthinker: {
    modelType: "smallthinker",
    moe: true,
    act: "relu",
    slides: (layer) => layer % 4 !== 0,
    nope: (layer) => layer % 4 === 0,
  },
  llama4: {
    modelType: "llama4_text",
    interleaved: true,
    moe: true,
    rawWeights: true,
    nope: (layer) => layer % 4 === 3,
    chunked: { size: 8192, temperature: { scale: 0.1, floor: 8192 } },
  },
  "gpt-oss": {
    modelType: "gpt_oss",
    moe: true,
    act: "swiglu_oai",
    exactYarn: true,
    slides: (layer) => layer % 2 === 0,
  },
  qwen2moe: { modelType: "qwen2_moe", moe: true, rawWeights: true, gatedExpert: true },
  glm4moe: { modelType: "glm4_moe", qkNorm: "file", moe: true, sigmoid: true },
  "ernie4_5-moe": { modelType: "ernie4_5_moe", interleaved: true, moe: true },
  "minimax-m2": { modelType: "minimax_m2", qkNorm: "file", moe: true, sigmoid: true },
  qwen3next: {
    modelType: "qwen3_next",
    qkNorm: true,
    moe: true,
    gatedExpert: true,
    deltaNet: true,
  },
  // a sigmoid router makes it deepseek_v3, which Kimi K2 and Moonlight are as well
  deepseek2: {
    modelType: "deepseek_v2",
    interleaved: true,
    moe: true,
    rawWeights: true,
    mla: true,
  },
}
