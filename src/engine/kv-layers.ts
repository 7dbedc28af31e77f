import type { EngineConfig } from "../config.ts"
import { ConfigError } from "../errors.ts"
import type { KVLayerSpec } from "../kvcache/pool.ts"
import type { StateLayerSpec } from "../kvcache/state-pool.ts"
import { isLinearLayer, maxContextLength, type ModelConfig } from "../models/config.ts"
import { EXPANDED_BYTES } from "../nn/latent-attention.ts"
import { BF16, type DTypeInfo, F8_E4M3, F16, F32, Q8_0 } from "../tensor/dtype.ts"

const KV_TYPES = { f16: F16, f32: F32, q8_0: Q8_0, bf16: BF16, f8: F8_E4M3 } as const
/** Those that the CPU's attention reads. */
const HOST_TYPES: ReadonlySet<DTypeInfo> = new Set([F16, F32, Q8_0])

/**
 * The type of a model's KV cache. States of linear attention are F32 whatever it is.
 *
 * @throws ConfigError where keys or values of a head are no whole blocks of the type
 */
export function kvType(
  { kvDtype, precision }: Pick<EngineConfig, "kvDtype" | "precision">,
  layers: readonly KVLayerSpec[],
): DTypeInfo {
  const dtype = KV_TYPES[kvDtype === "auto" ? (precision === "f32" ? "f32" : "f16") : kvDtype]
  for (const { kDim, vDim } of layers) {
    const uneven = [kDim, vDim].find((dim) => dim % dtype.blockSize !== 0)
    if (uneven !== undefined)
      throw new ConfigError(
        `--kv-dtype ${kvDtype}: the model's heads have ${uneven} values, no whole blocks of ${dtype.blockSize}`,
      )
  }
  return dtype
}

/** @throws ConfigError where the CPU keeps a cache of a type that only devices read */
export function checkHostCache(dtype: DTypeInfo, isHost: boolean): void {
  if (isHost && !HOST_TYPES.has(dtype))
    throw new ConfigError(
      `--kv-dtype: a cache of ${dtype.name} needs a GPU for every layer's attention, the CPU reads f16, f32 and q8_0`,
    )
}

/** What each attention layer of a model caches per token, in order. */
export function kvLayers(config: ModelConfig): KVLayerSpec[] {
  const { num_key_value_heads: kvHeads, head_dim, mla } = config
  // an encoder computes a text as a whole, so that one layer's keys and values do for all layers
  if (config.encoder !== undefined) return [{ kvHeads, kDim: head_dim, vDim: head_dim }]
  const layer: KVLayerSpec =
    mla === undefined
      ? { kvHeads, kDim: head_dim, vDim: head_dim }
      : {
          kvHeads: 1,
          kDim: mla.kv_lora_rank + mla.qk_rope_head_dim,
          vDim: mla.kv_lora_rank,
          valuesInKeys: true,
        }
  return config.layer_types.flatMap((_, i) => (isLinearLayer(config, i) ? [] : [layer]))
}

/** Floats that one layer's attention makes per token, of the kind that makes most: q, k, v and what they become. */
export function attentionFloats(config: ModelConfig): number {
  return Math.max(softmaxFloats(config), linearFloats(config))
}

function softmaxFloats(config: ModelConfig): number {
  const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim, mla } = config
  if (mla === undefined) return 2 * (heads + 2 * kvHeads) * head_dim
  const latent = 2 * mla.kv_lora_rank + mla.qk_rope_head_dim
  return heads * (head_dim + latent + mla.v_head_dim) + 2 * latent + (mla.q_lora_rank ?? 0) * 2
}

/** Bytes that keys and values made of latents take while a layer attends to a long prompt. */
export function expandedBytes(config: ModelConfig): number {
  const { mla, num_attention_heads: heads } = config
  if (mla === undefined) return 0
  const { kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim: rotary, v_head_dim } = mla
  const perToken = kv_lora_rank + rotary + heads * (qk_nope_head_dim + rotary + v_head_dim)
  return Math.min(EXPANDED_BYTES, 4 * perToken * maxContextLength(config))
}

/** What each linear-attention layer keeps per sequence, in order. */
export function stateLayers(config: ModelConfig): StateLayerSpec[] {
  const { linear_attention: linear } = config
  if (linear === undefined) return []
  const { num_key_heads, num_value_heads, key_head_dim, value_head_dim } = linear
  const layer: StateLayerSpec = {
    convInputs: linear.conv_kernel_dim - 1,
    convChannels: 2 * num_key_heads * key_head_dim + num_value_heads * value_head_dim,
    heads: num_value_heads,
    kDim: key_head_dim,
    vDim: value_head_dim,
  }
  return config.layer_types.flatMap((_, i) => (isLinearLayer(config, i) ? [layer] : []))
}

/**
 * Slots of a state cache: one for each sequence that runs, and with a prefix cache two more for each, so that the states
 * at the ends of its prompt and of its answer can be found by the next turn; states are large, so there are not more.
 */
export function stateSlots(running: number, prefixCache: boolean): number {
  return running * (prefixCache ? 3 : 1)
}

/** q, k, v before and after the convolution, z and the output. */
function linearFloats(config: ModelConfig): number {
  const { linear_attention: linear } = config
  if (linear === undefined) return 0
  const keys = linear.num_key_heads * linear.key_head_dim
  const values = linear.num_value_heads * linear.value_head_dim
  return 2 * (2 * keys + values) + 2 * values + 2 * linear.num_value_heads
}
