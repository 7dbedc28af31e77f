import type { KVLayerSpec } from "../kvcache/pool.ts"
import type { ModelConfig } from "../models/config.ts"

/** What each layer of a model caches per token. */
export function kvLayers(config: ModelConfig): KVLayerSpec[] {
  const { num_hidden_layers, num_key_value_heads: kvHeads, head_dim, mla } = config
  const layer: KVLayerSpec =
    mla === undefined
      ? { kvHeads, kDim: head_dim, vDim: head_dim }
      : {
          kvHeads: 1,
          kDim: mla.kv_lora_rank + mla.qk_rope_head_dim,
          vDim: mla.kv_lora_rank,
          valuesInKeys: true,
        }
  return Array.from({ length: num_hidden_layers }, () => layer)
}

/** Floats that one layer's attention makes per token: q, k, v and what they become. */
export function attentionFloats(config: ModelConfig): number {
  const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim, mla } = config
  if (mla === undefined) return 2 * (heads + 2 * kvHeads) * head_dim
  const latent = 2 * mla.kv_lora_rank + mla.qk_rope_head_dim
  return heads * (head_dim + latent + mla.v_head_dim) + 2 * latent + (mla.q_lora_rank ?? 0) * 2
}
