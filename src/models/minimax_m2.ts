import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Linear, RMSNorm } from "../nn/layers.ts"
import { Module, type Parameter, registerModules } from "../nn/module.ts"
import { Experts, linearRouter, type RoutedBlock, type RouterParts } from "../nn/moe.ts"
import { applyRotary, type PositionEmbeddings } from "../nn/rope.ts"
import { routeExperts, type RouterOptions } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { ModelConfig } from "./config.ts"
import { LlamaAttention, LlamaForCausalLM, LlamaModel } from "./llama.ts"
import { MixtralDecoderLayer } from "./mixtral.ts"

/** Llama's attention; q and k are normed over all heads together, and only the first part of a head rotates. */
export class MiniMaxM2Attention extends LlamaAttention {
  q_norm: RMSNorm | undefined
  k_norm: RMSNorm | undefined

  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx)
    const { head_dim, num_attention_heads, num_key_value_heads, rms_norm_eps } = config
    if (!config.qk_norm) return
    this.q_norm = new RMSNorm(num_attention_heads * head_dim, rms_norm_eps)
    this.k_norm = new RMSNorm(num_key_value_heads * head_dim, rms_norm_eps)
  }

  override forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { attn, headDim, q_norm, k_norm } = this
    const qs = this.q_proj.forward(x)
    const ks = this.k_proj.forward(x)
    const q = (q_norm?.forward(qs) ?? qs).unflatten(-1, [attn.numHeads, headDim])
    const k = (k_norm?.forward(ks) ?? ks).unflatten(-1, [attn.numKVHeads, headDim])
    const v = this.v_proj.forward(x).unflatten(-1, [attn.numKVHeads, headDim])
    applyRotary(q, k, positions)
    return this.o_proj.forward(attn.forward(q, k, v, batch).flatten(1))
  }
}

/** Every layer's feed-forward part; experts are named as Mixtral's. The router takes sigmoids and a bias for the choice. */
export class MiniMaxM2SparseMoeBlock extends Module implements RoutedBlock {
  gate
  experts
  /** [experts] F32 */
  e_score_correction_bias: Tensor | null = null
  topK: number
  readonly score: "softmax" | "sigmoid"
  readonly hasBias: boolean

  constructor(config: ModelConfig) {
    super()
    this.topK = config.num_experts_per_tok
    this.score = config.scoring_func
    this.hasBias = config.topk_method === "noaux_tc"
    this.gate = new Linear(config.hidden_size, config.num_experts)
    this.experts = new Experts({
      numExperts: config.num_experts,
      hiddenSize: config.hidden_size,
      intermediateSize: config.moe_intermediate_size,
      act: config.hidden_act,
      names: { gate: "w1", up: "w3", down: "w2" },
    })
  }

  override parameters(): Parameter[] {
    if (!this.hasBias) return []
    const shape = [this.gate.outFeatures]
    const bind = (tensor: Tensor): void => void (this.e_score_correction_bias = tensor)
    return [{ name: "e_score_correction_bias", shape, kind: "vector", bind }]
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, batch: ForwardBatch): Tensor {
    const { ids, weights } = routeExperts(this.gate.forward(x), this.#options())
    return this.experts.forward(x, ids, weights, batch)
  }

  routerParts(): RouterParts | undefined {
    return linearRouter(this.gate, this.#options())
  }

  #options(): RouterOptions {
    const { topK, score, e_score_correction_bias: bias } = this
    return { topK, score, normalize: true, bias }
  }
}

export class MiniMaxM2DecoderLayer extends MixtralDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new MiniMaxM2Attention(config, layerIdx),
      block_sparse_moe: new MiniMaxM2SparseMoeBlock(config),
    })
  }
}

export class MiniMaxM2Model extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, MiniMaxM2DecoderLayer)
  }
}

export class MiniMaxM2ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new MiniMaxM2Model(config))
  }
}

registerModules({
  MiniMaxM2Attention,
  MiniMaxM2SparseMoeBlock,
  MiniMaxM2DecoderLayer,
  MiniMaxM2Model,
  MiniMaxM2ForCausalLM,
})
