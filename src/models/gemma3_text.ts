import { ConfigError } from "../errors.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { RMSNorm } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import type { PositionEmbeddings } from "../nn/rope.ts"
import { add } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { ModelConfig } from "./config.ts"
import { type DecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel } from "./llama.ts"
import { Qwen3Attention } from "./qwen3.ts"

export class Gemma3MLP extends LlamaMLP {}

/** q/k norms as Qwen 3 has them; window and scale come with the configuration. */
export class Gemma3Attention extends Qwen3Attention {}

/** Norms also behind attention and MLP, before the residual is added. */
export class Gemma3DecoderLayer extends Module implements DecoderLayer {
  self_attn
  mlp
  input_layernorm
  post_attention_layernorm
  pre_feedforward_layernorm
  post_feedforward_layernorm

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, rms_norm_eps, norm_offset } = config
    this.self_attn = new Gemma3Attention(config, layerIdx)
    this.mlp = new Gemma3MLP(config)
    this.input_layernorm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
    this.post_attention_layernorm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
    this.pre_feedforward_layernorm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
    this.post_feedforward_layernorm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
  }

  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const attended = this.self_attn.forward(this.input_layernorm.forward(x), positions, batch)
    x = add(x, this.post_attention_layernorm.forward(attended))
    const fed = this.mlp.forward(this.pre_feedforward_layernorm.forward(x), batch)
    return add(x, this.post_feedforward_layernorm.forward(fed))
  }
}

export class Gemma3TextModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Gemma3DecoderLayer)
  }
}

export class Gemma3ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    const cap = config.final_logit_softcapping
    if (cap !== undefined) {
      throw new ConfigError(
        `final_logit_softcapping: ${cap} is not supported by the model type gemma3_text`,
      )
    }
    super(config, new Gemma3TextModel(config))
  }
}

registerModules({
  Gemma3MLP,
  Gemma3Attention,
  Gemma3DecoderLayer,
  Gemma3TextModel,
  Gemma3ForCausalLM,
})
