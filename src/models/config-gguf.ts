import { FormatError } from "../errors.ts"
import { ROPE_TYPES, type RopeConfig, type RopeType } from "../nn/rope.ts"
import { F32 } from "../tensor/dtype.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { encoderFromGguf, GGUF_ENCODERS } from "./config-encoder.ts"
import { withExtraConfig } from "./config-extra.ts"
import { Keys } from "./config-gguf-keys.ts"
import { TRAITS, type Traits } from "./config-gguf-traits.ts"
import { poolingOfGguf } from "./config-pooling.ts"
import {
  checkedConfig,
  defaultHeadDim,
  type LayerType,
  type LinearAttentionConfig,
  type MlaConfig,
  type ModelConfig,
  type ModelType,
  patternLayerTypes,
} from "./config.ts"
import { latentScale } from "./latent-scale.ts"
import { ropeConfig } from "./rope-config.ts"

/** Maverick, which has so many experts, is the Llama 4 without q/k norms; files do not say. */
const LLAMA4_PLAIN_EXPERTS = 128

/** `expert_gating_func` of files; softmax over the chosen experts equals that over all, renormalised. */
const SCORING: Readonly<Record<number, "softmax" | "sigmoid">> = {
  1: "softmax",
  2: "sigmoid",
  3: "softmax",
}

/** Gemma 3's every sixth layer is global, where the file does not say. */
const GEMMA_PATTERN = 6
/**
 * The 27B alone scales attention by hidden_size / heads; files do not say, its layer count tells it
 * apart.
 */
const GEMMA_27B_LAYERS = 62

/** The configuration of a GGUF, from its metadata and its tensors' shapes. */
export function configFromGguf(gguf: GgufFile): ModelConfig {
  return withExtraConfig(gguf, standardConfigFromGguf(gguf))
}

/** The same from the keys that the format has, which is what other programs read. */
export function standardConfigFromGguf(gguf: GgufFile): ModelConfig {
  const { path, architecture } = gguf
  const encoder = Object.hasOwn(GGUF_ENCODERS, architecture)
    ? GGUF_ENCODERS[architecture]
    : undefined
  if (encoder !== undefined) return encoderFromGguf(gguf, encoder)
  const known = Object.hasOwn(TRAITS, architecture) ? TRAITS[architecture] : undefined
  if (known === undefined) {
    const list = Object.keys(TRAITS).join(", ")
    throw new FormatError(
      path,
      `general.architecture: "${architecture}" is unknown; known are ${list}`,
    )
  }
  const keys = new Keys(gguf)
  const traits = (keys.count("expert_count") ?? 0) > 0 ? (known.withExperts ?? known) : known
  const numExperts = traits.moe
    ? keys.size("expert_count", 65_536)
    : (keys.count("expert_count") ?? 0)
  if (numExperts > 0 && !traits.moe) {
    throw new FormatError(
      path,
      `${architecture}.expert_count: ${numExperts}, only dense models of this architecture are known`,
    )
  }
  // layers that predict further tokens stand behind the others
  const layers = keys.size("block_count", 4096) - (keys.count("nextn_predict_layers", 64) ?? 0)
  if (layers < 1) keys.missing("block_count without nextn_predict_layers")
  const hidden = keys.size("embedding_length")
  const heads = keys.size("attention.head_count", 65_536)
  const mla = traits.mla ? latentAttention(keys, gguf) : undefined
  const headDim = mla
    ? mla.qk_nope_head_dim + mla.qk_rope_head_dim
    : keys.size("attention.key_length", 65_536, () => defaultHeadDim(path, hidden, heads))
  const valueDim = keys.count("attention.value_length") ?? headDim
  if (mla === undefined && valueDim !== headDim) {
    throw new FormatError(
      path,
      `${architecture}.attention.value_length: ${valueDim}, expected key_length ${headDim}`,
    )
  }
  const embedding = gguf.get("token_embd.weight")
  const vocab = embedding?.shape[0]
  if (vocab === undefined)
    throw new FormatError(path, "has no tensor token_embd.weight; a vocabulary alone is no model")
  const window = keys.count("attention.sliding_window")
  const layer_types = layerTypes(keys, traits, layers, window)
  const hasNope = traits.modelType === "smallthinker" ? (window ?? 0) > 0 : window !== 0
  const nope = hasNope ? traits.nope : undefined
  const slides = layer_types.includes("sliding_attention")
  const has = (name: string): boolean => gguf.get(name) !== undefined
  const score = scoring(keys, traits)
  const rotating = ropes(keys, gguf, traits, headDim)
  return checkedConfig(path, {
    model_type: mla && score === "sigmoid" ? "deepseek_v3" : traits.modelType,
    layout: "gguf",
    vocab_size: vocab,
    hidden_size: hidden,
    intermediate_size: keys.size("feed_forward_length"),
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: mla ? 1 : keys.size("attention.head_count_kv", 65_536, () => heads),
    head_dim: headDim,
    max_position_embeddings: keys.size("context_length", 1_073_741_824),
    rms_norm_eps:
      keys.float("attention.layer_norm_rms_epsilon", 1) ??
      keys.missing("attention.layer_norm_rms_epsilon"),
    hidden_act: traits.act ?? (traits.gemma ? "gelu_pytorch_tanh" : "silu"),
    tie_word_embeddings: !has("output.weight"),
    attention_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
    attention_output_bias: has("blk.0.attn_output.bias"),
    mlp_bias: has("blk.0.ffn_down.bias"),
    qk_norm: qkNorm(traits, numExperts, has("blk.0.attn_q_norm.weight")),
    norm_offset: 0, // The converter has added Gemma's 1 to the weights.
    embedding_scale: traits.gemma ? Math.sqrt(hidden) : 1,
    attention_scale: mla
      ? latentScale(mla, rotating.rope, mscaleAllDim(keys))
      : (keys.float("attention.scale") ?? attentionScale(traits, layers, hidden, heads, headDim)),
    attn_logit_softcapping: keys.float("attn_logit_softcapping"),
    final_logit_softcapping: keys.float("final_logit_softcapping"),
    sliding_window: slides ? window : undefined,
    attention_chunk_size: traits.chunked?.size,
    layer_types,
    linear_attention: traits.deltaNet ? deltaNet(keys, has("blk.0.ssm_in.weight")) : undefined,
    rope_layers: Array.from({ length: layers }, (_, i) => nope?.(i) !== true),
    attn_temperature: nope === undefined ? undefined : traits.chunked?.temperature,
    mla,
    ...rotating,
    num_experts: numExperts,
    num_experts_per_tok: keys.count("expert_used_count") ?? 0,
    moe_intermediate_size: traits.moe
      ? keys.size("expert_feed_forward_length", undefined, () =>
          traits.modelType === "mixtral"
            ? keys.size("feed_forward_length")
            : keys.missing("expert_feed_forward_length"),
        )
      : 0,
    shared_expert_intermediate_size: traits.gatedExpert
      ? keys.size("expert_shared_feed_forward_length", undefined, () =>
          keys.size("feed_forward_length"),
        )
      : 0,
    norm_topk_prob: traits.moe
      ? (keys.flag("expert_weights_norm") ?? traits.rawWeights === undefined)
      : false,
    scoring_func: score,
    ...routing(keys, gguf, traits, layers, numExperts),
    moe_enable_early_router: traits.modelType === "smallthinker",
    decoder_sparse_step: keys.size("interleave_moe_layer_step", 4096, () =>
      traits.chunked ? keys.missing("interleave_moe_layer_step") : 1,
    ),
    mlp_only_layers: denseLayers(keys, layers, has),
    bos_token_id: keys.tokenId("bos", vocab),
    eos_token_id: [
      ...new Set([
        keys.tokenId("eos", vocab),
        keys.tokenId("eot", vocab),
        keys.tokenId("eom", vocab),
      ]),
    ].filter((id) => id !== undefined),
    ...poolingOfGguf(gguf),
  })
}

/** Model types that GGUFs hold as another. */
const GGUF_TYPES: Readonly<Partial<Record<ModelType, ModelType>>> = {
  mistral: "llama",
  kimi_k2: "deepseek_v3",
}

/**
 * A configuration read from a Hugging Face folder, for weights that come from a GGUF instead: the
 * hyper-parameters stay, what follows from the stored layout of the weights (order of q and k rows,
 * Gemma's norms, a missing output matrix) is the GGUF's.
 */
export function withGgufLayout(config: ModelConfig, gguf: GgufFile): ModelConfig {
  const own = configFromGguf(gguf)
  const expected = GGUF_TYPES[config.model_type] ?? config.model_type
  if (own.model_type !== expected) {
    throw new FormatError(
      gguf.path,
      `general.architecture: "${gguf.architecture}" holds no ${config.model_type} model`,
    )
  }
  for (const key of [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
  ] as const) {
    if (own[key] !== config[key])
      throw new FormatError(gguf.path, `${key}: ${own[key]}, but config.json says ${config[key]}`)
  }
  const { interleaved } = own.rope
  return Object.freeze({
    ...config,
    layout: "gguf" as const,
    vocab_size: own.vocab_size, // Converters drop rows that only pad the embedding.
    norm_offset: own.norm_offset,
    linear_attention: own.linear_attention,
    // the folder's head may be left out of the file, or cut to what ranks texts
    encoder: own.encoder,
    classifier: own.classifier,
    pooling: own.pooling ?? config.pooling,
    tie_word_embeddings: own.tie_word_embeddings,
    mla: own.mla && config.mla && Object.freeze({ ...config.mla, split_kv_b: own.mla.split_kv_b }),
    rope: Object.freeze({ ...config.rope, interleaved }),
    rope_local: config.rope_local && Object.freeze({ ...config.rope_local, interleaved }),
  })
}

function layerTypes(
  keys: Keys,
  traits: Traits,
  layers: number,
  window: number | undefined,
): readonly LayerType[] {
  const uniform = (type: LayerType): LayerType[] => Array<LayerType>(layers).fill(type)
  if (traits.deltaNet) {
    const recurrent = keys.flags("attention.recurrent_layers")
    const interval = keys.size("full_attention_interval", 4096, () => 4)
    return Array.from({ length: layers }, (_, i) =>
      (recurrent?.[i] ?? (i + 1) % interval !== 0) ? "linear_attention" : "full_attention",
    )
  }
  if (traits.chunked !== undefined && window !== 0) {
    return Array.from({ length: layers }, (_, i) =>
      traits.nope?.(i) ? "full_attention" : "chunked_attention",
    )
  }
  if (window === undefined || window === 0) return uniform("full_attention")
  const slides = keys.flags("attention.sliding_window_pattern")
  if (slides !== undefined) return slides.map((s) => (s ? "sliding_attention" : "full_attention"))
  const pattern = keys.count("attention.sliding_window_pattern", 4096)
  if (traits.gemma || pattern !== undefined)
    return patternLayerTypes(layers, pattern ?? GEMMA_PATTERN)
  const { slides: slidesAt } = traits
  if (slidesAt !== undefined) {
    return Array.from({ length: layers }, (_, i) =>
      slidesAt(i) ? "sliding_attention" : "full_attention",
    )
  }
  return uniform("sliding_attention")
}

/** `fused_qkvz`: files of early converters keep the order of the Hugging Face checkpoint. */
function deltaNet(keys: Keys, fused_qkvz: boolean): LinearAttentionConfig {
  const num_value_heads = keys.size("ssm.time_step_rank", 65_536)
  const inner = keys.size("ssm.inner_size")
  if (inner % num_value_heads !== 0)
    keys.unfit("ssm.inner_size", inner, `a multiple of ssm.time_step_rank ${num_value_heads}`)
  return {
    conv_kernel_dim: keys.size("ssm.conv_kernel", 16),
    num_key_heads: keys.size("ssm.group_count", 65_536),
    num_value_heads,
    key_head_dim: keys.size("ssm.state_size", 256),
    value_head_dim: inner / num_value_heads,
    fused_qkvz,
  }
}

/** Layers that the file says to be dense, and those without a router where others have one. */
function denseLayers(
  keys: Keys,
  layers: number,
  has: (name: string) => boolean,
): readonly number[] {
  const leading = keys.count("leading_dense_block_count", 4096) ?? 0
  const routes = Array.from({ length: layers }, (_, i) => has(`blk.${i}.ffn_gate_inp.weight`))
  const some = routes.includes(true)
  return routes.flatMap((hasRouter, i) => (i < leading || (some && !hasRouter) ? [i] : []))
}

function qkNorm({ chunked, qkNorm: has }: Traits, experts: number, inFile: boolean): boolean {
  if (chunked !== undefined) return experts !== LLAMA4_PLAIN_EXPERTS
  return has === "file" ? inFile : has === true
}

function scoring(keys: Keys, traits: Traits): "softmax" | "sigmoid" {
  if (traits.chunked !== undefined) return "sigmoid"
  // 0 stands for "not said"
  const func = keys.count("expert_gating_func", 255) || (traits.sigmoid ? 2 : 1)
  return SCORING[func] ?? keys.unknown("expert_gating_func", func, Object.keys(SCORING))
}

function latentAttention(keys: Keys, gguf: GgufFile): MlaConfig {
  // Mistral Large 3 shares the architecture and scales queries by their positions
  const temperature = keys.float("attention.temperature_scale")
  if (temperature !== undefined)
    keys.unknown("attention.temperature_scale", temperature, ["none or 0"])
  const rope = keys.size("rope.dimension_count", 65_536)
  // files of before the split hold a head's own sizes under the common keys
  const key = keys.size("attention.key_length_mla", 65_536, () =>
    keys.size("attention.key_length", 65_536),
  )
  const value = keys.size("attention.value_length_mla", 65_536, () =>
    keys.size("attention.value_length", 65_536),
  )
  if (key <= rope) keys.unknown("attention.key_length_mla", key, [`more than ${rope}`])
  // Lite models name a rank they do not have
  const hasRank = gguf.get("blk.0.attn_q_a.weight") !== undefined
  return Object.freeze({
    q_lora_rank: hasRank ? keys.size("attention.q_lora_rank", 1_048_576) : undefined,
    kv_lora_rank: keys.size("attention.kv_lora_rank", 1_048_576),
    qk_nope_head_dim: key - rope,
    qk_rope_head_dim: rope,
    v_head_dim: value,
    split_kv_b: gguf.get("blk.0.attn_k_b.weight") !== undefined,
  })
}

/** The files' multiplier is 0.1 mscale_all_dim. */
function mscaleAllDim(keys: Keys): number | undefined {
  const multiplier = keys.float("rope.scaling.yarn_log_multiplier")
  return multiplier === undefined ? undefined : multiplier / 0.1
}

/** Groups of published models, by their experts; files of before 2025-10 leave them out. */
const EXPERT_GROUPS: Readonly<Record<number, readonly [groups: number, kept: number]>> = {
  160: [8, 3],
  256: [8, 4],
}

function routing(
  keys: Keys,
  gguf: GgufFile,
  traits: Traits,
  layers: number,
  experts: number,
): Pick<
  ModelConfig,
  "topk_method" | "n_group" | "topk_group" | "routed_scaling_factor" | "n_shared_experts"
> {
  const scale = keys.float("expert_weights_scale") ?? 1
  const shared = keys.count("expert_shared_count", 4096) ?? 0
  const [groups, kept] = (traits.mla && EXPERT_GROUPS[experts]) ?? [1, 1]
  const n_group = keys.count("expert_group_count", 65_536) || groups
  const hasBias = gguf.get(`blk.${layers - 1}.exp_probs_b.bias`) !== undefined
  return {
    topk_method: hasBias ? "noaux_tc" : n_group > 1 ? "group_limited_greedy" : "greedy",
    n_group,
    topk_group: n_group > 1 ? keys.count("expert_group_used_count", 65_536) || kept : 1,
    routed_scaling_factor: scale,
    n_shared_experts: shared,
  }
}

function attentionScale(
  traits: Traits,
  layers: number,
  hidden: number,
  heads: number,
  headDim: number,
): number {
  return 1 / Math.sqrt(traits.gemma && layers === GEMMA_27B_LAYERS ? hidden / heads : headDim)
}

function ropes(
  keys: Keys,
  gguf: GgufFile,
  traits: Traits,
  headDim: number,
): { rope: RopeConfig; rope_local: RopeConfig | undefined } {
  const { path, architecture } = gguf
  const longest = keys.size("context_length", 1_073_741_824)
  const original = keys.count("rope.scaling.original_context_length", 1_073_741_824)
  const long = floats(gguf, "rope_factors_long.weight")
  const short = floats(gguf, "rope_factors_short.weight")
  const attnFactor = keys.float("rope.scaling.attn_factor")
  const type = long === undefined ? ropeType(keys, path, architecture) : "longrope"
  const common = {
    rotary_dim: keys.count("rope.dimension_count") ?? headDim,
    interleaved: traits.interleaved ?? false,
    max_position_embeddings: longest,
  }
  const theta = keys.float("rope.freq_base") ?? 10_000
  const factor = keys.float("rope.scaling.factor") ?? keys.float("rope.scale_linear")
  const rope = ropeConfig(path, `${architecture}.rope`, {
    ...common,
    type,
    theta,
    factor: type === "longrope" || type === "default" ? undefined : factor,
    original_max_position_embeddings: original,
    // The file's factor multiplies YaRN's own; longrope's stands alone.
    attention_factor:
      type === "yarn" && attnFactor !== undefined
        ? attnFactor * (1 + 0.1 * Math.log(factor ?? 1))
        : attnFactor,
    beta_fast: keys.float("rope.scaling.yarn_beta_fast"),
    beta_slow: keys.float("rope.scaling.yarn_beta_slow"),
    ...(traits.mla ? { mscale: mscaleAllDim(keys), mscale_all_dim: mscaleAllDim(keys) } : {}),
    truncate: traits.exactYarn ? false : undefined,
    short_factor: short,
    long_factor: long,
    freq_factors: floats(gguf, "rope_freqs.weight"),
  })
  if (!traits.gemma) return { rope, rope_local: undefined }
  const local = keys.float("rope.freq_base_swa") ?? 10_000
  return {
    rope,
    rope_local: ropeConfig(path, `${architecture}.rope.freq_base_swa`, {
      ...common,
      type: "default",
      theta: local,
    }),
  }
}

function ropeType(keys: Keys, path: string, architecture: string): RopeType {
  const name = keys.text("rope.scaling.type")
  if (name === undefined)
    return keys.float("rope.scale_linear") === undefined ? "default" : "linear"
  const type = ROPE_TYPES.find((known) => known === (name === "none" ? "default" : name))
  if (type === undefined) {
    throw new FormatError(
      path,
      `${architecture}.rope.scaling.type: "${name}" is unknown; known are none, ${ROPE_TYPES.join(", ")}`,
    )
  }
  return type
}

/** The values of a small F32 tensor, or undefined where the file has none of that name. */
function floats(gguf: GgufFile, name: string): number[] | undefined {
  const entry = gguf.get(name)
  if (entry === undefined) return undefined
  if (entry.dtype !== F32 || entry.shape.length !== 1) {
    throw new FormatError(
      entry.file,
      `tensor "${name}": ${entry.dtype.name} [${entry.shape.join(", ")}], expected a vector of F32`,
    )
  }
  return Array.from(new Float32Array(new Uint8Array(gguf.bytes(name)).buffer))
}
