import { z } from "zod"

import { LAYER_TYPES, TOPK_METHODS } from "./config.ts"

// Bounds well above every published model keep products of two sizes exact and allocations sane.
const size = z.int().min(1).max(16_777_216)
const context = z.int().min(1).max(1_073_741_824)
const layerCount = z.int().min(1).max(4096)
// keeps what is computed from them finite in f32
const positive = z.number().positive().max(1e12)
const tokenId = z.int().nonnegative()
/** A flag for each layer, written 0 or 1. */
const layout = z.array(z.union([z.literal(0), z.literal(1), z.boolean()])).max(4096)
const factors = z.array(positive).max(65_536)

export const Rope = z.object({
  rope_type: z.string().nullish(),
  type: z.string().nullish(),
  rope_theta: positive.nullish(),
  factor: positive.nullish(),
  original_max_position_embeddings: context.nullish(),
  attention_factor: positive.nullish(),
  beta_fast: positive.nullish(),
  beta_slow: positive.nullish(),
  mscale: z.number().nonnegative().max(1e6).nullish(),
  mscale_all_dim: z.number().nonnegative().max(1e6).nullish(),
  truncate: z.boolean().nullish(),
  low_freq_factor: positive.nullish(),
  high_freq_factor: positive.nullish(),
  short_factor: factors.nullish(),
  long_factor: factors.nullish(),
  partial_rotary_factor: positive.max(1).nullish(),
})
export type Rope = z.infer<typeof Rope>

/** transformers 5 writes one set of parameters, or one per layer type. */
const RopeParameters = Rope.extend({
  full_attention: Rope.nullish(),
  sliding_attention: Rope.nullish(),
})

/** The keys of config.json that this program reads; others are passed over. */
export const HfConfig = z.object({
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
  attn_scale: z.number().nonnegative().max(1e6).nullish(),
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
export type HfConfig = z.infer<typeof HfConfig>
