import { Attention } from "../nn/attention.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { L2Norm, Linear, RMSNorm } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import { Experts } from "../nn/moe.ts"
import { applyRotary, type PositionEmbeddings } from "../nn/rope.ts"
import { add, routeExperts } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { isMoeLayer, layerChunk, type ModelConfig } from "./config.ts"
import { type DecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel } from "./llama.ts"

export class Llama4TextMLP extends LlamaMLP {}

/**
 * Most layers rotate q and k, norm them and see their own chunk of the context only. The others know no positions, see
 * everything and sharpen their scores as the context grows (temperature tuning, arXiv 2501.19399).
 */
export class Llama4TextAttention extends Module {
  q_proj
  k_proj
  v_proj
  o_proj
  qk_norm: L2Norm | undefined
  attn
  readonly usesRope: boolean

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, num_attention_heads, num_key_value_heads, head_dim } = config
    const bias = config.attention_bias
    this.usesRope = config.rope_layers[layerIdx] === true
    this.q_proj = new Linear(hidden_size, num_attention_heads * head_dim, { bias })
    this.k_proj = new Linear(hidden_size, num_key_value_heads * head_dim, { bias })
    this.v_proj = new Linear(hidden_size, num_key_value_heads * head_dim, { bias })
    this.o_proj = new Linear(num_attention_heads * head_dim, hidden_size, {
      bias: config.attention_output_bias,
    })
    if (config.qk_norm && this.usesRope) this.qk_norm = new L2Norm(config.rms_norm_eps)
    this.attn = new Attention({
      layerIdx,
      numHeads: num_attention_heads,
      numKVHeads: num_key_value_heads,
      headDim: head_dim,
      scale: config.attention_scale,
      chunkSize: layerChunk(config, layerIdx),
      temperature: this.usesRope ? undefined : config.attn_temperature,
    })
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { attn, qk_norm } = this
    let q = this.q_proj.forward(x).unflatten(-1, [attn.numHeads, attn.headDim])
    let k = this.k_proj.forward(x).unflatten(-1, [attn.numKVHeads, attn.headDim])
    const v = this.v_proj.forward(x).unflatten(-1, [attn.numKVHeads, attn.headDim])
    if (this.usesRope) applyRotary(q, k, positions)
    if (qk_norm !== undefined) {
      q = qk_norm.forward(q)
      k = qk_norm.forward(k)
    }
    return this.o_proj.forward(attn.forward(q, k, v, batch).flatten(1))
  }
}

/** One shared expert, and routed ones whose input is scaled by the router's sigmoid. */
export class Llama4TextMoe extends Module {
  router
  experts
  shared_expert
  topK: number

  constructor(config: ModelConfig) {
    super()
    const { hidden_size, num_experts, moe_intermediate_size } = config
    this.topK = config.num_experts_per_tok
    this.router = new Linear(hidden_size, num_experts)
    this.experts = new Experts({
      numExperts: num_experts,
      hiddenSize: hidden_size,
      intermediateSize: moe_intermediate_size,
      act: config.hidden_act,
      fused: "halves",
      scaleInput: true,
    })
    this.shared_expert = new Llama4TextMLP(config, moe_intermediate_size)
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, batch: ForwardBatch): Tensor {
    const { topK } = this
    const logits = this.router.forward(x)
    const { ids, weights } = routeExperts(logits, { topK, score: "sigmoid", normalize: false })
    return add(this.shared_expert.forward(x, batch), this.experts.forward(x, ids, weights, batch))
  }
}

export class Llama4TextDecoderLayer extends Module implements DecoderLayer {
  self_attn
  feed_forward
  input_layernorm
  post_attention_layernorm

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, rms_norm_eps } = config
    this.self_attn = new Llama4TextAttention(config, layerIdx)
    this.feed_forward = isMoeLayer(config, layerIdx)
      ? new Llama4TextMoe(config)
      : new Llama4TextMLP(config)
    this.input_layernorm = new RMSNorm(hidden_size, rms_norm_eps)
    this.post_attention_layernorm = new RMSNorm(hidden_size, rms_norm_eps)
  }

  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    x = add(x, this.self_attn.forward(this.input_layernorm.forward(x), positions, batch))
    return add(x, this.feed_forward.forward(this.post_attention_layernorm.forward(x), batch))
  }
}

export class Llama4TextModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Llama4TextDecoderLayer)
  }
}

export class Llama4ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Llama4TextModel(config))
  }
}

registerModules({
  Llama4TextMLP,
  Llama4TextAttention,
  Llama4TextMoe,
  Llama4TextDecoderLayer,
  Llama4TextModel,
  Llama4ForCausalLM,
})
