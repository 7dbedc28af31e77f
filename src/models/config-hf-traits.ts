import type { Activation, DecoderType } from "./config.ts"

/**
 * What a model type is beyond its keys: its code in transformers, and the class's defaults for
 * absent keys.
 */
export interface Traits {
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

/** By `model_type`. */
export const TRAITS: Readonly<Record<DecoderType, Traits>> = {
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
