import type { ForwardBatch } from "../nn/forward-batch.ts"
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

export class SmolLM3MLP extends LlamaMLP {}

/** Llama's attention; every fourth layer (of published models) knows no positions. */
export class SmolLM3Attention extends LlamaAttention {
  readonly usesRope: boolean

  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx)
    this.usesRope = config.rope_layers[layerIdx] === true
  }

  override forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { attn, headDim } = this
    const q = this.q_proj.forward(x).unflatten(-1, [attn.numHeads, headDim])
    const k = this.k_proj.forward(x).unflatten(-1, [attn.numKVHeads, headDim])
    const v = this.v_proj.forward(x).unflatten(-1, [attn.numKVHeads, headDim])
    if (this.usesRope) applyRotary(q, k, positions)
    return this.o_proj.forward(attn.forward(q, k, v, batch).flatten(1))
  }
}

export class SmolLM3DecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new SmolLM3Attention(config, layerIdx),
      mlp: new SmolLM3MLP(config),
    })
  }
}

export class SmolLM3Model extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, SmolLM3DecoderLayer)
  }
}

export class SmolLM3ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new SmolLM3Model(config))
  }
}

registerModules({
  SmolLM3MLP,
  SmolLM3Attention,
  SmolLM3DecoderLayer,
  SmolLM3Model,
  SmolLM3ForCausalLM,
})
