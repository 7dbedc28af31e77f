/** A config.json as the model's publisher has it, without what says nothing about its shape. */
export type Shape = Readonly<Record<string, unknown>>

const COMMON = { rms_norm_eps: 1e-6, hidden_act: "silu", bos_token_id: 1, eos_token_id: 2 }

const QWEN3_MOE = {
  ...COMMON,
  model_type: "qwen3_moe",
  head_dim: 128,
  num_experts: 128,
  num_experts_per_tok: 8,
  norm_topk_prob: true,
  decoder_sparse_step: 1,
  rope_theta: 1e6,
  max_position_embeddings: 40_960,
}

/** Shapes of published models by the names that `bench/synth.ts` takes. llama-1b is TinyLlama's. */
export const SHAPES: Readonly<Record<string, Shape>> = {
  "smollm2-135m": {
    ...COMMON,
    model_type: "llama",
    hidden_size: 576,
    intermediate_size: 1536,
    num_hidden_layers: 30,
    num_attention_heads: 9,
    num_key_value_heads: 3,
    rope_theta: 100_000,
    max_position_embeddings: 32_768,
    tie_word_embeddings: true,
  },
  "llama-1b": {
    ...COMMON,
    model_type: "llama",
    hidden_size: 2048,
    intermediate_size: 5632,
    num_hidden_layers: 22,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    rope_theta: 10_000,
    max_position_embeddings: 32_768,
  },
  "llama-8b": {
    ...COMMON,
    model_type: "llama",
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    rope_theta: 500_000,
    max_position_embeddings: 131_072,
  },
  "qwen3-30b-a3b": {
    ...QWEN3_MOE,
    hidden_size: 2048,
    intermediate_size: 6144,
    moe_intermediate_size: 768,
    num_hidden_layers: 48,
    num_attention_heads: 32,
    num_key_value_heads: 4,
  },
  "qwen3-235b-a22b": {
    ...QWEN3_MOE,
    hidden_size: 4096,
    intermediate_size: 12_288,
    moe_intermediate_size: 1536,
    num_hidden_layers: 94,
    num_attention_heads: 64,
    num_key_value_heads: 4,
  },
  "deepseek-v3": {
    ...COMMON,
    model_type: "deepseek_v3",
    hidden_size: 7168,
    intermediate_size: 18_432,
    moe_intermediate_size: 2048,
    num_hidden_layers: 61,
    num_attention_heads: 128,
    num_key_value_heads: 128,
    q_lora_rank: 1536,
    kv_lora_rank: 512,
    qk_nope_head_dim: 128,
    qk_rope_head_dim: 64,
    v_head_dim: 128,
    n_routed_experts: 256,
    num_experts_per_tok: 8,
    n_shared_experts: 1,
    first_k_dense_replace: 3,
    moe_layer_freq: 1,
    n_group: 8,
    topk_group: 4,
    topk_method: "noaux_tc",
    scoring_func: "sigmoid",
    norm_topk_prob: true,
    routed_scaling_factor: 2.5,
    rope_theta: 10_000,
    max_position_embeddings: 163_840,
    rope_scaling: {
      type: "yarn",
      factor: 40,
      original_max_position_embeddings: 4096,
      beta_fast: 32,
      beta_slow: 1,
      mscale: 1,
      mscale_all_dim: 1,
    },
  },
  "glm-4.5-air": {
    ...COMMON,
    model_type: "glm4_moe",
    hidden_size: 4096,
    intermediate_size: 10_944,
    moe_intermediate_size: 1408,
    num_hidden_layers: 46,
    num_attention_heads: 96,
    num_key_value_heads: 8,
    head_dim: 128,
    partial_rotary_factor: 0.5,
    attention_bias: true,
    use_qk_norm: false,
    n_routed_experts: 128,
    num_experts_per_tok: 8,
    n_shared_experts: 1,
    first_k_dense_replace: 1,
    n_group: 1,
    topk_group: 1,
    norm_topk_prob: true,
    routed_scaling_factor: 1,
    rope_theta: 1e6,
    max_position_embeddings: 131_072,
  },
}

/**
 * The shape with so many layers and tokens; of leading dense layers at most all but one stay. With fewer experts they are one
 * group.
 */
export function sizedShape(
  shape: Shape,
  layers: number | undefined,
  vocab: number,
  experts?: number,
): Shape {
  const count = layers ?? Number(shape["num_hidden_layers"])
  const dense = shape["first_k_dense_replace"]
  return {
    ...shape,
    vocab_size: vocab,
    num_hidden_layers: count,
    ...(experts === undefined
      ? {}
      : { n_routed_experts: experts, num_experts: experts, n_group: 1, topk_group: 1 }),
    ...(typeof dense === "number" ? { first_k_dense_replace: Math.min(dense, count - 1) } : {}),
  }
}
