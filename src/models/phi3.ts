import { Attention } from "../nn/attention.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Linear } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import { applyRotary, type PositionEmbeddings } from "../nn/rope.ts"
import { type Activation, actMul } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { layerWindow, type ModelConfig } from "./config.ts"
import { LlamaDecoderLayer, LlamaForCausalLM, LlamaModel } from "./llama.ts"

/** Gate and up projection are one matrix: gate's rows first. */
export class Phi3MLP extends Module {
  gate_up_proj
  down_proj
  readonly act: Activation

  constructor(config: ModelConfig) {
    super()
    this.gate_up_proj = new Linear(config.hidden_size, 2 * config.intermediate_size)
    this.down_proj = new Linear(config.intermediate_size, config.hidden_size)
    this.act = config.hidden_act
  }

  forward(x: Tensor, _batch: ForwardBatch): Tensor {
    const both = this.gate_up_proj.forward(x)
    const n = both.dim(-1) / 2
    return this.down_proj.forward(actMul(both.narrow(-1, 0, n), both.narrow(-1, n, n), this.act))
  }
}

/** q, k and v projection are one matrix, in this order. */
export class Phi3Attention extends Module {
  qkv_proj
  o_proj
  attn

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, num_attention_heads, num_key_value_heads, head_dim } = config
    const rows = (num_attention_heads + 2 * num_key_value_heads) * head_dim
    this.qkv_proj = new Linear(hidden_size, rows)
    this.o_proj = new Linear(num_attention_heads * head_dim, hidden_size)
    this.attn = new Attention({
      layerIdx,
      numHeads: num_attention_heads,
      numKVHeads: num_key_value_heads,
      headDim: head_dim,
      scale: config.attention_scale,
      slidingWindow: layerWindow(config, layerIdx),
    })
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { numHeads, numKVHeads, headDim } = this.attn
    const qkv = this.qkv_proj.forward(x).unflatten(-1, [numHeads + 2 * numKVHeads, headDim])
    const q = qkv.narrow(1, 0, numHeads)
    const k = qkv.narrow(1, numHeads, numKVHeads)
    const v = qkv.narrow(1, numHeads + numKVHeads, numKVHeads)
    applyRotary(q, k, positions)
    return this.o_proj.forward(this.attn.forward(q, k, v, batch).flatten(1))
  }
}

export class Phi3DecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new Phi3Attention(config, layerIdx),
      mlp: new Phi3MLP(config),
    })
  }
}

export class Phi3Model extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Phi3DecoderLayer)
  }
}

export class Phi3ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Phi3Model(config))
  }
}

registerModules({ Phi3MLP, Phi3Attention, Phi3DecoderLayer, Phi3Model, Phi3ForCausalLM })
