import { z } from "zod"

import { FormatError } from "../errors.ts"
import { ROPE_TYPES } from "../nn/rope.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { checkedConfig, isMoeLayer, LAYER_TYPES, type ModelConfig } from "./config.ts"

/** Holds, as JSON, what a model's configuration is beyond the keys that the format has. */
export const EXTRA_KEY = "kt.config"
const MAX_EXTRA_BYTES = 1_000_000

const positive = z.number().positive()
const factors = z.array(positive).max(65_536).optional()
const Rope = z
  .object({
    type: z.enum(ROPE_TYPES),
    theta: positive,
    rotary_dim: z.int().min(2).max(65_536),
    interleaved: z.boolean(),
    factor: positive.min(1),
    original_max_position_embeddings: z.int().min(1),
    attention_factor: positive,
    beta_fast: positive,
    beta_slow: positive,
    truncate: z.boolean(),
    low_freq_factor: positive,
    high_freq_factor: positive,
    short_factor: factors,
    long_factor: factors,
    freq_factors: factors,
  })
  .strict()

/** What may stand there: hyper-parameters that no tensor's shape or layout depends on. */
const Extra = z
  .object({
    hidden_act: z.string(),
    qk_norm: z.boolean(),
    embedding_scale: positive,
    attention_scale: positive,
    attn_logit_softcapping: positive.nullable(),
    final_logit_softcapping: positive.nullable(),
    sliding_window: z.int().min(1).nullable(),
    attention_chunk_size: z.int().min(1).nullable(),
    layer_types: z.array(z.enum(LAYER_TYPES)).max(4096),
    rope_layers: z.array(z.boolean()).max(4096),
    attn_temperature: z.object({ scale: z.number().nonnegative(), floor: positive }).nullable(),
    rope: Rope,
    rope_local: Rope.nullable(),
    norm_topk_prob: z.boolean(),
    scoring_func: z.enum(["softmax", "sigmoid"]),
    topk_method: z.string(),
    n_group: z.int().min(1),
    topk_group: z.int().min(1),
    routed_scaling_factor: positive,
    moe_enable_early_router: z.boolean(),
    decoder_sparse_step: z.int().min(1),
    mlp_only_layers: z.array(z.int().nonnegative()).max(4096),
  })
  .partial()
  .strict()

const KEYS = Object.keys(Extra.shape) as (keyof z.infer<typeof Extra> & keyof ModelConfig)[]

/** Keys of `wanted` whose values `standard`, read from the format's own keys, does not have. */
export function extraConfig(
  standard: ModelConfig,
  wanted: ModelConfig,
): { keys: string[]; json: string } | undefined {
  const keys = KEYS.filter(
    (key) =>
      !isSame(standard[key], wanted[key]) &&
      !isSameRope(key, standard, wanted) &&
      !isSameLayers(key, standard, wanted),
  )
  if (keys.length === 0) return undefined
  const values = keys.map((key) => [key, ownLayout(wanted[key], standard) ?? null])
  return { keys, json: JSON.stringify(Object.fromEntries(values)) }
}

/** `config` with what its file says beyond the format's own keys. */
export function withExtraConfig(gguf: GgufFile, config: ModelConfig): ModelConfig {
  const text = gguf.metadata.get(EXTRA_KEY)
  if (text === undefined) return config
  if (typeof text !== "string" || text.length > MAX_EXTRA_BYTES)
    throw new FormatError(gguf.path, `${EXTRA_KEY}: expected a JSON text`)
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    throw new FormatError(gguf.path, `${EXTRA_KEY}: is no valid JSON`, { cause })
  }
  const result = Extra.safeParse(json)
  if (!result.success) {
    const [issue] = result.error.issues
    throw new FormatError(
      gguf.path,
      `${EXTRA_KEY}.${issue?.path.join(".") ?? ""}: ${issue?.message ?? "is invalid"}`,
    )
  }
  const entries = Object.entries(result.data).map(([key, value]) => [key, value ?? undefined])
  return checkedConfig(gguf.path, { ...config, ...(Object.fromEntries(entries) as object) })
}

/** A rope's pairing is the file's, whatever the configuration it was written from had. */
function ownLayout(value: unknown, { rope }: ModelConfig): unknown {
  if (typeof value !== "object" || value === null || !("interleaved" in value)) return value
  return { ...value, interleaved: rope.interleaved }
}

/** Llama 3.1's scaling is stored as the divisors that come of it. */
function isSameRope(key: string, standard: ModelConfig, wanted: ModelConfig): boolean {
  if (key !== "rope" || wanted.rope.type !== "llama3") return false
  const { type, theta, rotary_dim, freq_factors } = standard.rope
  if (type !== "default" || freq_factors === undefined) return false
  return isSame(theta, wanted.rope.theta) && rotary_dim === wanted.rope.rotary_dim
}

/** Which layers have experts can be said in two ways. */
function isSameLayers(key: string, standard: ModelConfig, wanted: ModelConfig): boolean {
  if (key !== "mlp_only_layers" && key !== "decoder_sparse_step") return false
  const layers = Array.from({ length: wanted.num_hidden_layers }, (_, i) => i)
  return layers.every((i) => isMoeLayer(standard, i) === isMoeLayer(wanted, i))
}

/** Equal up to what F32 keeps; objects by the keys of both, but for a rope's pairing. */
function isSame(a: unknown, b: unknown): boolean {
  if (typeof a === "number" && typeof b === "number")
    return Math.abs(a - b) <= 1e-6 * Math.max(Math.abs(a), Math.abs(b))
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b
  const keys = new Set([...Object.keys(a), ...Object.keys(b)])
  keys.delete("interleaved")
  return [...keys].every((key) => isSame(Reflect.get(a, key), Reflect.get(b, key)))
}
