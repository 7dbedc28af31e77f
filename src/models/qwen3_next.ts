import { Attention } from "../nn/attention.ts"
import { CausalConv1d } from "../nn/causal-conv.ts"
import type { BatchStates, ForwardBatch, LayerStateCache } from "../nn/forward-batch.ts"
import { Linear, RMSNorm } from "../nn/layers.ts"
import { Module, type OpNames, type Parameter, registerModules } from "../nn/module.ts"
import { applyRotary, type PositionEmbeddings } from "../nn/rope.ts"
import { add, gatedDeltaRule, gatedRmsNorm, sigmoidMul } from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import {
  cacheIndex,
  isLinearLayer,
  isMoeLayer,
  type LinearAttentionConfig,
  type ModelConfig,
} from "./config.ts"
import { type DecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel } from "./llama.ts"
import { Qwen2MoeSparseMoeBlock } from "./qwen2_moe.ts"

export class Qwen3NextMLP extends LlamaMLP {}

/** Attention whose output each query gates: q_proj gives [query | gate] per head. Only the first part of a head rotates. */
export class Qwen3NextAttention extends Module {
  q_proj
  k_proj
  v_proj
  o_proj
  q_norm
  k_norm
  attn

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, num_attention_heads, num_key_value_heads, head_dim } = config
    const { rms_norm_eps, norm_offset, attention_bias: bias } = config
    this.q_proj = new Linear(hidden_size, 2 * num_attention_heads * head_dim, { bias })
    this.k_proj = new Linear(hidden_size, num_key_value_heads * head_dim, { bias })
    this.v_proj = new Linear(hidden_size, num_key_value_heads * head_dim, { bias })
    this.o_proj = new Linear(num_attention_heads * head_dim, hidden_size, {
      bias: config.attention_output_bias,
    })
    this.q_norm = new RMSNorm(head_dim, rms_norm_eps, norm_offset)
    this.k_norm = new RMSNorm(head_dim, rms_norm_eps, norm_offset)
    this.attn = new Attention({
      layerIdx: cacheIndex(config, layerIdx),
      numHeads: num_attention_heads,
      numKVHeads: num_key_value_heads,
      headDim: head_dim,
      scale: config.attention_scale,
    })
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { attn } = this
    const { numHeads, numKVHeads, headDim } = attn
    const both = this.q_proj.forward(x).unflatten(-1, [numHeads, 2 * headDim])
    const q = this.q_norm.forward(both.narrow(2, 0, headDim))
    const k = this.k_norm.forward(this.k_proj.forward(x).unflatten(-1, [numKVHeads, headDim]))
    const v = this.v_proj.forward(x).unflatten(-1, [numKVHeads, headDim])
    applyRotary(q, k, positions)
    const out = attn.forward(q, k, v, batch)
    return this.o_proj.forward(sigmoidMul(out, both.narrow(2, headDim, headDim), out).flatten(1))
  }
}

/** RMS norm times silu(gate); its weight is plain where the model's other norms are (1 + w). */
export class Qwen3NextRMSNormGated extends Module {
  readonly dim: number
  readonly eps: number
  /** [dim] F32 */
  weight!: Tensor

  constructor(dim: number, eps: number) {
    super()
    this.dim = dim
    this.eps = eps
  }

  override parameters(): Parameter[] {
    const bind = (tensor: Tensor): void => void (this.weight = tensor)
    return [{ name: "weight", shape: [this.dim], kind: "vector", bind }]
  }

  override requiredOps(): OpNames {
    return ["kt_gated_rms_norm"]
  }

  /** x, gate [..., dim]; x is overwritten. */
  forward(x: Tensor, gate: Tensor): Tensor {
    return gatedRmsNorm(x, gate, this.weight, this.eps, x)
  }
}

/** Inside the square root of the L2 norms of q and k. */
const L2_EPS = 1e-6

/**
 * Linear attention with a gated delta rule (arXiv 2412.06464): a convolution over q, k and v, then a state per head that
 * forgets, is corrected and is read token by token.
 */
export class Qwen3NextGatedDeltaNet extends Module {
  in_proj_qkvz: Linear | undefined
  in_proj_qkv: Linear | undefined
  in_proj_z: Linear | undefined
  in_proj_ba
  conv1d
  norm
  out_proj
  /** [value heads] F32, as stored: the logarithm of the decay's rate, or in a GGUF minus the rate */
  A_log!: Tensor
  /** [value heads] F32 */
  dt_bias!: Tensor
  readonly sizes: LinearAttentionConfig
  /** Place of its state among those of the other layers. */
  readonly stateIdx: number
  readonly #layout: ModelConfig["layout"]
  /** [value heads] F32, negative */
  #decay: Tensor | undefined

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const sizes = config.linear_attention as LinearAttentionConfig
    const { num_key_heads: kHeads, num_value_heads: vHeads } = sizes
    const { key_head_dim: kDim, value_head_dim: vDim } = sizes
    const { hidden_size } = config
    this.sizes = sizes
    this.stateIdx = cacheIndex(config, layerIdx)
    this.#layout = config.layout
    const channels = 2 * kHeads * kDim + vHeads * vDim
    if (sizes.fused_qkvz) this.in_proj_qkvz = new Linear(hidden_size, channels + vHeads * vDim)
    else {
      this.in_proj_qkv = new Linear(hidden_size, channels)
      this.in_proj_z = new Linear(hidden_size, vHeads * vDim)
    }
    this.in_proj_ba = new Linear(hidden_size, 2 * vHeads)
    this.conv1d = new CausalConv1d({
      channels,
      kernel: sizes.conv_kernel_dim,
      order: sizes.fused_qkvz ? groupedChannels(sizes) : undefined,
    })
    this.norm = new Qwen3NextRMSNormGated(vDim, config.rms_norm_eps)
    this.out_proj = new Linear(vHeads * vDim, hidden_size)
  }

  override parameters(): Parameter[] {
    const shape = [this.sizes.num_value_heads]
    const kind = "vector"
    return [
      { name: "A_log", shape, kind, bind: (tensor) => (this.A_log = tensor) },
      { name: "dt_bias", shape, kind, bind: (tensor) => (this.dt_bias = tensor) },
    ]
  }

  override requiredOps(): OpNames {
    return ["kt_gated_delta_rule"]
  }

  override materialize(backend: Tensor["backend"]): void {
    const stored = this.A_log.toFloat32Array()
    // converters to GGUF store what the rule needs
    const decay = this.#layout === "gguf" ? stored : stored.map((log) => -Math.exp(log))
    this.#decay = Tensor.from(backend, decay, [decay.length], { persistent: true })
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, _positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { num_key_heads: kHeads, num_value_heads: vHeads, key_head_dim: kDim } = this.sizes
    const group = vHeads / kHeads
    const { segments, layers } = batch.states as BatchStates
    const { conv, state } = layers[this.stateIdx] as LayerStateCache
    const { mixed, z } = this.#project(x)
    const { q, k, v } = this.#split(this.conv1d.forward(mixed, segments, conv))
    const ba = this.in_proj_ba.forward(x).unflatten(-1, [kHeads, 2 * group])
    const b = ba.narrow(2, 0, group)
    const a = ba.narrow(2, group, group)
    const decay = this.#decay as Tensor
    const rule = { q, k, v, b, a, decay, dtBias: this.dt_bias, scale: kDim ** -0.5, eps: L2_EPS }
    const out = this.norm.forward(gatedDeltaRule(rule, segments, state), z)
    return this.out_proj.forward(out.flatten(1))
  }

  /** The convolution's input [T, groups, channels / groups], and the gate z [T, key heads, group, v_dim]. */
  #project(x: Tensor): { mixed: Tensor; z: Tensor } {
    const { num_key_heads: kHeads, num_value_heads: vHeads } = this.sizes
    const { key_head_dim: kDim, value_head_dim: vDim } = this.sizes
    const group = vHeads / kHeads
    if (this.in_proj_qkvz !== undefined) {
      const inner = 2 * kDim + group * vDim
      const all = this.in_proj_qkvz.forward(x).unflatten(-1, [kHeads, inner + group * vDim])
      const z = all.narrow(2, inner, group * vDim).unflatten(-1, [group, vDim])
      return { mixed: all.narrow(2, 0, inner), z }
    }
    const { in_proj_qkv, in_proj_z } = this as { in_proj_qkv: Linear; in_proj_z: Linear }
    return {
      mixed: in_proj_qkv.forward(x).unflatten(-1, [1, in_proj_qkv.outFeatures]),
      z: in_proj_z.forward(x).unflatten(-1, [kHeads, group, vDim]),
    }
  }

  /** q, k [T, key heads, k_dim] and v [T, key heads, group, v_dim] of the convolution's output. */
  #split(mixed: Tensor): { q: Tensor; k: Tensor; v: Tensor } {
    const { num_key_heads: kHeads, num_value_heads: vHeads } = this.sizes
    const { key_head_dim: kDim, value_head_dim: vDim } = this.sizes
    const group = vHeads / kHeads
    if (this.sizes.fused_qkvz) {
      return {
        q: mixed.narrow(2, 0, kDim),
        k: mixed.narrow(2, kDim, kDim),
        v: mixed.narrow(2, 2 * kDim, group * vDim).unflatten(-1, [group, vDim]),
      }
    }
    const flat = mixed.flatten(1)
    const keys = kHeads * kDim
    return {
      q: flat.narrow(1, 0, keys).unflatten(-1, [kHeads, kDim]),
      k: flat.narrow(1, keys, keys).unflatten(-1, [kHeads, kDim]),
      v: flat.narrow(1, 2 * keys, vHeads * vDim).unflatten(-1, [kHeads, group, vDim]),
    }
  }
}

/** Stored channels are all of q, of k and of v; the fused projection's are [q, k, v] of each key head. */
function groupedChannels(sizes: LinearAttentionConfig): Int32Array {
  const { num_key_heads: kHeads, num_value_heads, key_head_dim: kDim, value_head_dim } = sizes
  const values = (num_value_heads / kHeads) * value_head_dim
  const keys = kHeads * kDim
  const order: number[] = []
  for (let head = 0; head < kHeads; head++) {
    for (let i = 0; i < kDim; i++) order.push(head * kDim + i)
    for (let i = 0; i < kDim; i++) order.push(keys + head * kDim + i)
    for (let i = 0; i < values; i++) order.push(2 * keys + head * values + i)
  }
  return Int32Array.from(order)
}

/** Qwen2-MoE's block: routed experts, and one that sees every token, times the sigmoid of its gate. */
export class Qwen3NextSparseMoeBlock extends Qwen2MoeSparseMoeBlock {
  constructor(config: ModelConfig) {
    super(config)
    this.shared_expert = new Qwen3NextMLP(config, config.shared_expert_intermediate_size)
  }
}

export class Qwen3NextDecoderLayer extends Module implements DecoderLayer {
  linear_attn: Qwen3NextGatedDeltaNet | undefined
  self_attn: Qwen3NextAttention | undefined
  mlp
  input_layernorm
  post_attention_layernorm

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, rms_norm_eps, norm_offset } = config
    if (isLinearLayer(config, layerIdx))
      this.linear_attn = new Qwen3NextGatedDeltaNet(config, layerIdx)
    else this.self_attn = new Qwen3NextAttention(config, layerIdx)
    this.mlp = isMoeLayer(config, layerIdx)
      ? new Qwen3NextSparseMoeBlock(config)
      : new Qwen3NextMLP(config)
    this.input_layernorm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
    this.post_attention_layernorm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
  }

  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const h = this.input_layernorm.forward(x)
    const mixer = this.linear_attn ?? (this.self_attn as Qwen3NextAttention)
    x = add(x, mixer.forward(h, positions, batch))
    return add(x, this.mlp.forward(this.post_attention_layernorm.forward(x), batch))
  }
}

export class Qwen3NextModel extends LlamaModel {
  constructor(config: ModelConfig) {
    super(config, Qwen3NextDecoderLayer)
  }
}

export class Qwen3NextForCausalLM extends LlamaForCausalLM {
  constructor(config: ModelConfig) {
    super(config, new Qwen3NextModel(config))
  }
}

registerModules({
  Qwen3NextMLP,
  Qwen3NextAttention,
  Qwen3NextRMSNormGated,
  Qwen3NextGatedDeltaNet,
  Qwen3NextSparseMoeBlock,
  Qwen3NextDecoderLayer,
  Qwen3NextModel,
  Qwen3NextForCausalLM,
})
