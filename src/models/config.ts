import { ConfigError, FormatError } from "../errors.ts"
import type { RopeConfig } from "../nn/rope.ts"

/** Model types that have a model file. */
export const MODEL_TYPES = [
  "llama",
  "mistral",
  "qwen2",
  "qwen3",
  "gemma3_text",
  "phi3",
  "qwen3_moe",
  "smallthinker",
  "llama4_text",
  "gpt_oss",
  "qwen3_next",
  "deepseek_v2",
  "deepseek_v3",
  "kimi_k2",
  "smollm3",
  "internlm2",
  "mixtral",
  "qwen2_moe",
  "glm4_moe",
  "minimax_m2",
  "ernie4_5_moe",
] as const

/** Model types of encoders: every token sees the whole text, and nothing is generated. */
export const ENCODER_TYPES = ["bert", "nomic_bert"] as const
export type EncoderType = (typeof ENCODER_TYPES)[number]
export type DecoderType = (typeof MODEL_TYPES)[number]
export type ModelType = DecoderType | EncoderType

/** How the hidden states of a text become one vector, or scores by a classification head. */
export const POOLINGS = ["mean", "cls", "last", "rank"] as const
export type Pooling = (typeof POOLINGS)[number]

/** What the logits of a classification head become. */
export type ScoreFunction = "sigmoid" | "softmax" | "none"

/** What an encoder has where decoders have something else. */
export interface EncoderConfig {
  readonly layer_norm_eps: number
  /** Rows of token_type_embeddings; 0 = the model has none. */
  readonly type_vocab_size: number
  /** Positions are looked up in a table of so many; 0 = q and k rotate. */
  readonly num_positions: number
  /** A dense layer and tanh stand before the classifier. */
  readonly classifier_dense: boolean
}

/** A classification head over pooled states. */
export interface ClassifierConfig {
  readonly num_labels: number
  /** Which label says how well texts match. */
  readonly label: number
  readonly score: ScoreFunction
  readonly bias: boolean
}

export const LAYER_TYPES = [
  "full_attention",
  "sliding_attention",
  "chunked_attention",
  "linear_attention",
] as const
export type LayerType = (typeof LAYER_TYPES)[number]

export const ACTIVATIONS = ["silu", "gelu", "gelu_pytorch_tanh", "relu", "swiglu_oai"] as const
export type Activation = (typeof ACTIVATIONS)[number]

/** A gated delta net's sizes; value heads are shared out evenly among key heads. */
export interface LinearAttentionConfig {
  readonly conv_kernel_dim: number
  readonly num_key_heads: number
  readonly num_value_heads: number
  readonly key_head_dim: number
  readonly value_head_dim: number
  /** q, k, v and z come from one matrix whose rows are grouped by key head. */
  readonly fused_qkvz: boolean
}

/** Sizes of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), by config.json's names. */
export interface MlaConfig {
  /** Values that queries are compressed to; undefined = they are not. */
  readonly q_lora_rank: number | undefined
  /** Values that a token's keys and values are compressed to. */
  readonly kv_lora_rank: number
  /** Parts of a query or key without and with rope. */
  readonly qk_nope_head_dim: number
  readonly qk_rope_head_dim: number
  readonly v_head_dim: number
  /** The checkpoint has kv_b_proj as two stacks, k_b_proj (transposed) and v_b_proj. */
  readonly split_kv_b: boolean
}

/** How experts are chosen: of all; of the groups with the best expert; with a bias, of the groups with the best two. */
export const TOPK_METHODS = ["greedy", "group_limited_greedy", "noaux_tc"] as const
export type TopkMethod = (typeof TOPK_METHODS)[number]

/**
 * Hyper-parameters of a model, from config.json or from GGUF metadata alone. Keys are config.json's
 * where it has them; what files leave to defaults or write in several ways is normalised, so that
 * model files read plain values. Plain data: it can be posted to a Worker.
 */
export interface ModelConfig {
  readonly model_type: ModelType
  /** Whose layout of weights `rope.interleaved` and `norm_offset` describe. */
  readonly layout: "huggingface" | "gguf"
  readonly vocab_size: number
  readonly hidden_size: number
  readonly intermediate_size: number
  readonly num_hidden_layers: number
  readonly num_attention_heads: number
  readonly num_key_value_heads: number
  readonly head_dim: number
  readonly max_position_embeddings: number
  readonly rms_norm_eps: number
  readonly hidden_act: Activation
  readonly tie_word_embeddings: boolean
  /** q, k and v projections have biases. */
  readonly attention_bias: boolean
  /** The output projection has a bias. */
  readonly attention_output_bias: boolean
  readonly mlp_bias: boolean
  /** q and k are RMS-normed per head before the rope. */
  readonly qk_norm: boolean
  /** Added to RMS norm weights: 1 where the checkpoint stores w of (1 + w). */
  readonly norm_offset: 0 | 1
  /** Multiplies the embeddings. */
  readonly embedding_scale: number
  /** Multiplies q·k before the softmax. */
  readonly attention_scale: number
  /** Scores become cap · tanh(score / cap); undefined = no cap. */
  readonly attn_logit_softcapping: number | undefined
  readonly final_logit_softcapping: number | undefined
  /** Keys that a query of a sliding layer sees, its own included; undefined = no layer slides. */
  readonly sliding_window: number | undefined
  /** A query of a chunked layer sees its own chunk of so many positions; undefined = no layer is chunked. */
  readonly attention_chunk_size: number | undefined
  /** One per layer. */
  readonly layer_types: readonly LayerType[]
  /** Of layers that are linear_attention. */
  readonly linear_attention: LinearAttentionConfig | undefined
  /** One per layer: whether q and k rotate; false where the layer knows no positions (NoPE). */
  readonly rope_layers: readonly boolean[]
  /** Multiplies the query at p of layers without rope by 1 + scale · ln(1 + ⌊(p + 1) / floor⌋). */
  readonly attn_temperature: { readonly scale: number; readonly floor: number } | undefined
  /** Latent attention: one head of compressed keys and values is cached; undefined = heads of their own. */
  readonly mla: MlaConfig | undefined
  readonly rope: RopeConfig
  /** The sliding layers' rope, where it differs. */
  readonly rope_local: RopeConfig | undefined
  /** 0 = no mixture of experts. */
  readonly num_experts: number
  readonly num_experts_per_tok: number
  readonly moe_intermediate_size: number
  /** Width of an expert that sees every token, times the sigmoid of its own gate; 0 = none. */
  readonly shared_expert_intermediate_size: number
  readonly norm_topk_prob: boolean
  /** What the router makes of its logits. */
  readonly scoring_func: "softmax" | "sigmoid"
  readonly topk_method: TopkMethod
  /** Groups of neighbouring experts, and how many of them a token may use; 1 = no groups. */
  readonly n_group: number
  readonly topk_group: number
  /** Multiplies the weights of the chosen experts. */
  readonly routed_scaling_factor: number
  /** Experts that every token goes to, as one of their joint width; 0 = none, or of a width of its own. */
  readonly n_shared_experts: number
  /** The router sees the layer's input and not the attention's output. */
  readonly moe_enable_early_router: boolean
  /** Layer i has experts if (i + 1) is a multiple of this and i is not in `mlp_only_layers`. */
  readonly decoder_sparse_step: number
  readonly mlp_only_layers: readonly number[]
  readonly bos_token_id: number | undefined
  /** Every id that ends a turn or the text. */
  readonly eos_token_id: readonly number[]
  /** Of encoders only. */
  readonly encoder?: EncoderConfig | undefined
  /** What the checkpoint says its embeddings are; absent where it was made to generate. */
  readonly pooling?: Pooling | undefined
  readonly classifier?: ClassifierConfig | undefined
}

/** Whether the model has a head that makes tokens. */
export function canGenerate({ encoder, classifier }: ModelConfig): boolean {
  return encoder === undefined && classifier === undefined
}

/** Keys that a layer's attention sees (the query's own included), or 0 for all. */
export function layerWindow(config: ModelConfig, layer: number): number {
  return config.layer_types[layer] === "sliding_attention" ? (config.sliding_window ?? 0) : 0
}

/** Whether a layer keeps a state per sequence in place of keys and values per token. */
export function isLinearLayer(config: ModelConfig, layer: number): boolean {
  return config.layer_types[layer] === "linear_attention"
}

/** Place of a layer among those that keep the same kind of thing. */
export function cacheIndex(config: ModelConfig, layer: number): number {
  const linear = isLinearLayer(config, layer)
  let index = 0
  for (let i = 0; i < layer; i++) if (isLinearLayer(config, i) === linear) index++
  return index
}

/** Positions of one chunk of a layer's attention, or 0 for no chunks. */
export function layerChunk(config: ModelConfig, layer: number): number {
  return config.layer_types[layer] === "chunked_attention" ? (config.attention_chunk_size ?? 0) : 0
}

/** The configuration with fewer experts for each token than the model was made with. */
export function withExpertsPerToken(config: ModelConfig, count: number): ModelConfig {
  const { model_type, num_experts, num_experts_per_tok: own } = config
  if (num_experts === 0)
    throw new ConfigError(`--experts-per-token ${count}: this ${model_type} model has no experts`)
  if (!Number.isInteger(count) || count < 1 || count > own)
    throw new ConfigError(
      `--experts-per-token ${count}: expected 1 to ${own} (num_experts_per_tok of the model)`,
    )
  return Object.freeze({ ...config, num_experts_per_tok: count })
}

/** The rope of a layer. */
export function layerRope(config: ModelConfig, layer: number): RopeConfig {
  const isLocal = config.layer_types[layer] === "sliding_attention"
  return isLocal ? (config.rope_local ?? config.rope) : config.rope
}

/** Whether a layer's feed-forward part is a mixture of experts. */
export function isMoeLayer(config: ModelConfig, layer: number): boolean {
  if (config.num_experts === 0 || config.mlp_only_layers.includes(layer)) return false
  return (layer + 1) % config.decoder_sparse_step === 0
}

/**
 * Longest sequence the model is made for: its own, times the factor where the rope grows with the
 * length.
 */
export function maxContextLength(config: ModelConfig): number {
  const { type, factor, original_max_position_embeddings: original } = config.rope
  if (type === "dynamic") return Math.floor(config.max_position_embeddings * factor)
  if (type === "yarn")
    return Math.max(config.max_position_embeddings, Math.floor(original * factor))
  return config.max_position_embeddings
}

/**
 * Checks what no single field shows; messages start with `file` and name the key. Returns the
 * config frozen.
 */
export function checkedConfig(file: string, config: ModelConfig): ModelConfig {
  const fail = (detail: string): never => {
    throw new FormatError(file, detail)
  }
  const {
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    num_hidden_layers: layers,
  } = config
  if (heads % kvHeads !== 0)
    fail(`num_attention_heads: ${heads} is no multiple of num_key_value_heads ${kvHeads}`)
  if (config.layer_types.length !== layers) {
    fail(
      `layer_types: ${config.layer_types.length} entries for ${layers} layers (num_hidden_layers)`,
    )
  }
  if (config.layer_types.includes("sliding_attention") && config.sliding_window === undefined) {
    fail("sliding_window: missing, but layer_types has sliding_attention")
  }
  if (
    config.layer_types.includes("chunked_attention") &&
    config.attention_chunk_size === undefined
  ) {
    fail("attention_chunk_size: missing, but layer_types has chunked_attention")
  }
  if (config.layer_types.includes("linear_attention")) {
    const { linear_attention: linear } = config
    if (linear === undefined) fail(`layer_types: a ${config.model_type} has no linear_attention`)
    else if (linear.num_value_heads % linear.num_key_heads !== 0) {
      fail(
        `linear_num_value_heads: ${linear.num_value_heads} is no multiple of linear_num_key_heads ${linear.num_key_heads}`,
      )
    }
  }
  if (config.rope_layers.length !== layers) {
    fail(`rope layers: ${config.rope_layers.length} entries for ${layers} layers`)
  }
  for (const { rotary_dim: dim } of [config.rope, config.rope_local ?? config.rope]) {
    if (dim % 2 !== 0 || dim < 2 || dim > config.head_dim) {
      fail(`rotary dimension: ${dim}, expected an even number up to head_dim ${config.head_dim}`)
    }
  }
  if (config.num_experts > 0) {
    const { num_experts: experts, num_experts_per_tok: used } = config
    if (used < 1 || used > experts)
      fail(`num_experts_per_tok: ${used}, expected 1 to num_experts ${experts}`)
    const { n_group: groups, topk_group: kept } = config
    if (experts % groups !== 0)
      fail(`n_group: ${groups} groups do not divide ${experts} experts (num_experts)`)
    if (kept < 1 || kept > groups) fail(`topk_group: ${kept}, expected 1 to n_group ${groups}`)
    if (used > (experts / groups) * kept)
      fail(`num_experts_per_tok: ${used}, more than ${kept} groups of ${experts / groups} hold`)
  }
  return Object.freeze(config)
}

/** `hidden_size / num_attention_heads`, for files that leave head_dim to it. */
export function defaultHeadDim(file: string, hidden: number, heads: number): number {
  if (hidden % heads !== 0) {
    throw new FormatError(
      file,
      `head_dim: missing, and hidden_size ${hidden} is no multiple of ${heads} heads`,
    )
  }
  return hidden / heads
}

/** Layers of which every `pattern`-th is global and the others slide. */
export function patternLayerTypes(layers: number, pattern: number): LayerType[] {
  return Array.from({ length: layers }, (_, i) =>
    (i + 1) % pattern === 0 ? "full_attention" : "sliding_attention",
  )
}
