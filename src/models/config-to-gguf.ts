import { FormatError } from "../errors.ts"
import type { RopeConfig } from "../nn/rope.ts"
import type { GgufField } from "../weights/gguf-writer.ts"
import { isMoeLayer, type ModelConfig } from "./config.ts"

type Fields = Map<string, GgufField>

/** How a family is written as GGUF; the inverse of what config-gguf.ts reads. */
interface Family {
  /** `general.architecture`. */
  readonly architecture: string
  /** The rope turns adjacent pairs in the file, so that rows of q and k of other checkpoints are permuted. */
  readonly interleaved?: true
  /** Keys beyond those that all families have. */
  readonly more?: (config: ModelConfig, fields: FieldWriter) => void
}

/** Keyed by `model_type`. A family whose names are in weights/names.ts is one entry here. */
const FAMILIES: Readonly<Record<string, Family>> = {
  llama: { architecture: "llama", interleaved: true },
  mistral: { architecture: "llama", interleaved: true },
  mixtral: { architecture: "llama", interleaved: true },
  internlm2: { architecture: "internlm2", interleaved: true },
  smollm3: { architecture: "smollm3", interleaved: true },
  qwen2: { architecture: "qwen2" },
  qwen3: { architecture: "qwen3" },
  gemma3_text: {
    architecture: "gemma3",
    more: ({ rope_local, sliding_window, layer_types }, fields) => {
      if (rope_local !== undefined) fields.f32("rope.freq_base_swa", rope_local.theta)
      if (sliding_window === undefined) return
      const period = layer_types.indexOf("full_attention") + 1
      const isPeriodic = layer_types.every(
        (type, i) => (type === "full_attention") === ((i + 1) % period === 0),
      )
      if (period > 0 && isPeriodic) fields.u32("attention.sliding_window_pattern", period)
    },
  },
  phi3: {
    architecture: "phi3",
    // zero tells files without a window from those that leave it out
    more: ({ sliding_window }, fields) =>
      fields.u32("attention.sliding_window", sliding_window ?? 0),
  },
  qwen2_moe: { architecture: "qwen2moe" },
  qwen3_moe: { architecture: "qwen3moe" },
  qwen3_next: { architecture: "qwen3next", more: deltaNet },
  glm4_moe: { architecture: "glm4moe", more: leadingDense },
  minimax_m2: { architecture: "minimax-m2" },
  ernie4_5_moe: {
    architecture: "ernie4_5-moe",
    interleaved: true,
    more: (config, fields) => {
      leadingDense(config, fields)
      fields.u32("interleave_moe_layer_step", config.decoder_sparse_step)
      const width = config.n_shared_experts * config.moe_intermediate_size
      if (width > 0) fields.u32("expert_shared_feed_forward_length", width)
    },
  },
  smallthinker: { architecture: "smallthinker" },
  llama4_text: {
    architecture: "llama4",
    interleaved: true,
    more: (config, fields) => {
      fields.u32("interleave_moe_layer_step", sparseStep(config))
      fields.u32("expert_shared_feed_forward_length", config.moe_intermediate_size)
      if (config.attention_chunk_size === undefined) fields.u32("attention.sliding_window", 0)
    },
  },
  gpt_oss: { architecture: "gpt-oss" },
  deepseek_v2: { architecture: "deepseek2", interleaved: true, more: latent },
  deepseek_v3: { architecture: "deepseek2", interleaved: true, more: latent },
  kimi_k2: { architecture: "deepseek2", interleaved: true, more: latent },
}

/** How a model type is written, or an error that lists those that can be. */
export function ggufFamily(file: string, modelType: string): Family {
  const family = Object.hasOwn(FAMILIES, modelType) ? FAMILIES[modelType] : undefined
  if (family !== undefined) return family
  throw new FormatError(
    file,
    `model_type: ${modelType} cannot be written as GGUF; known are ${Object.keys(FAMILIES).join(", ")}`,
  )
}

/** The architecture's keys of a configuration, `general.architecture` first. */
export function ggufConfigFields(file: string, config: ModelConfig): Fields {
  const family = ggufFamily(file, config.model_type)
  const { architecture, more } = family
  const fields: Fields = new Map()
  fields.set("general.architecture", { type: "string", value: architecture })
  const out = new FieldWriter(fields, architecture)
  out.u32("block_count", config.num_hidden_layers)
  out.u32("context_length", config.max_position_embeddings)
  out.u32("embedding_length", config.hidden_size)
  out.u32("feed_forward_length", config.intermediate_size)
  out.u32("attention.head_count", config.num_attention_heads)
  out.u32("attention.head_count_kv", config.num_key_value_heads)
  out.u32("attention.key_length", config.head_dim)
  out.u32("attention.value_length", config.head_dim)
  out.f32("attention.layer_norm_rms_epsilon", config.rms_norm_eps)
  out.u32("vocab_size", config.vocab_size)
  if (config.layer_types.includes("sliding_attention"))
    out.u32("attention.sliding_window", config.sliding_window ?? 0)
  if (config.attn_logit_softcapping !== undefined)
    out.f32("attn_logit_softcapping", config.attn_logit_softcapping)
  if (config.final_logit_softcapping !== undefined)
    out.f32("final_logit_softcapping", config.final_logit_softcapping)
  ropeFields(config, out)
  expertFields(config, out)
  more?.(config, out)
  return fields
}

/** Small tensors that hold what keys cannot: divisors of the rope's frequencies. */
export function ggufConfigTensors({ rope }: ModelConfig): Map<string, Float32Array> {
  const tensors = new Map<string, Float32Array>()
  if (rope.type === "llama3")
    tensors.set("rope_freqs.weight", Float32Array.from(llama3Factors(rope)))
  else if (rope.freq_factors !== undefined)
    tensors.set("rope_freqs.weight", Float32Array.from(rope.freq_factors))
  const { long_factor, short_factor } = rope
  if (rope.type === "longrope" && long_factor !== undefined && short_factor !== undefined) {
    tensors.set("rope_factors_long.weight", Float32Array.from(long_factor))
    tensors.set("rope_factors_short.weight", Float32Array.from(short_factor))
  }
  return tensors
}

/** By what Llama 3.1's scaling divides each frequency (`rope_type` llama3 of transformers). */
function llama3Factors(rope: RopeConfig): number[] {
  const { theta, rotary_dim, factor, low_freq_factor: low, high_freq_factor: high } = rope
  return Array.from({ length: rotary_dim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * i) / rotary_dim)
    const turns = rope.original_max_position_embeddings / wavelength
    if (turns > high) return 1
    if (turns < low) return factor
    const smooth = (turns - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
  })
}

function ropeFields(config: ModelConfig, out: FieldWriter): void {
  const { rope } = config
  out.u32("rope.dimension_count", rope.rotary_dim)
  out.f32("rope.freq_base", rope.theta)
  const { type, factor, attention_factor } = rope
  if (type === "linear") {
    out.text("rope.scaling.type", "linear")
    out.f32("rope.scaling.factor", factor)
  } else if (type === "yarn") {
    out.text("rope.scaling.type", "yarn")
    out.f32("rope.scaling.factor", factor)
    out.u32("rope.scaling.original_context_length", rope.original_max_position_embeddings)
    // the format's factor multiplies YaRN's own, which latent attention's multiplier takes back
    const own = 1 + 0.1 * Math.log(factor)
    const implied = latentMultiplier(config) === undefined ? own : 1
    if (Math.abs(attention_factor / implied - 1) > 1e-6)
      out.f32("rope.scaling.attn_factor", attention_factor / own)
    out.f32("rope.scaling.yarn_beta_fast", rope.beta_fast)
    out.f32("rope.scaling.yarn_beta_slow", rope.beta_slow)
  } else if (type === "longrope") {
    out.text("rope.scaling.type", "longrope")
    out.u32("rope.scaling.original_context_length", rope.original_max_position_embeddings)
    out.f32("rope.scaling.attn_factor", attention_factor)
  }
}

function expertFields(config: ModelConfig, out: FieldWriter): void {
  if (config.num_experts === 0) return
  out.u32("expert_count", config.num_experts)
  out.u32("expert_used_count", config.num_experts_per_tok)
  out.u32("expert_feed_forward_length", config.moe_intermediate_size)
  out.u32("expert_gating_func", config.scoring_func === "sigmoid" ? 2 : 1)
  out.bool("expert_weights_norm", config.norm_topk_prob)
  if (config.routed_scaling_factor !== 1)
    out.f32("expert_weights_scale", config.routed_scaling_factor)
  if (config.n_shared_experts > 0) out.u32("expert_shared_count", config.n_shared_experts)
  if (config.n_group > 1) {
    out.u32("expert_group_count", config.n_group)
    out.u32("expert_group_used_count", config.topk_group)
  }
  if (config.shared_expert_intermediate_size > 0)
    out.u32("expert_shared_feed_forward_length", config.shared_expert_intermediate_size)
}

/** Every how many layers there are experts. */
function sparseStep(config: ModelConfig): number {
  const layers = Array.from({ length: config.num_hidden_layers }, (_, i) => i)
  const first = layers.findIndex((i) => isMoeLayer(config, i))
  return first < 0 ? config.num_hidden_layers + 1 : first + 1
}

function leadingDense({ mlp_only_layers, num_hidden_layers }: ModelConfig, out: FieldWriter): void {
  const isDense = (layer: number): boolean => mlp_only_layers.includes(layer)
  let count = 0
  while (count < num_hidden_layers && isDense(count)) count++
  out.u32("leading_dense_block_count", count)
}

function latent(config: ModelConfig, out: FieldWriter): void {
  const { mla } = config
  if (mla === undefined) return
  leadingDense(config, out)
  out.u32("attention.head_count_kv", 1)
  if (mla.q_lora_rank !== undefined) out.u32("attention.q_lora_rank", mla.q_lora_rank)
  out.u32("attention.kv_lora_rank", mla.kv_lora_rank)
  out.u32("attention.key_length", mla.kv_lora_rank + mla.qk_rope_head_dim)
  out.u32("attention.value_length", mla.kv_lora_rank)
  out.u32("attention.key_length_mla", mla.qk_nope_head_dim + mla.qk_rope_head_dim)
  out.u32("attention.value_length_mla", mla.v_head_dim)
  out.u32("rope.dimension_count", mla.qk_rope_head_dim)
  // always there: llama.cpp would not load a file without it
  out.u32("expert_shared_count", config.n_shared_experts)
  if (config.routed_scaling_factor === 1) out.f32("expert_weights_scale", 1)
  const multiplier = latentMultiplier(config)
  if (multiplier !== undefined) out.f32("rope.scaling.yarn_log_multiplier", multiplier)
}

/** 0.1 mscale_all_dim, which the scale of latent attention under YaRN was made with. */
function latentMultiplier({ mla, rope, attention_scale }: ModelConfig): number | undefined {
  if (mla === undefined || rope.type !== "yarn" || rope.factor <= 1) return undefined
  const magnitude = Math.sqrt(
    attention_scale * Math.sqrt(mla.qk_nope_head_dim + mla.qk_rope_head_dim),
  )
  return magnitude - 1 > 1e-6 ? (magnitude - 1) / Math.log(rope.factor) : undefined
}

function deltaNet({ linear_attention: linear, layer_types }: ModelConfig, out: FieldWriter): void {
  if (linear === undefined) return
  out.u32("ssm.conv_kernel", linear.conv_kernel_dim)
  out.u32("ssm.group_count", linear.num_key_heads)
  out.u32("ssm.time_step_rank", linear.num_value_heads)
  out.u32("ssm.state_size", linear.key_head_dim)
  out.u32("ssm.inner_size", linear.num_value_heads * linear.value_head_dim)
  const interval = layer_types.indexOf("full_attention") + 1
  if (interval > 0) out.u32("full_attention_interval", interval)
}

/** Writes keys below the architecture's name. */
class FieldWriter {
  readonly #fields: Fields
  readonly #prefix: string

  constructor(fields: Fields, architecture: string) {
    this.#fields = fields
    this.#prefix = architecture
  }

  u32(key: string, value: number): void {
    this.#fields.set(`${this.#prefix}.${key}`, { type: "u32", value })
  }

  f32(key: string, value: number): void {
    this.#fields.set(`${this.#prefix}.${key}`, { type: "f32", value: Math.fround(value) })
  }

  text(key: string, value: string): void {
    this.#fields.set(`${this.#prefix}.${key}`, { type: "string", value })
  }

  bool(key: string, value: boolean): void {
    this.#fields.set(`${this.#prefix}.${key}`, { type: "bool", value })
  }
}
