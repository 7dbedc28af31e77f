import { registerModules } from "../nn/module.ts"
import type { ModelConfig } from "./config.ts"
import {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
} from "./llama.ts"

// Llama with biases on q, k and v, which the configuration says (attention_bias).

export class Qwen2MLP extends LlamaMLP {}

export class Qwen2Attention extends LlamaAttention {}

export class Qwen2DecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new Qwen2Attention(config, layerIdx),
      mlp: new Qwen2MLP(config),
    })
  }
}

export class Qwen2Model extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Qwen2DecoderLayer)
  }
}

export class Qwen2ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Qwen2Model(config))
  }
}

registerModules({
  Qwen2MLP,
  Qwen2Attention,
  Qwen2DecoderLayer,
  Qwen2Model,
  Qwen2ForCausalLM,
})
