import { existsSync, readFileSync, statSync } from "node:fs"
import { join } from "node:path"

import { z } from "zod"

import { FormatError } from "../errors.ts"
import { ROPE_TYPES, type RopeConfig, type RopeType } from "../nn/rope.ts"
import {
  type Activation,
  ACTIVATIONS,
  checkedConfig,
  defaultHeadDim,
  LAYER_TYPES,
  type LayerType,
  type LinearAttentionConfig,
  type MlaConfig,
  MODEL_TYPES,
  type ModelConfig,
  type ModelType,
  patternLayerTypes,
  TOPK_METHODS,
} from "./config.ts"
import { latentScale } from "./latent-scale.ts"
import { ropeConfig } from "./rope-config.ts"

/**
 * A config.json is some kilobytes; longrope factors and label maps make the largest reach a few
 * hundred.
 */
const MAX_CONFIG_BYTES = 16 * 1024 * 1024

// Bounds well above every published model keep products of two sizes exact and allocations sane.
const size = z.int().min(1).max(16_777_216)
const context = z.int().min(1).max(1_073_741_824)
const layerCount = z.int().min(1).max(4096)
const positive = z.number().positive()
const tokenId = z.int().nonnegative()
/** A flag for each layer, written 0 or 1. */
const layout = z.array(z.union([z.literal(0), z.literal(1), z.boolean()])).max(4096)
const factors = z.array(positive).max(65_536)

const Rope = z.object({
  rope_type: z.string().nullish(),
  type: z.string().nullish(),
  rope_theta: positive.nullish(),
  factor: positive.nullish(),
  original_max_position_embeddings: context.nullish(),
  attention_factor: positive.nullish(),
  beta_fast: positive.nullish(),
  beta_slow: positive.nullish(),
  mscale: z.number().nonnegative().nullish(),
  mscale_all_dim: z.number().nonnegative().nullish(),
  truncate: z.boolean().nullish(),
  low_freq_factor: positive.nullish(),
  high_freq_factor: positive.nullish(),
  short_factor: factors.nullish(),
  long_factor: factors.nullish(),
  partial_rotary_factor: positive.max(1).nullish(),
})
type Rope = z.infer<typeof Rope>

/** transformers 5 writes one set of parameters, or one per layer type. */
const RopeParameters = Rope.extend({
  full_attention: Rope.nullish(),
  sliding_attention: Rope.nullish(),
})

const HfConfig = z.object({
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: z.int().min(1).max(65_536),
  num_key_value_heads: z.int().min(1).max(65_536).nullish(),
  head_dim: z.int().min(1).max(65_536).nullish(),
  max_position_embeddings: context,
  original_max_position_embeddings: context.nullish(),
  rms_norm_eps: positive.max(1).nullish(),
  hidden_act: z.string().nullish(),
  hidden_activation: z.string().nullish(),
  tie_word_embeddings: z.boolean().nullish(),
  attention_bias: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
  sliding_window: context.nullish(),
  use_sliding_window: z.boolean().nullish(),
  max_window_layers: z.int().nonnegative().nullish(),
  layer_types: z.array(z.enum(LAYER_TYPES)).max(4096).nullish(),
  sliding_window_pattern: layerCount.nullish(),
  _sliding_window_pattern: layerCount.nullish(),
  use_bidirectional_attention: z.literal(false).nullish(),
  rope_theta: positive.nullish(),
  rope_scaling: Rope.nullish(),
  rope_parameters: RopeParameters.nullish(),
  rope_local_base_freq: positive.nullish(),
  partial_rotary_factor: positive.max(1).nullish(),
  query_pre_attn_scalar: positive.nullish(),
  attn_logit_softcapping: positive.nullish(),
  final_logit_softcapping: positive.nullish(),
  bos_token_id: tokenId.nullish(),
  eos_token_id: z.union([tokenId, z.array(tokenId).max(64)]).nullish(),
  num_experts: z.int().min(1).max(65_536).nullish(),
  num_local_experts: z.int().min(1).max(65_536).nullish(),
  num_experts_per_tok: z.int().min(1).max(65_536).nullish(),
  moe_intermediate_size: size.nullish(),
  norm_topk_prob: z.boolean().nullish(),
  decoder_sparse_step: layerCount.nullish(),
  mlp_only_layers: z.array(z.int().nonnegative()).max(4096).nullish(),
  // SmallThinker
  moe_primary_router_apply_softmax: z.boolean().nullish(),
  moe_enable_early_router: z.boolean().nullish(),
  moe_enable_secondary_experts: z.literal(false).nullish(),
  moe_layer_layout: layout.nullish(),
  rope_layout: layout.nullish(),
  sliding_window_layout: layout.nullish(),
  // Llama 4
  attention_chunk_size: context.nullish(),
  no_rope_layers: layout.nullish(),
  no_rope_layer_interval: layerCount.nullish(),
  interleave_moe_layer_step: layerCount.nullish(),
  moe_layers: z.array(z.int().nonnegative()).max(4096).nullish(),
  use_qk_norm: z.boolean().nullish(),
  attn_temperature_tuning: z.union([z.boolean(), z.number()]).nullish(),
  attn_scale: z.number().nonnegative().nullish(),
  floor_scale: positive.nullish(),
  // DeepSeek
  rope_interleave: z.boolean().nullish(),
  q_lora_rank: size.nullish(),
  kv_lora_rank: size.nullish(),
  qk_nope_head_dim: size.nullish(),
  qk_rope_head_dim: size.nullish(),
  v_head_dim: size.nullish(),
  n_shared_experts: z.int().min(0).max(4096).nullish(),
  first_k_dense_replace: z.int().nonnegative().nullish(),
  moe_layer_freq: layerCount.nullish(),
  scoring_func: z.enum(["softmax", "sigmoid"]).nullish(),
  topk_method: z.enum(TOPK_METHODS).nullish(),
  n_group: z.int().min(1).max(65_536).nullish(),
  topk_group: z.int().min(1).max(65_536).nullish(),
  routed_scaling_factor: positive.nullish(),
  // MiniMax-M2; its forerunner mixes in linear attention
  rotary_dim: z.int().min(2).max(65_536).nullish(),
  use_routing_bias: z.boolean().nullish(),
  qk_norm_type: z.literal("per_layer").nullish(),
  attn_type_list: z.array(z.literal(1)).max(4096).nullish(),
  shared_intermediate_size: z.literal(0).nullish(),
  // ERNIE 4.5; -1: the last layer
  use_bias: z.literal(false).nullish(),
  moe_layer_start_index: z.int().nonnegative().nullish(),
  moe_layer_end_index: z.int().min(-1).nullish(),
  moe_layer_interval: layerCount.nullish(),
  // gpt-oss: the kernels have its activation with these constants
  swiglu_alpha: z.literal(1.702).nullish(),
  swiglu_limit: z.literal(7).nullish(),
  // Qwen3-Next; the kernels' bounds
  shared_expert_intermediate_size: size.nullish(),
  full_attention_interval: layerCount.nullish(),
  linear_conv_kernel_dim: z.int().min(2).max(16).nullish(),
  linear_num_key_heads: z.int().min(1).max(65_536).nullish(),
  linear_num_value_heads: z.int().min(1).max(65_536).nullish(),
  linear_key_head_dim: z.int().min(1).max(256).nullish(),
  linear_value_head_dim: z.int().min(1).max(65_536).nullish(),
})
type HfConfig = z.infer<typeof HfConfig>

/**
 * What a model type is beyond its keys: its code in transformers, and the class's defaults for
 * absent keys.
 */
interface Traits {
  /** "config-qkv": as the configuration says, but never on the output projection. */
  readonly attentionBias: "config" | "config-qkv" | "qkv" | "none"
  /** "config": as `use_qk_norm` says. */
  readonly qkNorm?: true | "config"
  readonly gemma?: true
  readonly moe?: true
  /**
   * Layers that slide where `layer_types` does not say: those from `max_window_layers` on, each,
   * all but every n-th; `layout`: SmallThinker's list; `chunked`: Llama 4's, in chunks, where there
   * is a rope; `nope`: those without one.
   */
  readonly sliding: "none" | "upper" | "all" | "pattern" | "layout" | "chunked" | "nope"
  /** Latent attention. */
  readonly mla?: true
  /** Where `hidden_act` does not tell it. */
  readonly act?: Activation
  /** Other names of this file's keys. */
  readonly aliases?: Readonly<Record<string, string>>
  /** The router takes sigmoids where no key says so. */
  readonly sigmoid?: true
  /** Pairs of neighbours rotate. */
  readonly interleaved?: true
  /** Most layers are gated delta nets, norms are (1 + w). */
  readonly deltaNet?: true
  /** `use_sliding_window` must be true. */
  readonly slidingIsOptIn?: true
  readonly defaults: Readonly<Record<string, unknown>>
}

const DEEPSEEK = {
  attentionBias: "config",
  moe: true,
  mla: true,
  sliding: "none",
  interleaved: true,
  aliases: { num_experts: "n_routed_experts" },
} as const
const DEEPSEEK_V3_DEFAULTS = {
  scoring_func: "sigmoid",
  topk_method: "noaux_tc",
  norm_topk_prob: true,
}

const TRAITS: Readonly<Record<ModelType, Traits>> = {
  llama: { attentionBias: "config", sliding: "none", defaults: {} },
  mistral: {
    attentionBias: "none",
    sliding: "all",
    defaults: { sliding_window: 4096, num_key_value_heads: 8 },
  },
  qwen2: {
    attentionBias: "qkv",
    sliding: "upper",
    slidingIsOptIn: true,
    defaults: { num_key_value_heads: 32 },
  },
  qwen3: {
    attentionBias: "config",
    qkNorm: true,
    sliding: "upper",
    slidingIsOptIn: true,
    defaults: { num_key_value_heads: 32, head_dim: 128 },
  },
  gemma3_text: {
    attentionBias: "config",
    qkNorm: true,
    gemma: true,
    sliding: "pattern",
    // Hub checkpoints with a vision part leave out whatever equals these.
    defaults: {
      vocab_size: 262_208,
      hidden_size: 2304,
      intermediate_size: 9216,
      num_hidden_layers: 26,
      num_attention_heads: 8,
      num_key_value_heads: 4,
      head_dim: 256,
      hidden_activation: "gelu_pytorch_tanh",
      max_position_embeddings: 131_072,
      tie_word_embeddings: true,
      rope_theta: 1_000_000,
      rope_local_base_freq: 10_000,
      query_pre_attn_scalar: 256,
      sliding_window: 4096,
      bos_token_id: 2,
      eos_token_id: 1,
    },
  },
  phi3: { attentionBias: "none", sliding: "all", defaults: { rms_norm_eps: 1e-5 } },
  qwen3_moe: {
    attentionBias: "config",
    qkNorm: true,
    moe: true,
    sliding: "all",
    slidingIsOptIn: true,
    defaults: {
      num_key_value_heads: 4,
      num_experts: 128,
      num_experts_per_tok: 8,
      moe_intermediate_size: 768,
    },
  },
  smallthinker: {
    attentionBias: "none",
    moe: true,
    sliding: "layout",
    act: "relu",
    aliases: {
      num_experts: "moe_num_primary_experts",
      num_experts_per_tok: "moe_num_active_primary_experts",
      moe_intermediate_size: "moe_ffn_hidden_size",
      intermediate_size: "dense_ffn_hidden_size",
      sliding_window: "sliding_window_size",
    },
    defaults: {
      num_key_value_heads: 4,
      head_dim: 128,
      norm_topk_prob: true,
      dense_ffn_hidden_size: 4096,
      moe_primary_router_apply_softmax: false,
      moe_enable_early_router: true,
    },
  },
  llama4_text: {
    attentionBias: "config",
    moe: true,
    sliding: "chunked",
    interleaved: true,
    qkNorm: "config",
    sigmoid: true,
    aliases: {
      moe_intermediate_size: "intermediate_size",
      intermediate_size: "intermediate_size_mlp",
      decoder_sparse_step: "interleave_moe_layer_step",
    },
    defaults: {
      vocab_size: 202_048,
      hidden_size: 5120,
      intermediate_size: 8192,
      intermediate_size_mlp: 16_384,
      num_hidden_layers: 48,
      num_attention_heads: 40,
      num_key_value_heads: 8,
      head_dim: 128,
      max_position_embeddings: 131_072,
      rms_norm_eps: 1e-5,
      rope_theta: 500_000,
      num_experts: 16,
      num_experts_per_tok: 1,
      interleave_moe_layer_step: 1,
      use_qk_norm: true,
      no_rope_layer_interval: 4,
      attention_chunk_size: 8192,
      attn_temperature_tuning: true,
      attn_scale: 0.1,
      floor_scale: 8192,
    },
  },
  gpt_oss: {
    attentionBias: "config",
    moe: true,
    sliding: "pattern",
    act: "swiglu_oai",
    aliases: { moe_intermediate_size: "intermediate_size" },
    defaults: {
      num_key_value_heads: 8,
      head_dim: 64,
      rms_norm_eps: 1e-5,
      attention_bias: true,
      sliding_window: 128,
      sliding_window_pattern: 2,
      rope_theta: 150_000,
      num_experts: 128,
      num_experts_per_tok: 4,
      norm_topk_prob: true,
    },
  },
  qwen3_next: {
    attentionBias: "config",
    qkNorm: true,
    moe: true,
    sliding: "none",
    deltaNet: true,
    defaults: {
      vocab_size: 151_936,
      hidden_size: 2048,
      intermediate_size: 5632,
      num_hidden_layers: 48,
      num_attention_heads: 16,
      num_key_value_heads: 2,
      head_dim: 256,
      max_position_embeddings: 32_768,
      partial_rotary_factor: 0.25,
      full_attention_interval: 4,
      linear_conv_kernel_dim: 4,
      linear_num_key_heads: 16,
      linear_num_value_heads: 32,
      linear_key_head_dim: 128,
      linear_value_head_dim: 128,
      num_experts: 512,
      num_experts_per_tok: 10,
      moe_intermediate_size: 512,
      shared_expert_intermediate_size: 512,
      norm_topk_prob: true,
    },
  },
  deepseek_v2: {
    ...DEEPSEEK,
    defaults: { scoring_func: "softmax", topk_method: "greedy", norm_topk_prob: false },
  },
  deepseek_v3: { ...DEEPSEEK, defaults: DEEPSEEK_V3_DEFAULTS },
  kimi_k2: { ...DEEPSEEK, defaults: DEEPSEEK_V3_DEFAULTS },
  smollm3: {
    attentionBias: "config",
    sliding: "nope",
    slidingIsOptIn: true,
    defaults: {
      num_key_value_heads: 4,
      rope_theta: 2_000_000,
      no_rope_layer_interval: 4,
      tie_word_embeddings: true,
    },
  },
  internlm2: {
    attentionBias: "config",
    sliding: "none",
    aliases: { attention_bias: "bias" },
    defaults: { bias: true },
  },
  mixtral: {
    attentionBias: "none",
    moe: true,
    sliding: "all",
    aliases: { moe_intermediate_size: "intermediate_size" },
    defaults: {
      num_key_value_heads: 8,
      rms_norm_eps: 1e-5,
      rope_theta: 1_000_000,
      num_experts: 8,
      num_experts_per_tok: 2,
      norm_topk_prob: true,
    },
  },
  qwen2_moe: {
    attentionBias: "config-qkv",
    moe: true,
    sliding: "upper",
    slidingIsOptIn: true,
    aliases: { attention_bias: "qkv_bias" },
    defaults: {
      qkv_bias: true,
      num_key_value_heads: 16,
      num_experts: 60,
      num_experts_per_tok: 4,
      moe_intermediate_size: 1408,
      shared_expert_intermediate_size: 5632,
    },
  },
  glm4_moe: {
    attentionBias: "config-qkv",
    qkNorm: "config",
    moe: true,
    sliding: "none",
    aliases: { num_experts: "n_routed_experts" },
    defaults: {
      num_key_value_heads: 8,
      head_dim: 128,
      partial_rotary_factor: 0.5,
      rms_norm_eps: 1e-5,
      n_routed_experts: 128,
      n_shared_experts: 1,
      num_experts_per_tok: 8,
      moe_intermediate_size: 1408,
      first_k_dense_replace: 1,
      scoring_func: "sigmoid",
      topk_method: "noaux_tc",
      norm_topk_prob: true,
    },
  },
  minimax_m2: {
    attentionBias: "none",
    qkNorm: "config",
    moe: true,
    sliding: "none",
    aliases: { moe_intermediate_size: "intermediate_size" },
    defaults: {
      num_key_value_heads: 8,
      head_dim: 128,
      rope_theta: 5_000_000,
      num_experts: 256,
      num_experts_per_tok: 8,
      use_qk_norm: true,
      use_routing_bias: true,
      scoring_func: "sigmoid",
      topk_method: "noaux_tc",
      norm_topk_prob: true,
    },
  },
  ernie4_5_moe: {
    attentionBias: "none",
    moe: true,
    sliding: "none",
    interleaved: true,
    aliases: {
      num_experts: "moe_num_experts",
      num_experts_per_tok: "moe_k",
      n_shared_experts: "moe_num_shared_experts",
    },
    defaults: {
      num_key_value_heads: 4,
      rms_norm_eps: 1e-5,
      rope_theta: 500_000,
      tie_word_embeddings: true,
      moe_num_experts: 64,
      moe_k: 6,
      moe_num_shared_experts: 2,
      moe_intermediate_size: 1536,
      moe_layer_start_index: 1,
      topk_method: "noaux_tc",
      norm_topk_prob: true,
    },
  },
}

/**
 * The configuration of a Hugging Face folder: config.json, and generation_config.json for the ids
 * that end a text.
 */
export function configFromFolder(folder: string): ModelConfig {
  const file = join(folder, "config.json")
  const generation = join(folder, "generation_config.json")
  const ending = existsSync(generation) ? readJson(generation) : undefined
  return configFromJson(
    file,
    readJson(file),
    ending === undefined ? undefined : eosIds(generation, ending),
  )
}

/**
 * The configuration that a parsed config.json holds, as transformers 4 or 5 writes it. `file` is
 * for messages; `eos` replaces `eos_token_id`.
 */
export function configFromJson(file: string, json: unknown, eos?: readonly number[]): ModelConfig {
  const outer = parsed(file, "", json, z.record(z.string(), z.unknown()))
  const outerType = knownType(outer["model_type"])
  const text = outerType === undefined ? (languageModel(file, outer) ?? outer) : outer
  const modelType = outerType ?? knownType(text["model_type"])
  if (modelType === undefined) {
    const known = MODEL_TYPES.join(", ")
    const key = text === outer ? "model_type" : "text_config.model_type"
    throw new FormatError(
      file,
      `${key}: ${shown(text["model_type"])} is unknown; known are ${known}`,
    )
  }
  if (!isReadable(text["quantization_config"], modelType)) {
    throw new FormatError(
      file,
      `quantization_config: ${shown(text["quantization_config"])}, only unquantized safetensors are read`,
      {
        hint: "use the model's GGUF or its unquantized checkpoint",
      },
    )
  }
  const traits = TRAITS[modelType]
  const local = text["num_local_experts"] ?? undefined
  const known = local === undefined ? text : { ...text, num_experts: text["num_experts"] ?? local }
  const given = { ...traits.defaults, ...withoutUndefined(known) }
  const c = parsed(file, "", aliased(given, traits), HfConfig)
  if (modelType === "smallthinker" && c.use_qk_norm === true)
    throw new FormatError(file, "use_qk_norm: true, no published smallthinker model has q/k norms")
  checkLayerLists(file, c)
  const { hidden_size, num_attention_heads: heads } = c
  const mla = traits.mla ? latentAttention(file, c) : undefined
  const head_dim = mla
    ? mla.qk_nope_head_dim + mla.qk_rope_head_dim
    : (c.head_dim ?? defaultHeadDim(file, hidden_size, heads))
  const rotating = ropes(file, c, traits, mla?.qk_rope_head_dim ?? head_dim)
  const hasWindow = traits.slidingIsOptIn === undefined || c.use_sliding_window === true
  const window =
    hasWindow && traits.sliding !== "none" ? (c.sliding_window ?? undefined) : undefined
  const layer_types = layerTypes(c, traits, window)
  const slides = layer_types.includes("sliding_attention")
  return checkedConfig(file, {
    model_type: modelType,
    layout: "huggingface",
    vocab_size: c.vocab_size,
    hidden_size,
    intermediate_size: c.intermediate_size,
    num_hidden_layers: c.num_hidden_layers,
    num_attention_heads: heads,
    num_key_value_heads: mla ? 1 : (c.num_key_value_heads ?? heads),
    head_dim,
    max_position_embeddings: c.max_position_embeddings,
    rms_norm_eps: c.rms_norm_eps ?? 1e-6,
    hidden_act: activation(file, c, traits),
    tie_word_embeddings: c.tie_word_embeddings ?? false,
    attention_bias:
      traits.attentionBias === "config" || traits.attentionBias === "config-qkv"
        ? (c.attention_bias ?? false)
        : traits.attentionBias === "qkv",
    attention_output_bias: traits.attentionBias === "config" && (c.attention_bias ?? false),
    mlp_bias: modelType === "llama" && (c.mlp_bias ?? false),
    qk_norm: traits.qkNorm === "config" ? c.use_qk_norm === true : traits.qkNorm === true,
    norm_offset: traits.gemma || traits.deltaNet ? 1 : 0,
    embedding_scale: traits.gemma ? Math.sqrt(hidden_size) : 1,
    attention_scale: mla
      ? latentScale(mla, rotating.rope, (c.rope_parameters ?? c.rope_scaling)?.mscale_all_dim)
      : 1 / Math.sqrt((traits.gemma ? c.query_pre_attn_scalar : undefined) ?? head_dim),
    attn_logit_softcapping: traits.gemma ? (c.attn_logit_softcapping ?? undefined) : undefined,
    final_logit_softcapping: traits.gemma ? (c.final_logit_softcapping ?? undefined) : undefined,
    sliding_window: slides ? (window ?? c.sliding_window ?? undefined) : undefined,
    attention_chunk_size: c.attention_chunk_size ?? undefined,
    layer_types,
    linear_attention: traits.deltaNet ? deltaNet(file, c) : undefined,
    rope_layers: ropeLayers(c),
    attn_temperature: c.attn_temperature_tuning
      ? { scale: c.attn_scale ?? 0.1, floor: c.floor_scale ?? 8192 }
      : undefined,
    mla,
    ...rotating,
    ...experts(file, c, traits),
    bos_token_id: c.bos_token_id ?? undefined,
    eos_token_id: eos ?? list(c.eos_token_id),
  })
}

/** Whether the weights are plain, or gpt-oss' experts in MXFP4. */
function isReadable(quantization: unknown, modelType: ModelType): boolean {
  if (quantization === undefined || quantization === null) return true
  const method = z.object({ quant_method: z.literal("mxfp4") }).safeParse(quantization)
  return modelType === "gpt_oss" && method.success
}

/** Language models whose type a checkpoint with other parts leaves out, or calls by a name of its own. */
const TEXT_TYPES: Readonly<Record<string, ModelType>> = {
  gemma3: "gemma3_text",
  llama4: "llama4_text",
  qwen3_vl_text: "qwen3",
}

function knownType(type: unknown): ModelType | undefined {
  return MODEL_TYPES.find((known) => known === type)
}

/** The text part of a checkpoint that also sees or hears, if this is one; ids and tying may stand outside it. */
function languageModel(
  file: string,
  outer: Readonly<Record<string, unknown>>,
): Record<string, unknown> | undefined {
  const { bos_token_id, eos_token_id, tie_word_embeddings, quantization_config } = outer
  const hasText = Object.hasOwn(TEXT_TYPES, String(outer["model_type"]))
  const key =
    ["text_config", "llm_config"].find((name) => outer[name] !== undefined) ??
    (hasText ? "text_config" : undefined)
  if (key === undefined) return undefined
  const inner = parsed(file, key, outer[key], z.record(z.string(), z.unknown()))
  const types = [outer["model_type"], inner["model_type"]].map(String)
  const alias = types.find((type) => Object.hasOwn(TEXT_TYPES, type))
  const model_type = alias === undefined ? inner["model_type"] : TEXT_TYPES[alias]
  const shared = { bos_token_id, eos_token_id, tie_word_embeddings, quantization_config }
  return { ...withoutUndefined(shared), ...withoutUndefined(inner), model_type }
}

/** Keys under the names that this file knows; a key that is an alias of two takes its value for both. */
function aliased(
  given: Readonly<Record<string, unknown>>,
  { aliases = {} }: Traits,
): Record<string, unknown> {
  const renamed = Object.entries(aliases).filter(([, key]) => given[key] !== undefined)
  return { ...given, ...Object.fromEntries(renamed.map(([name, key]) => [name, given[key]])) }
}

function layerTypes(c: HfConfig, traits: Traits, window: number | undefined): readonly LayerType[] {
  if (c.layer_types !== undefined && c.layer_types !== null) return c.layer_types
  const { num_hidden_layers: layers } = c
  if (traits.deltaNet) {
    const interval = c.full_attention_interval ?? 4
    return Array.from({ length: layers }, (_, i) =>
      (i + 1) % interval === 0 ? "full_attention" : "linear_attention",
    )
  }
  if (traits.sliding === "chunked") {
    const chunked = c.attention_chunk_size !== null && c.attention_chunk_size !== undefined
    return ropeLayers(c).map((rotates) =>
      rotates && chunked ? "chunked_attention" : "full_attention",
    )
  }
  if (traits.sliding === "layout") {
    const slides = c.sliding_window_layout ?? []
    return Array.from({ length: layers }, (_, i) =>
      slides[i] && window !== undefined ? "sliding_attention" : "full_attention",
    )
  }
  if (window === undefined || traits.sliding === "none")
    return Array<LayerType>(layers).fill("full_attention")
  if (traits.sliding === "nope") {
    return ropeLayers(c).map((rotates) => (rotates ? "full_attention" : "sliding_attention"))
  }
  if (traits.sliding === "pattern")
    return patternLayerTypes(layers, c.sliding_window_pattern ?? c._sliding_window_pattern ?? 6)
  const first = traits.sliding === "upper" ? (c.max_window_layers ?? 28) : 0
  return Array.from({ length: layers }, (_, i) =>
    i < first ? "full_attention" : "sliding_attention",
  )
}

function deltaNet(file: string, c: HfConfig): LinearAttentionConfig {
  const needed = <K extends keyof HfConfig>(key: K): number => {
    const value = c[key]
    if (typeof value === "number") return value
    throw new FormatError(file, `${key}: ${shown(value)}, expected a number`)
  }
  return {
    conv_kernel_dim: needed("linear_conv_kernel_dim"),
    num_key_heads: needed("linear_num_key_heads"),
    num_value_heads: needed("linear_num_value_heads"),
    key_head_dim: needed("linear_key_head_dim"),
    value_head_dim: needed("linear_value_head_dim"),
    fused_qkvz: true,
  }
}

/** Lists that say something of each layer, by their layers. */
function checkLayerLists(file: string, c: HfConfig): void {
  const { num_hidden_layers: layers } = c
  const lists = [
    "rope_layout",
    "sliding_window_layout",
    "moe_layer_layout",
    "no_rope_layers",
  ] as const
  for (const key of lists) {
    const list = c[key] ?? []
    if (list.length > 0 && list.length !== layers)
      throw new FormatError(
        file,
        `${key}: ${list.length} entries for ${layers} layers (num_hidden_layers)`,
      )
  }
  const outside = c.moe_layers?.find((layer) => layer >= layers)
  if (outside !== undefined)
    throw new FormatError(file, `moe_layers: ${outside}, there are ${layers} layers`)
}

/** Whether q and k rotate, by layer. Lists of either model family hold 1 where they do. */
function ropeLayers(c: HfConfig): readonly boolean[] {
  const { num_hidden_layers: layers, no_rope_layer_interval: interval } = c
  const list = c.rope_layout ?? (c.no_rope_layers?.length ? c.no_rope_layers : undefined)
  if (list !== undefined) return list.map(Boolean)
  return Array.from({ length: layers }, (_, i) => !interval || (i + 1) % interval !== 0)
}

function activation(file: string, c: HfConfig, traits: Traits): Activation {
  if (traits.act !== undefined) return traits.act
  const key = traits.gemma ? "hidden_activation" : "hidden_act"
  const name = c[key] ?? "silu"
  // Two names of the same tanh approximation.
  const found = ACTIVATIONS.find((a) => a === (name === "gelu_new" ? "gelu_pytorch_tanh" : name))
  if (found === undefined)
    throw new FormatError(
      file,
      `${key}: ${shown(name)} is unknown; known are ${ACTIVATIONS.join(", ")}`,
    )
  return found
}

/**
 * Both forms of rope settings: rope_theta and rope_scaling beside each other, or everything in
 * rope_parameters.
 */
function ropes(
  file: string,
  c: HfConfig,
  traits: Traits,
  headDim: number,
): { rope: RopeConfig; rope_local: RopeConfig | undefined } {
  const parameters = c.rope_parameters ?? undefined
  const make = (key: string, rope: Rope | undefined, theta: number): RopeConfig => {
    const type = ropeType(file, key, rope)
    const partial = rope?.partial_rotary_factor ?? c.partial_rotary_factor ?? 1
    const original =
      rope?.original_max_position_embeddings ?? c.original_max_position_embeddings ?? undefined
    return ropeConfig(file, key, {
      type,
      theta: rope?.rope_theta ?? theta,
      rotary_dim: c.rotary_dim ?? Math.floor(headDim * partial),
      interleaved: traits.interleaved === true && c.rope_interleave !== false,
      max_position_embeddings: c.max_position_embeddings,
      original_max_position_embeddings: original,
      // Where both contexts are known, longrope's factor is their ratio and no other.
      factor:
        type === "longrope" && original !== undefined ? undefined : (rope?.factor ?? undefined),
      attention_factor:
        type === "yarn" || type === "longrope" ? (rope?.attention_factor ?? undefined) : 1,
      beta_fast: rope?.beta_fast ?? undefined,
      beta_slow: rope?.beta_slow ?? undefined,
      mscale: rope?.mscale ?? undefined,
      mscale_all_dim: rope?.mscale_all_dim ?? undefined,
      truncate: rope?.truncate ?? undefined,
      low_freq_factor: rope?.low_freq_factor ?? undefined,
      high_freq_factor: rope?.high_freq_factor ?? undefined,
      short_factor: type === "longrope" ? (rope?.short_factor ?? undefined) : undefined,
      long_factor: type === "longrope" ? (rope?.long_factor ?? undefined) : undefined,
    })
  }
  const theta = c.rope_theta ?? 10_000
  const isPerType =
    parameters?.full_attention !== undefined || parameters?.sliding_attention !== undefined
  if (parameters !== undefined && isPerType) {
    const { full_attention: full, sliding_attention: sliding } = parameters
    const local = c.rope_local_base_freq ?? theta
    const rope_local = sliding
      ? make("rope_parameters.sliding_attention", sliding, local)
      : undefined
    return { rope: make("rope_parameters.full_attention", full ?? undefined, theta), rope_local }
  }
  const rope = make(
    parameters === undefined ? "rope_scaling" : "rope_parameters",
    parameters ?? c.rope_scaling ?? undefined,
    theta,
  )
  // Gemma's local layers have a base of their own and no scaling.
  const rope_local = traits.gemma
    ? make("rope_local_base_freq", undefined, c.rope_local_base_freq ?? 10_000)
    : undefined
  return { rope, rope_local }
}

function ropeType(file: string, key: string, rope: Rope | undefined): RopeType {
  if (rope === undefined) return "default"
  const name = rope.rope_type ?? rope.type
  // "su" is longrope's first name, in early Phi-3 checkpoints.
  const found = ROPE_TYPES.find((t) => t === (name === "su" ? "longrope" : name))
  if (found === undefined) {
    throw new FormatError(
      file,
      `${key}.rope_type: ${shown(name)} is unknown; known are ${ROPE_TYPES.join(", ")}`,
    )
  }
  return found
}

function latentAttention(file: string, c: HfConfig): MlaConfig {
  const needed = (
    key: "kv_lora_rank" | "qk_nope_head_dim" | "qk_rope_head_dim" | "v_head_dim",
  ): number => c[key] ?? fail(key)
  const fail = (key: string): never => {
    throw new FormatError(file, `${key}: missing, expected a number`)
  }
  return Object.freeze({
    q_lora_rank: c.q_lora_rank ?? undefined,
    kv_lora_rank: needed("kv_lora_rank"),
    qk_nope_head_dim: needed("qk_nope_head_dim"),
    qk_rope_head_dim: needed("qk_rope_head_dim"),
    v_head_dim: needed("v_head_dim"),
    split_kv_b: false,
  })
}

function experts(
  file: string,
  c: HfConfig,
  traits: Traits,
): Pick<
  ModelConfig,
  | "num_experts"
  | "num_experts_per_tok"
  | "moe_intermediate_size"
  | "shared_expert_intermediate_size"
  | "norm_topk_prob"
  | "scoring_func"
  | "topk_method"
  | "n_group"
  | "topk_group"
  | "routed_scaling_factor"
  | "n_shared_experts"
  | "moe_enable_early_router"
  | "decoder_sparse_step"
  | "mlp_only_layers"
> {
  const needed = (key: "num_experts" | "num_experts_per_tok" | "moe_intermediate_size"): number => {
    const value = c[key]
    if (!traits.moe) return 0
    if (typeof value !== "number")
      throw new FormatError(file, `${key}: ${shown(value)}, expected a number`)
    return value
  }
  const topk_method = c.use_routing_bias === false ? "greedy" : (c.topk_method ?? "greedy")
  const grouped = topk_method !== "greedy"
  return {
    num_experts: needed("num_experts"),
    num_experts_per_tok: needed("num_experts_per_tok"),
    moe_intermediate_size: needed("moe_intermediate_size"),
    shared_expert_intermediate_size: c.shared_expert_intermediate_size ?? 0,
    norm_topk_prob: c.norm_topk_prob ?? false,
    scoring_func:
      traits.sigmoid || c.moe_primary_router_apply_softmax === false
        ? "sigmoid"
        : (c.scoring_func ?? "softmax"),
    topk_method,
    n_group: grouped ? (c.n_group ?? 1) : 1,
    topk_group: grouped ? (c.topk_group ?? c.n_group ?? 1) : 1,
    routed_scaling_factor: c.routed_scaling_factor ?? 1,
    n_shared_experts: c.n_shared_experts ?? 0,
    moe_enable_early_router: c.moe_enable_early_router ?? false,
    ...sparseLayers(c),
  }
}

/** Which layers have experts: by step and exceptions, or by a list of either kind. */
function sparseLayers(c: HfConfig): Pick<ModelConfig, "decoder_sparse_step" | "mlp_only_layers"> {
  const { num_hidden_layers: layers, moe_layers, moe_layer_layout: flags } = c
  const { first_k_dense_replace: dense, moe_layer_freq: step } = c
  const late =
    typeof dense === "number"
      ? Array.from({ length: layers }, (_, i) => i).filter(
          (i) => i >= dense && i % (step ?? 1) === 0,
        )
      : undefined
  const sparse =
    moe_layers ?? flags?.flatMap((flag, i) => (flag ? [i] : [])) ?? late ?? spannedLayers(c)
  if (sparse === undefined) {
    const { decoder_sparse_step, mlp_only_layers } = c
    return { decoder_sparse_step: decoder_sparse_step ?? 1, mlp_only_layers: mlp_only_layers ?? [] }
  }
  const all = Array.from({ length: layers }, (_, i) => i)
  return { decoder_sparse_step: 1, mlp_only_layers: all.filter((i) => !sparse.includes(i)) }
}

/** ERNIE's: every n-th layer from a first to a last one. */
function spannedLayers(c: HfConfig): number[] | undefined {
  const { moe_layer_start_index: first, moe_layer_end_index: end, moe_layer_interval } = c
  if (typeof first !== "number") return undefined
  const last = end === undefined || end === null || end === -1 ? c.num_hidden_layers - 1 : end
  return Array.from({ length: c.num_hidden_layers }, (_, i) => i).filter(
    (i) => i >= first && i <= last && (i + 1) % (moe_layer_interval ?? 1) === 0,
  )
}

function eosIds(file: string, json: unknown): readonly number[] | undefined {
  const schema = z.object({ eos_token_id: HfConfig.shape.eos_token_id })
  const ids = list(parsed(file, "", json, schema).eos_token_id)
  return ids.length === 0 ? undefined : ids
}

function list(ids: number | number[] | null | undefined): number[] {
  return typeof ids === "number" ? [ids] : (ids ?? [])
}

function readJson(file: string): unknown {
  const stat = statSync(file, { throwIfNoEntry: false })
  if (stat === undefined) throw new FormatError(file, "no such file")
  if (stat.size > MAX_CONFIG_BYTES)
    throw new FormatError(file, `${stat.size} bytes, more than the limit of ${MAX_CONFIG_BYTES}`)
  try {
    return JSON.parse(readFileSync(file, "utf8"))
  } catch (cause) {
    throw new FormatError(
      file,
      `is no valid JSON (${cause instanceof Error ? cause.message : String(cause)})`,
      { cause },
    )
  }
}

/** `json` checked; the message names the first offending key and its value. */
function parsed<T>(file: string, at: string, json: unknown, schema: z.ZodType<T>): T {
  const result = schema.safeParse(json)
  if (result.success) return result.data
  const [issue] = result.error.issues
  const path = issue?.path ?? []
  let value: unknown = json
  for (const key of path)
    value = typeof value === "object" && value !== null ? Reflect.get(value, key) : undefined
  const field = [...(at === "" ? [] : [at]), ...path].join(".")
  const found = value === undefined ? "missing" : shown(value)
  throw new FormatError(
    file,
    `${field === "" ? "content" : field}: ${found} (${issue?.message ?? "invalid"})`,
  )
}

function shown(value: unknown): string {
  if (value === undefined) return "missing"
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 80 ? `${text.slice(0, 80)}…` : text
}

function withoutUndefined(record: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(record).filter(([, value]) => value !== undefined))
}
