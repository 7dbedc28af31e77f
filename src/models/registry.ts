import { ConfigError } from "../errors.ts"
import { ENCODER_TYPES, type EncoderType, type ModelConfig } from "./config.ts"
import type { EncoderModel } from "./encoder.ts"
import type { LlamaForCausalLM } from "./llama.ts"

/** A whole model: ids in, logits out. All families derive from the one that reads like Llama. */
export type CausalLM = LlamaForCausalLM

export type CausalLMClass = new (config: ModelConfig) => CausalLM

interface ModelEntry {
  /** `architectures` of config.json. */
  readonly architecture: string
  /** Loaded when asked for, so that a start-up reads one model file. */
  readonly load: () => Promise<CausalLMClass>
}

/** By `model_type`. */
const MODELS: Readonly<Record<string, ModelEntry>> = {
  llama: {
    architecture: "LlamaForCausalLM",
    load: async () => (await import("./llama.ts")).LlamaForCausalLM,
  },
  mistral: {
    architecture: "MistralForCausalLM",
    load: async () => (await import("./mistral.ts")).MistralForCausalLM,
  },
  qwen2: {
    architecture: "Qwen2ForCausalLM",
    load: async () => (await import("./qwen2.ts")).Qwen2ForCausalLM,
  },
  qwen3: {
    architecture: "Qwen3ForCausalLM",
    load: async () => (await import("./qwen3.ts")).Qwen3ForCausalLM,
  },
  gemma3_text: {
    architecture: "Gemma3ForCausalLM",
    load: async () => (await import("./gemma3_text.ts")).Gemma3ForCausalLM,
  },
  phi3: {
    architecture: "Phi3ForCausalLM",
    load: async () => (await import("./phi3.ts")).Phi3ForCausalLM,
  },
  qwen3_moe: {
    architecture: "Qwen3MoeForCausalLM",
    load: async () => (await import("./qwen3_moe.ts")).Qwen3MoeForCausalLM,
  },
  smallthinker: {
    architecture: "SmallThinkerForCausalLM",
    load: async () => (await import("./smallthinker.ts")).SmallThinkerForCausalLM,
  },
  llama4_text: {
    architecture: "Llama4ForCausalLM",
    load: async () => (await import("./llama4_text.ts")).Llama4ForCausalLM,
  },
  gpt_oss: {
    architecture: "GptOssForCausalLM",
    load: async () => (await import("./gpt_oss.ts")).GptOssForCausalLM,
  },
  qwen3_next: {
    architecture: "Qwen3NextForCausalLM",
    load: async () => (await import("./qwen3_next.ts")).Qwen3NextForCausalLM,
  },
  deepseek_v2: {
    architecture: "DeepseekV2ForCausalLM",
    load: async () => (await import("./deepseek_v2.ts")).DeepseekV2ForCausalLM,
  },
  deepseek_v3: {
    architecture: "DeepseekV3ForCausalLM",
    load: async () => (await import("./deepseek_v3.ts")).DeepseekV3ForCausalLM,
  },
  kimi_k2: {
    architecture: "KimiK2ForCausalLM",
    load: async () => (await import("./kimi_k2.ts")).KimiK2ForCausalLM,
  },
  smollm3: {
    architecture: "SmolLM3ForCausalLM",
    load: async () => (await import("./smollm3.ts")).SmolLM3ForCausalLM,
  },
  internlm2: {
    architecture: "InternLM2ForCausalLM",
    load: async () => (await import("./internlm2.ts")).InternLM2ForCausalLM,
  },
  mixtral: {
    architecture: "MixtralForCausalLM",
    load: async () => (await import("./mixtral.ts")).MixtralForCausalLM,
  },
  qwen2_moe: {
    architecture: "Qwen2MoeForCausalLM",
    load: async () => (await import("./qwen2_moe.ts")).Qwen2MoeForCausalLM,
  },
  glm4_moe: {
    architecture: "Glm4MoeForCausalLM",
    load: async () => (await import("./glm4_moe.ts")).Glm4MoeForCausalLM,
  },
  minimax_m2: {
    architecture: "MiniMaxM2ForCausalLM",
    load: async () => (await import("./minimax_m2.ts")).MiniMaxM2ForCausalLM,
  },
  ernie4_5_moe: {
    architecture: "Ernie4_5_MoeForCausalLM",
    load: async () => (await import("./ernie4_5_moe.ts")).Ernie4_5_MoeForCausalLM,
  },
}

/** Models of states, without logits: by `model_type`. */
const ENCODERS: Readonly<
  Record<EncoderType, () => Promise<new (config: ModelConfig) => EncoderModel>>
> = {
  bert: async () => (await import("./bert.ts")).BertModel,
  nomic_bert: async () => (await import("./nomic_bert.ts")).NomicBertModel,
}

/** A model that generates, or one that only makes states. */
export type AnyModel = CausalLM | EncoderModel

/** @throws ConfigError where the model has no logits */
export function asCausalLM(model: AnyModel): CausalLM {
  if ("logits" in model) return model
  throw new ConfigError(`a ${model.config.model_type} model makes states of texts, no tokens`)
}

/** As createModel, for encoders too. */
export async function createAnyModel(config: ModelConfig): Promise<AnyModel> {
  const type = ENCODER_TYPES.find((known) => known === config.model_type)
  return type === undefined ? createModel(config) : new (await ENCODERS[type]())(config)
}

/** Every model type that generates. */
export function modelTypes(): readonly string[] {
  return Object.keys(MODELS)
}

/** The class of a model type or architecture; an unknown one is an error that lists the known ones. */
export async function modelClass(name: string): Promise<CausalLMClass> {
  const entry = Object.hasOwn(MODELS, name)
    ? MODELS[name]
    : Object.values(MODELS).find(({ architecture }) => architecture === name)
  if (entry === undefined) {
    throw new ConfigError(`unknown model type "${name}"; known are ${modelTypes().join(", ")}`)
  }
  return entry.load()
}

/** A model without weights: its constructors allocate nothing native. */
export async function createModel(config: ModelConfig): Promise<CausalLM> {
  return new (await modelClass(config.model_type))(config)
}
