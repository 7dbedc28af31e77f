import type { ForwardBatch } from "../nn/forward-batch.ts"
import { RMSNorm } from "../nn/layers.ts"
import { registerModules } from "../nn/module.ts"
import { applyRotary, type PositionEmbeddings } from "../nn/rope.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { isMoeLayer, type ModelConfig } from "./config.ts"
import { DeepseekV2MoE, MoEGate } from "./deepseek_v2.ts"
import {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
} from "./llama.ts"

export class Glm4MoeMLP extends LlamaMLP {}

/** Llama's attention with biases on q, k and v; only the first part of a head rotates. The larger models norm q and k. */
export class Glm4MoeAttention extends LlamaAttention {
  q_norm: RMSNorm | undefined
  k_norm: RMSNorm | undefined

  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx)
    const { head_dim, rms_norm_eps } = config
    if (!config.qk_norm) return
    this.q_norm = new RMSNorm(head_dim, rms_norm_eps)
    this.k_norm = new RMSNorm(head_dim, rms_norm_eps)
  }

  override forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { attn, headDim, q_norm, k_norm } = this
    let q = this.q_proj.forward(x).unflatten(-1, [attn.numHeads, headDim])
    let k = this.k_proj.forward(x).unflatten(-1, [attn.numKVHeads, headDim])
    const v = this.v_proj.forward(x).unflatten(-1, [attn.numKVHeads, headDim])
    q = q_norm?.forward(q) ?? q
    k = k_norm?.forward(k) ?? k
    applyRotary(q, k, positions)
    return this.o_proj.forward(attn.forward(q, k, v, batch).flatten(1))
  }
}

/** DeepSeek-V3's router: sigmoids, and a bias that only the choice sees. */
export class Glm4MoeTopkRouter extends MoEGate {}

/** Routed experts and shared ones, as DeepSeek has them. */
export class Glm4MoeMoE extends DeepseekV2MoE {
  override gate: Glm4MoeTopkRouter

  constructor(config: ModelConfig) {
    super(config)
    const { moe_intermediate_size, n_shared_experts } = config
    this.gate = new Glm4MoeTopkRouter(config)
    if (n_shared_experts > 0)
      this.shared_experts = new Glm4MoeMLP(config, moe_intermediate_size * n_shared_experts)
  }
}

export class Glm4MoeDecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new Glm4MoeAttention(config, layerIdx),
      mlp: isMoeLayer(config, layerIdx) ? new Glm4MoeMoE(config) : new Glm4MoeMLP(config),
    })
  }
}

export class Glm4MoeModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Glm4MoeDecoderLayer)
  }
}

export class Glm4MoeForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Glm4MoeModel(config))
  }
}

registerModules({
  Glm4MoeMLP,
  Glm4MoeAttention,
  Glm4MoeTopkRouter,
  Glm4MoeMoE,
  Glm4MoeDecoderLayer,
  Glm4MoeModel,
  Glm4MoeForCausalLM,
})
