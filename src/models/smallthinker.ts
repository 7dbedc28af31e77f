import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Linear, RMSNorm } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import { type EarlyRouter, Experts, isEarlyRouter } from "../nn/moe.ts"
import type { PositionEmbeddings } from "../nn/rope.ts"
import { type Activation, actMul, add, routeExperts, type Routing } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { isMoeLayer, type ModelConfig } from "./config.ts"
import { type DecoderLayer, LlamaForCausalLM, LlamaModel } from "./llama.ts"
import { SmolLM3Attention } from "./smollm3.ts"

/** SmolLM3's attention; the window is each layer's own too. */
export class SmallThinkerAttention extends SmolLM3Attention {}

/** Experts whose router looks at the layer's input, so that the choice is known before attention. */
export class SmallThinkerMoeBlock extends Module implements EarlyRouter {
  primary_router
  experts
  topK: number
  readonly score: "softmax" | "sigmoid"
  readonly isEarlyRouter: boolean

  constructor(config: ModelConfig) {
    super()
    this.topK = config.num_experts_per_tok
    this.score = config.scoring_func
    this.isEarlyRouter = config.moe_enable_early_router
    this.primary_router = new Linear(config.hidden_size, config.num_experts)
    this.experts = new Experts({
      numExperts: config.num_experts,
      hiddenSize: config.hidden_size,
      intermediateSize: config.moe_intermediate_size,
      act: config.hidden_act,
      names: { gate: "gate", up: "up", down: "down" },
    })
  }

  /** routerInput [T, hidden]; the logits choose, their softmax or normalised sigmoids over the chosen weigh. */
  route(routerInput: Tensor): Routing {
    const logits = this.primary_router.forward(routerInput)
    const { topK } = this
    return this.score === "sigmoid"
      ? routeExperts(logits, { topK, score: "sigmoid", normalize: true })
      : routeExperts(logits, { topK, score: "chosen-softmax", normalize: false })
  }

  /** x [T, hidden] → [T, hidden]; without a routing the router sees x. */
  forward(x: Tensor, batch: ForwardBatch, routing: Routing = this.route(x)): Tensor {
    return this.experts.forward(x, routing.ids, routing.weights, batch)
  }
}

/** The feed-forward part of layers without experts. */
export class SmallThinkerDenseMlpBlock extends Module {
  up
  gate
  down
  readonly act: Activation

  constructor(config: ModelConfig) {
    super()
    const { hidden_size, intermediate_size } = config
    this.up = new Linear(hidden_size, intermediate_size)
    this.gate = new Linear(hidden_size, intermediate_size)
    this.down = new Linear(intermediate_size, hidden_size)
    this.act = config.hidden_act
  }

  forward(x: Tensor, _batch: ForwardBatch): Tensor {
    return this.down.forward(actMul(this.gate.forward(x), this.up.forward(x), this.act))
  }
}

export class SmallThinkerDecoderLayer extends Module implements DecoderLayer {
  self_attn
  block_sparse_moe
  input_layernorm
  post_attention_layernorm

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, rms_norm_eps } = config
    this.self_attn = new SmallThinkerAttention(config, layerIdx)
    this.block_sparse_moe = isMoeLayer(config, layerIdx)
      ? new SmallThinkerMoeBlock(config)
      : new SmallThinkerDenseMlpBlock(config)
    this.input_layernorm = new RMSNorm(hidden_size, rms_norm_eps)
    this.post_attention_layernorm = new RMSNorm(hidden_size, rms_norm_eps)
  }

  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { block_sparse_moe: block } = this
    const routing = isEarlyRouter(block) ? block.route(x) : undefined
    x = add(x, this.self_attn.forward(this.input_layernorm.forward(x), positions, batch))
    const normed = this.post_attention_layernorm.forward(x)
    return add(x, block.forward(normed, batch, routing))
  }
}

export class SmallThinkerModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, SmallThinkerDecoderLayer)
  }
}

export class SmallThinkerForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new SmallThinkerModel(config))
  }
}

registerModules({
  SmallThinkerAttention,
  SmallThinkerMoeBlock,
  SmallThinkerDenseMlpBlock,
  SmallThinkerDecoderLayer,
  SmallThinkerModel,
  SmallThinkerForCausalLM,
})
