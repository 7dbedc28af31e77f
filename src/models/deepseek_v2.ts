import { KtError } from "../errors.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { LatentAttention } from "../nn/latent-attention.ts"
import { LatentProjection } from "../nn/latent.ts"
import { Linear, RMSNorm } from "../nn/layers.ts"
import { Module, type Parameter, registerModules } from "../nn/module.ts"
import { Experts, type RoutedBlock, type RouterParts } from "../nn/moe.ts"
import type { PositionEmbeddings } from "../nn/rope.ts"
import { add, linear, rope, routeExperts, type RouterOptions, type Routing } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { isMoeLayer, type MlaConfig, type ModelConfig } from "./config.ts"
import { LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel } from "./llama.ts"

export class DeepseekV2MLP extends LlamaMLP {}

/** Multi-head latent attention: the cache holds one compressed key and value per token, all heads read it. */
export class DeepseekV2Attention extends Module {
  q_proj: Linear | undefined
  q_a_proj: Linear | undefined
  q_a_layernorm: RMSNorm | undefined
  q_b_proj: Linear | undefined
  kv_a_proj_with_mqa
  kv_a_layernorm
  kv_b_proj
  o_proj
  attn
  readonly mla: MlaConfig

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, num_attention_heads: heads, attention_bias: bias, rms_norm_eps } = config
    const mla = latent(config)
    const { q_lora_rank, kv_lora_rank: rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim } = mla
    const queries = heads * (qk_nope_head_dim + qk_rope_head_dim)
    this.mla = mla
    if (q_lora_rank === undefined) {
      this.q_proj = new Linear(hidden_size, queries)
    } else {
      this.q_a_proj = new Linear(hidden_size, q_lora_rank, { bias })
      this.q_a_layernorm = new RMSNorm(q_lora_rank, rms_norm_eps)
      this.q_b_proj = new Linear(q_lora_rank, queries)
    }
    this.kv_a_proj_with_mqa = new Linear(hidden_size, rank + qk_rope_head_dim, { bias })
    this.kv_a_layernorm = new RMSNorm(rank, rms_norm_eps)
    this.kv_b_proj = new LatentProjection({
      numHeads: heads,
      rank,
      keyDim: qk_nope_head_dim,
      valueDim: v_head_dim,
      split: mla.split_kv_b,
    })
    this.o_proj = new Linear(heads * v_head_dim, hidden_size, { bias })
    this.attn = new LatentAttention({
      layerIdx,
      numHeads: heads,
      scale: config.attention_scale,
      sizes: { rank, nope: qk_nope_head_dim, rotary: qk_rope_head_dim, value: v_head_dim },
    })
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { mla, attn } = this
    const { kv_lora_rank: rank, qk_nope_head_dim: nope, qk_rope_head_dim: rotary } = mla
    const q = this.#queries(x).unflatten(-1, [attn.numHeads, nope + rotary])
    const compressed = this.kv_a_proj_with_mqa.forward(x)
    const kRope = compressed.narrow(-1, rank, rotary).unflatten(-1, [1, rotary])
    rope(q.narrow(-1, nope, rotary), positions.table, positions.interleaved)
    rope(kRope, positions.table, positions.interleaved)
    const latents = this.kv_a_layernorm.forward(compressed.narrow(-1, 0, rank))
    const mixed = attn.mix(q, latents, kRope, this.kv_b_proj, batch)
    return this.o_proj.forward(mixed.flatten(1))
  }

  #queries(x: Tensor): Tensor {
    const { q_proj, q_a_proj, q_a_layernorm, q_b_proj } = this
    if (q_proj !== undefined) return q_proj.forward(x)
    if (q_a_proj === undefined || q_a_layernorm === undefined || q_b_proj === undefined)
      throw new KtError("attention without query projections")
    return q_b_proj.forward(q_a_layernorm.forward(q_a_proj.forward(x)))
  }
}

function latent({ model_type, mla }: ModelConfig): MlaConfig {
  if (mla === undefined)
    throw new KtError(`${model_type}: the configuration has no latent attention`)
  return mla
}

/** The router. It is a module of its own class, which rules for linear layers pass over. */
export class MoEGate extends Module {
  readonly numExperts: number
  readonly hiddenSize: number
  topK: number
  readonly options: Omit<RouterOptions, "bias" | "topK">
  readonly hasBias: boolean
  /** [experts, hidden] of any weight type */
  weight!: Tensor
  /** [experts] F32 */
  e_score_correction_bias: Tensor | null = null

  constructor(config: ModelConfig) {
    super()
    const { n_group, topk_group, topk_method } = config
    this.numExperts = config.num_experts
    this.hiddenSize = config.hidden_size
    this.hasBias = topk_method === "noaux_tc"
    this.topK = config.num_experts_per_tok
    this.options = {
      score: config.scoring_func,
      normalize: config.norm_topk_prob,
      groups: n_group,
      topkGroups: topk_group,
      groupScore: topk_method === "noaux_tc" ? "top2-sum" : "max",
      scale: config.routed_scaling_factor,
    }
  }

  override parameters(): Parameter[] {
    const { numExperts, hiddenSize } = this
    const bind = (tensor: Tensor): void => void (this.weight = tensor)
    const weight: Parameter = {
      name: "weight",
      shape: [numExperts, hiddenSize],
      kind: "weight",
      bind,
    }
    if (!this.hasBias) return [weight]
    const bindBias = (tensor: Tensor): void => void (this.e_score_correction_bias = tensor)
    const shape = [numExperts]
    return [weight, { name: "e_score_correction_bias", shape, kind: "vector", bind: bindBias }]
  }

  /** x [T, hidden] */
  forward(x: Tensor): Routing {
    const { weight, options } = this.routerParts()
    return routeExperts(linear(x, weight), options)
  }

  routerParts(): RouterParts {
    const { weight, options, topK, e_score_correction_bias: bias } = this
    return { weight, bias: null, options: { ...options, topK, bias } }
  }
}

/** Routed experts, and shared ones that every token goes to, as one of their joint width. */
export class DeepseekV2MoE extends Module implements RoutedBlock {
  gate
  experts
  shared_experts: DeepseekV2MLP | undefined

  constructor(config: ModelConfig) {
    super()
    const { moe_intermediate_size, n_shared_experts } = config
    this.gate = new MoEGate(config)
    this.experts = new Experts({
      numExperts: config.num_experts,
      hiddenSize: config.hidden_size,
      intermediateSize: moe_intermediate_size,
      act: config.hidden_act,
    })
    if (n_shared_experts > 0)
      this.shared_experts = new DeepseekV2MLP(config, moe_intermediate_size * n_shared_experts)
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, batch: ForwardBatch): Tensor {
    const { ids, weights } = this.gate.forward(x)
    const routed = this.experts.forward(x, ids, weights, batch)
    const shared = this.sharedPart(x, batch)
    return shared === undefined ? routed : add(routed, shared, routed)
  }

  sharedPart(x: Tensor, batch: ForwardBatch): Tensor | undefined {
    return this.shared_experts?.forward(x, batch)
  }

  routerParts(): RouterParts | undefined {
    const { gate } = this
    // a rule may have replaced it
    return gate.forward === MoEGate.prototype.forward ? gate.routerParts() : undefined
  }
}

export class DeepseekV2DecoderLayer extends LlamaDecoderLayer {
  constructor(config: ModelConfig, layerIdx: number) {
    super(config, layerIdx, {
      self_attn: new DeepseekV2Attention(config, layerIdx),
      mlp: isMoeLayer(config, layerIdx) ? new DeepseekV2MoE(config) : new DeepseekV2MLP(config),
    })
  }
}

export class DeepseekV2Model extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, DeepseekV2DecoderLayer)
  }
}

export class DeepseekV2ForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new DeepseekV2Model(config))
  }
}

registerModules({
  DeepseekV2MLP,
  DeepseekV2Attention,
  MoEGate,
  DeepseekV2MoE,
  DeepseekV2DecoderLayer,
  DeepseekV2Model,
  DeepseekV2ForCausalLM,
})
