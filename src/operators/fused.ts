import { z } from "zod"

import { Attention } from "../nn/attention.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { L2Norm, Linear, RMSNorm } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import { addRoutedBlock, isEarlyRouter, isRoutedBlock } from "../nn/moe.ts"
import type { PositionEmbeddings } from "../nn/rope.ts"
import {
  type Activation,
  add,
  gateUpAct,
  linearResidual,
  normLinear,
  qkvRopeStore,
  type Routing,
} from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { KFusedLatentAttention, latentParts } from "./fused-latent.ts"
import type { OperatorContext, OperatorRegistry } from "./registry.ts"

/** Self-attention in two launches beside the attention itself: norm to stored K and V, output and residual. */
export class KFusedAttention extends Module {
  q_proj
  k_proj
  v_proj
  o_proj
  q_norm: RMSNorm | undefined
  k_norm: RMSNorm | undefined
  /** One norm without a weight for both; it may follow the rope, since rotations keep it. */
  qk_norm: L2Norm | undefined
  attn
  readonly usesRope: boolean

  constructor(parts: AttentionParts) {
    super()
    this.q_proj = parts.q_proj
    this.k_proj = parts.k_proj
    this.v_proj = parts.v_proj
    this.o_proj = parts.o_proj
    this.q_norm = parts.q_norm
    this.k_norm = parts.k_norm
    this.qk_norm = parts.qk_norm
    this.attn = parts.attn
    this.usesRope = parts.usesRope
  }

  /** x [T, hidden] → [T, hidden], as the module it replaces computes it. */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    return this.o_proj.forward(this.#attend(x, null, positions, batch))
  }

  /** x += post(attention(norm(x))), in place. */
  addTo(
    x: Tensor,
    norm: RMSNorm,
    post: RMSNorm | undefined,
    positions: PositionEmbeddings,
    batch: ForwardBatch,
  ): void {
    const attended = this.#attend(x, norm, positions, batch)
    linearResidual(attended, this.o_proj.weight, this.o_proj.bias, x, postNorm(post))
  }

  #attend(
    x: Tensor,
    norm: RMSNorm | null,
    positions: PositionEmbeddings,
    batch: ForwardBatch,
  ): Tensor {
    const { attn, q_proj, k_proj, v_proj, q_norm, k_norm, qk_norm } = this
    const cache = attn.cache(batch)
    const q = qkvRopeStore({
      x,
      normWeight: norm?.weight ?? null,
      eps: norm?.eps ?? 0,
      normOffset: norm?.offset ?? 0,
      wq: q_proj.weight,
      wk: k_proj.weight,
      wv: v_proj.weight,
      bq: q_proj.bias,
      bk: k_proj.bias,
      bv: v_proj.bias,
      qNorm: q_norm?.weight ?? null,
      kNorm: k_norm?.weight ?? null,
      unitQkNorm: qk_norm !== undefined,
      qkEps: q_norm?.eps ?? qk_norm?.eps ?? 0,
      qkNormOffset: q_norm?.offset ?? 0,
      ropeTable: this.usesRope ? positions.table : null,
      interleaved: positions.interleaved,
      slotMapping: batch.slotMapping,
      kCache: cache.k,
      vCache: cache.v,
      numHeads: attn.numHeads,
    })
    return attn.attend(q, batch).flatten(1)
  }
}

/** A gated MLP in two launches: norm, gate, up and activation; down and residual. */
export class KFusedMLP extends Module {
  gate_proj
  up_proj
  down_proj
  readonly act: Activation

  constructor(parts: MLPParts) {
    super()
    this.gate_proj = parts.gate_proj
    this.up_proj = parts.up_proj
    this.down_proj = parts.down_proj
    this.act = parts.act
  }

  /** x [T, hidden] → [T, hidden], as the module it replaces computes it. */
  forward(x: Tensor, _batch: ForwardBatch): Tensor {
    const { gate_proj, up_proj, act } = this
    return this.down_proj.forward(gateUpAct(x, null, 0, 0, gate_proj.weight, up_proj.weight, act))
  }

  /** x += post(mlp(norm(x))), in place. */
  addTo(x: Tensor, norm: RMSNorm, post: RMSNorm | undefined): void {
    const { gate_proj, up_proj, down_proj, act } = this
    const h = gateUpAct(
      x,
      norm.weight,
      norm.eps,
      norm.offset,
      gate_proj.weight,
      up_proj.weight,
      act,
    )
    linearResidual(h, down_proj.weight, down_proj.bias, x, postNorm(post))
  }
}

function postNorm(post: RMSNorm | undefined): { norm: Tensor; eps: number; offset: number } | null {
  return post === undefined ? null : { norm: post.weight, eps: post.eps, offset: post.offset }
}

/**
 * A decoder layer whose norms and residual additions run inside its fused attention and MLP. A half
 * that is not fused (a mixture of experts) is computed as the plain layer does. The layer's norms
 * are `input_layernorm` and `post_attention_layernorm`, or four of them where
 * `pre_feedforward_layernorm` says that norms also follow attention and MLP. Both halves keep the checkpoint's
 * names for them as their paths.
 */
export class KFusedDecoderLayer extends Module {
  self_attn
  mlp
  input_layernorm
  post_attention_layernorm
  pre_feedforward_layernorm: RMSNorm | undefined
  post_feedforward_layernorm: RMSNorm | undefined
  readonly #mlpName: string
  readonly #attnName: string

  constructor(parts: LayerParts) {
    super()
    this.#mlpName = parts.mlpName
    this.#attnName = parts.attnName
    this.self_attn = parts.self_attn
    this.mlp = parts.mlp
    this.input_layernorm = parts.input_layernorm
    this.post_attention_layernorm = parts.post_attention_layernorm
    this.pre_feedforward_layernorm = parts.pre_feedforward_layernorm
    this.post_feedforward_layernorm = parts.post_feedforward_layernorm
  }

  override children(): [string, Module][] {
    const names = new Map([
      ["mlp", this.#mlpName],
      ["self_attn", this.#attnName],
    ])
    return super.children().map(([name, child]) => [names.get(name) ?? name, child])
  }

  override replaceChild(name: string, child: Module): void {
    if (name === this.#mlpName) super.replaceChild("mlp", child)
    else super.replaceChild(name === this.#attnName ? "self_attn" : name, child)
  }

  /** x [T, hidden] is changed in place and returned. */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { self_attn, mlp, input_layernorm, pre_feedforward_layernorm: pre } = this
    const routing = isEarlyRouter(mlp) ? mlp.route(x) : undefined
    const postAttention = pre === undefined ? undefined : this.post_attention_layernorm
    const isHere = self_attn.backend === this.backend
    if (isHere && self_attn instanceof KFusedAttention) {
      self_attn.addTo(x, input_layernorm, postAttention, positions, batch)
    } else if (
      isHere &&
      self_attn instanceof KFusedLatentAttention &&
      postAttention === undefined
    ) {
      self_attn.addTo(x, input_layernorm, positions, batch)
    } else {
      const y = self_attn.forward(input_layernorm.forward(x), positions, batch)
      add(x, postAttention?.forward(y) ?? y, x)
    }
    const beforeMlp = pre ?? this.post_attention_layernorm
    if (mlp instanceof KFusedMLP && mlp.backend === this.backend) {
      mlp.addTo(x, beforeMlp, this.post_feedforward_layernorm)
    } else if (!this.#addExperts(x, beforeMlp, batch)) {
      const y = mlp.forward(beforeMlp.forward(x), batch, routing)
      add(x, this.post_feedforward_layernorm?.forward(y) ?? y, x)
    }
    return x
  }

  /** Whether the feed-forward half is experts that could be added to x. */
  #addExperts(x: Tensor, norm: RMSNorm, batch: ForwardBatch): boolean {
    const { mlp } = this
    if (mlp.backend !== this.backend) return false
    if (this.post_feedforward_layernorm !== undefined || !isRoutedBlock(mlp)) return false
    return addRoutedBlock(mlp, x, norm, batch)
  }
}

/** The last norm where the head applies it: holds the weight, passes its input on. */
export class KDeferredNorm extends RMSNorm {
  override forward(x: Tensor): Tensor {
    return x
  }
}

/** The last norm and the head in one launch. */
export class KFusedHead extends Linear {
  readonly #norm: RMSNorm

  constructor(original: Linear, norm: RMSNorm) {
    super(original.inFeatures, original.outFeatures, original.options)
    this.#norm = norm
  }

  override forward(x: Tensor): Tensor {
    const { weight, eps, offset } = this.#norm
    return normLinear(x, weight, eps, offset, this.weight)
  }
}

registerModules({ KFusedAttention, KFusedMLP, KFusedDecoderLayer, KDeferredNorm, KFusedHead })

interface AttentionParts {
  readonly q_proj: Linear
  readonly k_proj: Linear
  readonly v_proj: Linear
  readonly o_proj: Linear
  readonly q_norm: RMSNorm | undefined
  readonly k_norm: RMSNorm | undefined
  readonly qk_norm: L2Norm | undefined
  readonly attn: Attention
  readonly usesRope: boolean
}

/** Attention with separate projections, or with one for q, k and v whose rows are taken apart. */
function attentionParts(module: Module): AttentionParts | undefined {
  const child = new Map(module.children())
  const attn = child.get("attn")
  const o_proj = child.get("o_proj")
  if (!(attn instanceof Attention && o_proj instanceof Linear)) return undefined
  const q_norm = child.get("q_norm")
  const k_norm = child.get("k_norm")
  const norms =
    q_norm instanceof RMSNorm && k_norm instanceof RMSNorm
      ? { q_norm, k_norm }
      : { q_norm: undefined, k_norm: undefined }
  if (norms.q_norm === undefined && (q_norm ?? k_norm) !== undefined) return undefined
  const both = child.get("qk_norm")
  if (both !== undefined && !(both instanceof L2Norm)) return undefined
  const common = { o_proj, ...norms, qk_norm: both, attn, usesRope: usesRope(module) }
  const q_proj = child.get("q_proj")
  // a projection that also makes gates is no plain q (Qwen3-Next)
  if (q_proj instanceof Linear && q_proj.outFeatures !== attn.numHeads * attn.headDim)
    return undefined
  const k_proj = child.get("k_proj")
  const v_proj = child.get("v_proj")
  if (q_proj instanceof Linear && k_proj instanceof Linear && v_proj instanceof Linear) {
    return { q_proj, k_proj, v_proj, ...common }
  }
  const qkv = child.get("qkv_proj")
  if (!(qkv instanceof Linear)) return undefined
  const { numHeads, numKVHeads, headDim, vDim } = attn
  const [q, k, v] = slices(qkv, "qkv_proj", [
    numHeads * headDim,
    numKVHeads * headDim,
    numKVHeads * vDim,
  ]) as [Linear, Linear, Linear]
  return { q_proj: q, k_proj: k, v_proj: v, ...common }
}

/** Attention rotates q and k, unless it says that its layer knows no positions. */
function usesRope(module: Module): boolean {
  return !("usesRope" in module && module.usesRope === false)
}

interface MLPParts {
  readonly gate_proj: Linear
  readonly up_proj: Linear
  readonly down_proj: Linear
  readonly act: Activation
}

/** A gated MLP with separate projections, or with one for gate and up. */
function mlpParts(module: Module): MLPParts | undefined {
  const child = new Map(module.children())
  const down_proj = child.get("down_proj")
  const act = "act" in module ? module.act : undefined
  if (!(down_proj instanceof Linear) || !isActivation(act)) return undefined
  const gate_proj = child.get("gate_proj")
  const up_proj = child.get("up_proj")
  if (gate_proj instanceof Linear && up_proj instanceof Linear) {
    return { gate_proj, up_proj, down_proj, act }
  }
  const both = child.get("gate_up_proj")
  if (!(both instanceof Linear)) return undefined
  const n = both.outFeatures / 2
  const [gate, up] = slices(both, "gate_up_proj", [n, n]) as [Linear, Linear]
  return { gate_proj: gate, up_proj: up, down_proj, act }
}

const ACTIVATIONS: ReadonlySet<unknown> = new Set<Activation>([
  "silu",
  "gelu_pytorch_tanh",
  "gelu",
  "relu",
])

function isActivation(value: unknown): value is Activation {
  return ACTIVATIONS.has(value)
}

/** A fused projection as separate ones, whose rows are parts of the same stored matrix. */
function slices(fused: Linear, name: string, sizes: readonly number[]): Linear[] {
  const { bias = false } = fused.options
  let start = 0
  return sizes.map((size) => {
    const slice = { of: name, start, total: fused.outFeatures }
    start += size
    return new Linear(fused.inFeatures, size, { bias, slice })
  })
}

interface LayerParts {
  readonly self_attn: Module & {
    forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor
  }
  readonly mlp: Module & { forward(x: Tensor, batch: ForwardBatch, routing?: Routing): Tensor }
  readonly mlpName: string
  readonly attnName: string
  readonly input_layernorm: RMSNorm
  readonly post_attention_layernorm: RMSNorm
  readonly pre_feedforward_layernorm: RMSNorm | undefined
  readonly post_feedforward_layernorm: RMSNorm | undefined
}

/** Names of a layer's feed-forward half. */
const FEED_FORWARD = ["mlp", "feed_forward", "block_sparse_moe"] as const
/** Names of the half that mixes tokens. */
const ATTENTION = ["self_attn", "linear_attn"] as const

function layerParts(module: Module): LayerParts | undefined {
  const child = new Map(module.children())
  const attnName = ATTENTION.find((name) => child.has(name)) ?? ""
  const self_attn = child.get(attnName)
  const mlpName = FEED_FORWARD.find((name) => child.has(name)) ?? ""
  const mlp = child.get(mlpName)
  const input_layernorm = child.get("input_layernorm")
  const post_attention_layernorm = child.get("post_attention_layernorm")
  if (!hasForward(self_attn) || !hasForward(mlp)) return undefined
  if (!(input_layernorm instanceof RMSNorm && post_attention_layernorm instanceof RMSNorm)) {
    return undefined
  }
  const halves = { self_attn, attnName, mlp, mlpName, input_layernorm, post_attention_layernorm }
  const pre = child.get("pre_feedforward_layernorm")
  const post = child.get("post_feedforward_layernorm")
  if (pre instanceof RMSNorm && post instanceof RMSNorm) {
    return { ...halves, pre_feedforward_layernorm: pre, post_feedforward_layernorm: post }
  }
  if ((pre ?? post) !== undefined) return undefined
  return { ...halves, pre_feedforward_layernorm: undefined, post_feedforward_layernorm: undefined }
}

function hasForward(
  module: Module | undefined,
): module is Module & { forward(...args: unknown[]): Tensor } {
  return module !== undefined && "forward" in module && typeof module.forward === "function"
}

const schema = z.object({})

export function registerFused(registry: OperatorRegistry): void {
  registry.register("KFusedAttention", {
    schema,
    fused: true,
    declines: (original) =>
      (attentionParts(original) ?? latentParts(original)) === undefined
        ? "no attention of a kind that it fuses"
        : undefined,
    create: (original) => {
      const latent = latentParts(original)
      if (latent !== undefined) return new KFusedLatentAttention(latent)
      const parts = attentionParts(original)
      return parts === undefined ? original : new KFusedAttention(parts)
    },
  })
  registry.register("KFusedMLP", {
    schema,
    fused: true,
    declines: (original) => {
      const parts = mlpParts(original)
      if (parts === undefined) return "no gated MLP"
      const { gate_proj, up_proj } = parts
      const hasBias = gate_proj.options.bias === true || up_proj.options.bias === true
      return hasBias ? "gate and up projections with biases are not fused" : undefined
    },
    create: (original) => {
      const parts = mlpParts(original)
      return parts === undefined ? original : new KFusedMLP(parts)
    },
  })
  registry.register("KFusedDecoderLayer", {
    schema,
    fused: true,
    declines: (original) =>
      layerParts(original) === undefined ? "no decoder layer of a kind that it fuses" : undefined,
    create: (original) => {
      const parts = layerParts(original)
      return parts === undefined ? original : new KFusedDecoderLayer(parts)
    },
  })
  registry.register("KFusedHead", {
    schema,
    fused: true,
    declines: (original) =>
      original instanceof Linear && original.options.bias !== true
        ? undefined
        : "no linear head without bias",
    create: fuseHead,
  })
}

/** The head takes over the last norm, which then only holds its weight. */
function fuseHead(original: Module, _kwargs: object, { root }: OperatorContext): Module {
  const model = new Map(root.children()).get("model")
  const norm = new Map(model?.children()).get("norm")
  if (!(original instanceof Linear) || model === undefined || !(norm instanceof RMSNorm)) {
    return original
  }
  const deferred = new KDeferredNorm(norm.dim, norm.eps, norm.offset)
  model.replaceChild("norm", deferred)
  return new KFusedHead(original, deferred)
}
