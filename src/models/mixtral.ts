import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Linear, RMSNorm } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import { Experts, linearRouter, type RoutedBlock, type RouterParts } from "../nn/moe.ts"
import type { PositionEmbeddings } from "../nn/rope.ts"
import { add, routeExperts, type RouterOptions } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { ModelConfig } from "./config.ts"
import {
  type DecoderLayer,
  type DecoderLayerParts,
  LlamaAttention,
  LlamaForCausalLM,
  LlamaModel,
} from "./llama.ts"

export class MixtralAttention extends LlamaAttention {}

/** Every layer's feed-forward part: w1 is the gate, w3 the up and w2 the down projection. */
export class MixtralSparseMoeBlock extends Module implements RoutedBlock {
  gate
  experts
  topK: number

  constructor(config: ModelConfig) {
    super()
    this.topK = config.num_experts_per_tok
    this.gate = new Linear(config.hidden_size, config.num_experts)
    this.experts = new Experts({
      numExperts: config.num_experts,
      hiddenSize: config.hidden_size,
      intermediateSize: config.moe_intermediate_size,
      act: config.hidden_act,
      names: { gate: "w1", up: "w3", down: "w2" },
    })
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
    return { topK: this.topK, score: "softmax", normalize: true }
  }
}

/** What a layer is made of; MiniMax-M2 differs in these two. */
export interface MixtralLayerParts {
  readonly self_attn: LlamaAttention
  readonly block_sparse_moe: DecoderLayerParts["mlp"]
}

export class MixtralDecoderLayer extends Module implements DecoderLayer {
  self_attn
  block_sparse_moe
  input_layernorm
  post_attention_layernorm

  constructor(
    config: ModelConfig,
    layerIdx: number,
    parts: MixtralLayerParts = {
      self_attn: new MixtralAttention(config, layerIdx),
      block_sparse_moe: new MixtralSparseMoeBlock(config),
    },
  ) {
    super()
    const { hidden_size, rms_norm_eps } = config
    this.self_attn = parts.self_attn
    this.block_sparse_moe = parts.block_sparse_moe
    this.input_layernorm = new RMSNorm(hidden_size, rms_norm_eps)
    this.post_attention_layernorm = new RMSNorm(hidden_size, rms_norm_eps)
  }

  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    x = add(x, this.self_attn.forward(this.input_layernorm.forward(x), positions, batch))
    return add(x, this.block_sparse_moe.forward(this.post_attention_layernorm.forward(x), batch))
  }
}

export class MixtralModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, MixtralDecoderLayer)
  }
}

export class MixtralForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new MixtralModel(config))
  }
}

registerModules({
  MixtralAttention,
  MixtralSparseMoeBlock,
  MixtralDecoderLayer,
  MixtralModel,
  MixtralForCausalLM,
})
