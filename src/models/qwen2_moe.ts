import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Linear } from "../nn/layers.ts"
import { registerModules } from "../nn/module.ts"
import { add, sigmoidMul } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { isMoeLayer, type ModelConfig } from "./config.ts"
import {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
} from "./llama.ts"
import { Qwen3MoeSparseMoeBlock } from "./qwen3_moe.ts"

export class Qwen2MoeMLP extends LlamaMLP {}

/** Llama's attention with biases on q, k and v, which the configuration says. */
export class Qwen2MoeAttention extends LlamaAttention {}

/** Routed experts, and one that sees every token, times the sigmoid of its gate. */
export class Qwen2MoeSparseMoeBlock extends Qwen3MoeSparseMoeBlock {
  shared_expert
  shared_expert_gate

  constructor(config: ModelConfig) {
    super(config)
    const { hidden_size, shared_expert_intermediate_size: width } = config
    this.shared_expert = new Qwen2MoeMLP(config, width)
    this.shared_expert_gate = new Linear(hidden_size, 1)
  }

  override forward(x: Tensor, batch: ForwardBatch): Tensor {
    const shared = this.sharedPart(x, batch)
    return add(super.forward(x, batch), shared, shared)
  }

  sharedPart(x: Tensor, batch: ForwardBatch): Tensor {
    const shared = this.shared_expert.forward(x, batch)
    return sigmoidMul(shared, this.shared_expert_gate.forward(x), shared)
  }
}

export class Qwen2MoeDecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    const isSparse = isMoeLayer(config, layerIdx)
    super(config, layerIdx, {
      self_attn: new Qwen2MoeAttention(config, layerIdx),
      mlp: isSparse ? new Qwen2MoeSparseMoeBlock(config) : new Qwen2MoeMLP(config),
    })
  }
}

export class Qwen2MoeModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Qwen2MoeDecoderLayer)
  }
}

export class Qwen2MoeForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Qwen2MoeModel(config))
  }
}

registerModules({
  Qwen2MoeMLP,
  Qwen2MoeAttention,
  Qwen2MoeSparseMoeBlock,
  Qwen2MoeDecoderLayer,
  Qwen2MoeModel,
  Qwen2MoeForCausalLM,
})
