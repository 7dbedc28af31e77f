import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Linear } from "../nn/layers.ts"
import { Module, type Parameter, registerModules } from "../nn/module.ts"
import { Experts, linearRouter, type RoutedBlock, type RouterParts } from "../nn/moe.ts"
import { add, routeExperts, type RouterOptions } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { isMoeLayer, type ModelConfig } from "./config.ts"
import {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
} from "./llama.ts"

// Names are transformers' own: Ernie4_5_Moe.

export class Ernie4_5_MoeMLP extends LlamaMLP {}

/** Llama's attention; neighbouring dimensions rotate in pairs, which the configuration says. */
export class Ernie4_5_MoeAttention extends LlamaAttention {}

/** What the checkpoint keeps of the training's balance: a bias for the choice of experts. */
export class Ernie4_5_MoeStatics extends Module {
  readonly numExperts: number
  /** [experts] F32 */
  e_score_correction_bias!: Tensor

  constructor(numExperts: number) {
    super()
    this.numExperts = numExperts
  }

  override parameters(): Parameter[] {
    const bind = (tensor: Tensor): void => void (this.e_score_correction_bias = tensor)
    return [{ name: "e_score_correction_bias", shape: [this.numExperts], kind: "vector", bind }]
  }
}

/** Routed experts, chosen by softmax plus bias and weighed by softmax alone, and shared ones of their joint width. */
export class Ernie4_5_MoeSparseMoeBlock extends Module implements RoutedBlock {
  moe_statics
  gate
  experts
  shared_experts: Ernie4_5_MoeMLP | undefined
  topK: number

  constructor(config: ModelConfig) {
    super()
    const { hidden_size, num_experts, moe_intermediate_size, n_shared_experts } = config
    this.topK = config.num_experts_per_tok
    this.moe_statics = new Ernie4_5_MoeStatics(num_experts)
    this.gate = new Linear(hidden_size, num_experts)
    this.experts = new Experts({
      numExperts: num_experts,
      hiddenSize: hidden_size,
      intermediateSize: moe_intermediate_size,
      act: config.hidden_act,
    })
    if (n_shared_experts > 0)
      this.shared_experts = new Ernie4_5_MoeMLP(config, moe_intermediate_size * n_shared_experts)
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, batch: ForwardBatch): Tensor {
    const { ids, weights } = routeExperts(this.gate.forward(x), this.#options())
    const routed = this.experts.forward(x, ids, weights, batch)
    const shared = this.sharedPart(x, batch)
    return shared === undefined ? routed : add(routed, shared, routed)
  }

  sharedPart(x: Tensor, batch: ForwardBatch): Tensor | undefined {
    return this.shared_experts?.forward(x, batch)
  }

  routerParts(): RouterParts | undefined {
    return linearRouter(this.gate, this.#options())
  }

  #options(): RouterOptions {
    const { e_score_correction_bias: bias } = this.moe_statics
    return { topK: this.topK, score: "softmax", normalize: true, bias }
  }
}

export class Ernie4_5_MoeDecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    const isSparse = isMoeLayer(config, layerIdx)
    super(config, layerIdx, {
      self_attn: new Ernie4_5_MoeAttention(config, layerIdx),
      mlp: isSparse ? new Ernie4_5_MoeSparseMoeBlock(config) : new Ernie4_5_MoeMLP(config),
    })
  }
}

export class Ernie4_5_MoeModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Ernie4_5_MoeDecoderLayer)
  }
}

export class Ernie4_5_MoeForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Ernie4_5_MoeModel(config))
  }
}

registerModules({
  Ernie4_5_MoeMLP,
  Ernie4_5_MoeAttention,
  Ernie4_5_MoeStatics,
  Ernie4_5_MoeSparseMoeBlock,
  Ernie4_5_MoeDecoderLayer,
  Ernie4_5_MoeModel,
  Ernie4_5_MoeForCausalLM,
})
