import { existsSync } from "node:fs"
import { join } from "node:path"

import { z } from "zod"

import { FormatError } from "../errors.ts"
import { encoderFromJson } from "./config-encoder.ts"
import { experts } from "./config-hf-experts.ts"
import { ropes } from "./config-hf-rope.ts"
import { HfConfig } from "./config-hf-schema.ts"
import { TRAITS, type Traits } from "./config-hf-traits.ts"
import { parsed, readJson, shown, withoutUndefined } from "./config-json.ts"
import { classifierOf, poolingOfFolder } from "./config-pooling.ts"
import {
  type Activation,
  ACTIVATIONS,
  checkedConfig,
  type DecoderType,
  defaultHeadDim,
  ENCODER_TYPES,
  type LayerType,
  type LinearAttentionConfig,
  type MlaConfig,
  MODEL_TYPES,
  type ModelConfig,
  patternLayerTypes,
  type Pooling,
} from "./config.ts"
import { latentScale } from "./latent-scale.ts"

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
    poolingOfFolder(folder),
  )
}

/**
 * The configuration that a parsed config.json holds, as transformers 4 or 5 writes it. `file` is
 * for messages; `eos` replaces `eos_token_id`; `pooling` is what other files of the folder say.
 */
export function configFromJson(
  file: string,
  json: unknown,
  eos?: readonly number[],
  pooling?: Pooling,
): ModelConfig {
  const outer = parsed(file, "", json, z.record(z.string(), z.unknown()))
  const encoderType = ENCODER_TYPES.find((known) => known === outer["model_type"])
  if (encoderType !== undefined) return encoderFromJson(file, encoderType, outer, pooling)
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
      `quantization_config: ${shown(text["quantization_config"])}, read are quant_method ${[...QUANT_METHODS].join(", ")}, and mxfp4 of gpt_oss`,
      {
        hint: "use the model's GGUF or its unquantized checkpoint",
      },
    )
  }
  const traits = TRAITS[modelType]
  const local = text["num_local_experts"] ?? undefined
  const known = local === undefined ? text : { ...text, num_experts: text["num_experts"] ?? local }
  const given = { ...traits.defaults, ...withoutUndefined(known) }
  const c = parsed(file, "", aliased(given, traits), HfConfig, {
    ...(local !== undefined && text["num_experts"] === undefined
      ? { num_experts: "num_local_experts" }
      : {}),
    ...namesInFile(given, traits),
  })
  checkTokenIds(file, c)
  const head = classifierOf(file, text)
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
    ...(head === undefined
      ? pooling && { pooling }
      : // a score layer of a decoder has no bias
        { pooling: "rank" as const, classifier: { ...head, bias: false } }),
  })
}

/** Whether the weights are plain, quantised in a way that is read, or gpt-oss' experts in MXFP4. */
function isReadable(quantization: unknown, modelType: DecoderType): boolean {
  if (quantization === undefined || quantization === null) return true
  const method = z.object({ quant_method: z.string() }).safeParse(quantization).data?.quant_method
  if (method === "mxfp4") return modelType === "gpt_oss"
  return method !== undefined && QUANT_METHODS.has(method)
}

/** Of `quantization_config.quant_method`, for models of every type. */
const QUANT_METHODS: ReadonlySet<string> = new Set(["fp8", "compressed-tensors", "gptq", "awq"])

/** Language models whose type a checkpoint with other parts leaves out, or calls by a name of its own. */
const TEXT_TYPES: Readonly<Record<string, DecoderType>> = {
  gemma3: "gemma3_text",
  llama4: "llama4_text",
  qwen3_vl_text: "qwen3",
}

function knownType(type: unknown): DecoderType | undefined {
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

/** What the file calls the keys that it has under other names. */
function namesInFile(
  given: Readonly<Record<string, unknown>>,
  { aliases = {} }: Traits,
): Record<string, string> {
  return Object.fromEntries(Object.entries(aliases).filter(([, key]) => given[key] !== undefined))
}

/** Ids that begin and end a text are rows of the embeddings. */
function checkTokenIds(file: string, c: HfConfig): void {
  for (const key of ["bos_token_id", "eos_token_id"] as const) {
    const outside = list(c[key]).find((id) => id >= c.vocab_size)
    if (outside !== undefined)
      throw new FormatError(
        file,
        `${key}: ${outside}, expected an id below vocab_size ${c.vocab_size}`,
      )
  }
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

function eosIds(file: string, json: unknown): readonly number[] | undefined {
  const schema = z.object({ eos_token_id: HfConfig.shape.eos_token_id })
  const ids = list(parsed(file, "", json, schema).eos_token_id)
  return ids.length === 0 ? undefined : ids
}

function list(ids: number | number[] | null | undefined): number[] {
  return typeof ids === "number" ? [ids] : (ids ?? [])
}
