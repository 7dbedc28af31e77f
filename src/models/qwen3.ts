import type { ForwardBatch } from "../nn/forward-batch.ts"
import { RMSNorm } from "../nn/layers.ts"
import { registerModules } from "../nn/module.ts"
import { applyRotary, type PositionEmbeddings } from "../nn/rope.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { ModelConfig } from "./config.ts"
import {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
} from "./llama.ts"

export class Qwen3MLP extends LlamaMLP {}

/** Llama's attention with q and k RMS-normed per head before the rope. */
export class Qwen3Attention extends LlamaAttention {
  q_norm
  k_norm

  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx)
    const { head_dim, rms_norm_eps, norm_offset } = config
    this.q_norm = new RMSNorm(head_dim, rms_norm_eps, norm_offset)
    this.k_norm = new RMSNorm(head_dim, rms_norm_eps, norm_offset)
  }

  override forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { attn, headDim } = this
    const q = this.q_norm.forward(this.q_proj.forward(x).unflatten(-1, [attn.numHeads, headDim]))
    const k = this.k_norm.forward(this.k_proj.forward(x).unflatten(-1, [attn.numKVHeads, headDim]))
    const v = this.v_proj.forward(x).unflatten(-1, [attn.numKVHeads, headDim])
    applyRotary(q, k, positions)
    return this.o_proj.forward(attn.forward(q, k, v, batch).flatten(1))
  }
}

export class Qwen3DecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new Qwen3Attention(config, layerIdx),
      mlp: new Qwen3MLP(config),
    })
  }
}

export class Qwen3Model extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Qwen3DecoderLayer)
  }
}

export class Qwen3ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Qwen3Model(config))
  }
}

registerModules({ Qwen3MLP, Qwen3Attention, Qwen3DecoderLayer, Qwen3Model, Qwen3ForCausalLM })
