import { Linear } from "../nn/layers.ts"
import { registerModules, type RowGroups } from "../nn/module.ts"
import type { ModelConfig } from "./config.ts"
import {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
} from "./llama.ts"

// Llama under other names: InternLM's own checkpoints call the projections wqkv, wo, w1, w3 and w2, which weights/names.ts
// knows. The tree has Llama's names, so that GGUFs and checkpoints rewritten to Llama's shape load as well.

export class InternLM2MLP extends LlamaMLP {}

/** Llama's attention; in InternLM's own checkpoints q, k and v are one matrix, which has the rows of each kv head together. */
export class InternLM2Attention extends LlamaAttention {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx)
    const { hidden_size, num_attention_heads, num_key_value_heads: groups, head_dim } = config
    const queries = (num_attention_heads / groups) * head_dim
    const size = queries + 2 * head_dim
    const part = (start: number, count: number): Linear => {
      const grouped: RowGroups = { of: "wqkv", groups, size, start, count }
      return new Linear(hidden_size, groups * count, { bias: config.attention_bias, grouped })
    }
    this.q_proj = part(0, queries)
    this.k_proj = part(queries, head_dim)
    this.v_proj = part(queries + head_dim, head_dim)
  }
}

export class InternLM2DecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new InternLM2Attention(config, layerIdx),
      mlp: new InternLM2MLP(config),
    })
  }
}

export class InternLM2Model extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, InternLM2DecoderLayer)
  }
}

export class InternLM2ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new InternLM2Model(config))
  }
}

registerModules({
  InternLM2MLP,
  InternLM2Attention,
  InternLM2DecoderLayer,
  InternLM2Model,
  InternLM2ForCausalLM,
})
