import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Linear } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import { Experts, linearRouter, type RoutedBlock, type RouterParts } from "../nn/moe.ts"
import { routeExperts, type RouterOptions } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { isMoeLayer, type ModelConfig } from "./config.ts"
import { LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel } from "./llama.ts"
import { Qwen3Attention } from "./qwen3.ts"

export class Qwen3MoeAttention extends Qwen3Attention {}

/** The feed-forward part of layers without experts. */
export class Qwen3MoeMLP extends LlamaMLP {}

export class Qwen3MoeSparseMoeBlock extends Module implements RoutedBlock {
  gate
  experts
  topK: number
  readonly normTopkProb: boolean

  constructor(config: ModelConfig) {
    super()
    this.topK = config.num_experts_per_tok
    this.normTopkProb = config.norm_topk_prob
    this.gate = new Linear(config.hidden_size, config.num_experts)
    this.experts = new Experts({
      numExperts: config.num_experts,
      hiddenSize: config.hidden_size,
      intermediateSize: config.moe_intermediate_size,
      act: config.hidden_act,
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
    return { topK: this.topK, score: "softmax", normalize: this.normTopkProb }
  }
}

export class Qwen3MoeDecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    const isSparse = isMoeLayer(config, layerIdx)
    super(config, layerIdx, {
      self_attn: new Qwen3MoeAttention(config, layerIdx),
      mlp: isSparse ? new Qwen3MoeSparseMoeBlock(config) : new Qwen3MoeMLP(config),
    })
  }
}

export class Qwen3MoeModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Qwen3MoeDecoderLayer)
  }
}

export class Qwen3MoeForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Qwen3MoeModel(config))
  }
}

registerModules({
  Qwen3MoeAttention,
  Qwen3MoeMLP,
  Qwen3MoeSparseMoeBlock,
  Qwen3MoeDecoderLayer,
  Qwen3MoeModel,
  Qwen3MoeForCausalLM,
})
