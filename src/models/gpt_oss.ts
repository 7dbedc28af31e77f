import { Attention } from "../nn/attention.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Linear } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import { Experts, linearRouter, type RoutedBlock, type RouterParts } from "../nn/moe.ts"
import { routeExperts, type RouterOptions } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { layerWindow, type ModelConfig } from "./config.ts"
import { LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel } from "./llama.ts"

/** Llama's attention with biases and a sink for each head: a logit that takes weight and has no value. */
export class GptOssAttention extends LlamaAttention {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx)
    this.attn = new Attention({
      layerIdx,
      numHeads: config.num_attention_heads,
      numKVHeads: config.num_key_value_heads,
      headDim: config.head_dim,
      scale: config.attention_scale,
      slidingWindow: layerWindow(config, layerIdx),
      sinks: true,
    })
  }
}

export class GptOssMLP extends Module implements RoutedBlock {
  router
  experts
  topK: number

  constructor(config: ModelConfig) {
    super()
    this.topK = config.num_experts_per_tok
    this.router = new Linear(config.hidden_size, config.num_experts, { bias: true })
    this.experts = new Experts({
      numExperts: config.num_experts,
      hiddenSize: config.hidden_size,
      intermediateSize: config.moe_intermediate_size,
      act: config.hidden_act,
      bias: true,
      fused: "alternating",
    })
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, batch: ForwardBatch): Tensor {
    const { ids, weights } = routeExperts(this.router.forward(x), this.#options())
    return this.experts.forward(x, ids, weights, batch)
  }

  routerParts(): RouterParts | undefined {
    return linearRouter(this.router, this.#options())
  }

  #options(): RouterOptions {
    return { topK: this.topK, score: "chosen-softmax", normalize: false }
  }
}

export class GptOssDecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new GptOssAttention(config, layerIdx),
      mlp: new GptOssMLP(config),
    })
  }
}

export class GptOssModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, GptOssDecoderLayer)
  }
}

export class GptOssForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new GptOssModel(config))
  }
}

registerModules({
  GptOssAttention,
  GptOssMLP,
  GptOssDecoderLayer,
  GptOssModel,
  GptOssForCausalLM,
})
