import { registerModules } from "../nn/module.ts"
import type { ModelConfig } from "./config.ts"
import {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
} from "./llama.ts"

// Llama with a sliding window, which the configuration gives to each layer.

export class MistralMLP extends LlamaMLP {}

export class MistralAttention extends LlamaAttention {}

export class MistralDecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new MistralAttention(config, layerIdx),
      mlp: new MistralMLP(config),
    })
  }
}

export class MistralModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, MistralDecoderLayer)
  }
}

export class MistralForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new MistralModel(config))
  }
}

registerModules({
  MistralMLP,
  MistralAttention,
  MistralDecoderLayer,
  MistralModel,
  MistralForCausalLM,
})
