import type { ForwardBatch } from "../nn/forward-batch.ts"
import { LatentAttention } from "../nn/latent-attention.ts"
import { LatentProjection } from "../nn/latent.ts"
import { Linear, RMSNorm } from "../nn/layers.ts"
import { Module, registerModules } from "../nn/module.ts"
import type { PositionEmbeddings } from "../nn/rope.ts"
import { linear, linearResidual, normLinear, rope } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"

/** Latent attention whose norms run inside the projections after them, and whose output adds to the residual stream. */
export class KFusedLatentAttention extends Module {
  q_proj: Linear | undefined
  q_a_proj: Linear | undefined
  q_a_layernorm: RMSNorm | undefined
  q_b_proj: Linear | undefined
  kv_a_proj_with_mqa
  kv_a_layernorm
  kv_b_proj
  o_proj
  attn

  constructor(parts: LatentParts) {
    super()
    const { queries } = parts
    if ("q_proj" in queries) {
      this.q_proj = queries.q_proj
    } else {
      this.q_a_proj = queries.q_a_proj
      this.q_a_layernorm = queries.q_a_layernorm
      this.q_b_proj = queries.q_b_proj
    }
    this.kv_a_proj_with_mqa = parts.kv_a_proj_with_mqa
    this.kv_a_layernorm = parts.kv_a_layernorm
    this.kv_b_proj = parts.kv_b_proj
    this.o_proj = parts.o_proj
    this.attn = parts.attn
  }

  /** x [T, hidden] → [T, hidden], as the module it replaces computes it. */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    return this.o_proj.forward(this.#attend(x, undefined, positions, batch))
  }

  /** x += attention(norm(x)), in place. */
  addTo(x: Tensor, norm: RMSNorm, positions: PositionEmbeddings, batch: ForwardBatch): void {
    const attended = this.#attend(x, norm, positions, batch)
    linearResidual(attended, this.o_proj.weight, this.o_proj.bias, x)
  }

  #attend(
    x: Tensor,
    norm: RMSNorm | undefined,
    positions: PositionEmbeddings,
    batch: ForwardBatch,
  ): Tensor {
    const { attn } = this
    const { rank, nope, rotary } = attn.sizes
    const { q_proj, q_a_proj, q_a_layernorm, q_b_proj } = this
    const first = (q_proj ?? q_a_proj) as Linear
    let q = normed(x, norm, first)
    if (q_b_proj !== undefined) q = normed(q, q_a_layernorm, q_b_proj)
    q = q.unflatten(-1, [attn.numHeads, nope + rotary])
    const compressed = normed(x, norm, this.kv_a_proj_with_mqa)
    const kRope = compressed.narrow(-1, rank, rotary).unflatten(-1, [1, rotary])
    rope(q.narrow(-1, nope, rotary), positions.table, positions.interleaved)
    rope(kRope, positions.table, positions.interleaved)
    const latents = this.kv_a_layernorm.forward(compressed.narrow(-1, 0, rank))
    return attn.mix(q, latents, kRope, this.kv_b_proj, batch).flatten(1)
  }
}

function normed(x: Tensor, norm: RMSNorm | undefined, { weight }: Linear): Tensor {
  return norm === undefined
    ? linear(x, weight)
    : normLinear(x, norm.weight, norm.eps, norm.offset, weight)
}

registerModules({ KFusedLatentAttention })

type Queries =
  | { readonly q_proj: Linear }
  | { readonly q_a_proj: Linear; readonly q_a_layernorm: RMSNorm; readonly q_b_proj: Linear }

interface LatentParts {
  readonly queries: Queries
  readonly kv_a_proj_with_mqa: Linear
  readonly kv_a_layernorm: RMSNorm
  readonly kv_b_proj: LatentProjection
  readonly o_proj: Linear
  readonly attn: LatentAttention
}

/** The parts of a module that is latent attention, and whose projections before attention have no biases. */
export function latentParts(module: Module): LatentParts | undefined {
  const child = new Map(module.children())
  const attn = child.get("attn")
  const kv_a_proj_with_mqa = child.get("kv_a_proj_with_mqa")
  const kv_a_layernorm = child.get("kv_a_layernorm")
  const kv_b_proj = child.get("kv_b_proj")
  const o_proj = child.get("o_proj")
  const queries = queriesOf(child)
  if (!(attn instanceof LatentAttention && kv_b_proj instanceof LatentProjection)) return undefined
  if (!(kv_a_layernorm instanceof RMSNorm && o_proj instanceof Linear)) return undefined
  if (!isPlain(kv_a_proj_with_mqa) || queries === undefined) return undefined
  return { queries, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, o_proj, attn }
}

function queriesOf(child: ReadonlyMap<string, Module>): Queries | undefined {
  const q_proj = child.get("q_proj")
  if (isPlain(q_proj)) return { q_proj }
  const q_a_proj = child.get("q_a_proj")
  const q_a_layernorm = child.get("q_a_layernorm")
  const q_b_proj = child.get("q_b_proj")
  if (!isPlain(q_a_proj) || !isPlain(q_b_proj)) return undefined
  return q_a_layernorm instanceof RMSNorm ? { q_a_proj, q_a_layernorm, q_b_proj } : undefined
}

function isPlain(module: Module | undefined): module is Linear {
  return module instanceof Linear && module.options.bias !== true
}
