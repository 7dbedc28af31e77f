import { registerModules } from "../nn/module.ts"
import { isMoeLayer, type ModelConfig } from "./config.ts"
import { DeepseekV2Attention, DeepseekV2MLP, DeepseekV2MoE } from "./deepseek_v2.ts"
import { LlamaDecoderLayer, LlamaForCausalLM, LlamaModel } from "./llama.ts"

/** DeepSeek-V3, R1, Moonlight: what V2 is, under names of its own; the router's differences are the configuration's. */
export class DeepseekV3Attention extends DeepseekV2Attention {}

export class DeepseekV3MLP extends DeepseekV2MLP {}

export class DeepseekV3MoE extends DeepseekV2MoE {}

export class DeepseekV3DecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new DeepseekV3Attention(config, layerIdx),
      mlp: isMoeLayer(config, layerIdx) ? new DeepseekV3MoE(config) : new DeepseekV3MLP(config),
    })
  }
}

export class DeepseekV3Model extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, DeepseekV3DecoderLayer)
  }
}

export class DeepseekV3ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new DeepseekV3Model(config))
  }
}

registerModules({
  DeepseekV3Attention,
  DeepseekV3MLP,
  DeepseekV3MoE,
  DeepseekV3DecoderLayer,
  DeepseekV3Model,
  DeepseekV3ForCausalLM,
})
