import { embedding, layerNorm, linear, rmsNorm } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { ForwardBatch } from "./forward-batch.ts"
import { Module, type OpNames, type Parameter, registerModules, type RowGroups } from "./module.ts"

export interface LinearOptions {
  readonly bias?: boolean
  /** Path of the matrix to share where the checkpoint has none of this module's own (a head tied to the embeddings). */
  readonly tiedTo?: string
  /** This module is some rows of a fused projection beside it: `start` of `total` rows of `of`. */
  readonly slice?: { readonly of: string; readonly start: number; readonly total: number }
  /** Some checkpoints have this module's rows in groups of a fused projection beside it. */
  readonly grouped?: RowGroups
}

/** y = x · Wᵀ (+ bias) */
export class Linear extends Module {
  readonly inFeatures: number
  readonly outFeatures: number
  readonly options: LinearOptions
  /** [out, in] of any weight type, packed or not */
  weight!: Tensor
  /** [out] F32 */
  bias: Tensor | null = null

  constructor(inFeatures: number, outFeatures: number, options: LinearOptions = {}) {
    super()
    this.inFeatures = inFeatures
    this.outFeatures = outFeatures
    this.options = options
  }

  override parameters(): Parameter[] {
    const { bias = false, tiedTo, slice, grouped } = this.options
    const rows = slice?.total ?? this.outFeatures
    const prefix = slice === undefined ? "" : `../${slice.of}.`
    const part = {
      ...(slice === undefined ? {} : { rows: { start: slice.start, count: this.outFeatures } }),
      ...(grouped === undefined ? {} : { grouped }),
    }
    const weight: Parameter = {
      name: `${prefix}weight`,
      shape: [rows, this.inFeatures],
      kind: "weight",
      ...part,
      ...(tiedTo === undefined ? {} : { fallback: tiedTo }),
      bind: (tensor) => (this.weight = tensor),
    }
    if (!bias) return [weight]
    const shape = [rows]
    const bind = (tensor: Tensor): void => void (this.bias = tensor)
    return [weight, { name: `${prefix}bias`, shape, kind: "vector", ...part, bind }]
  }

  /** x [tokens, in] → [tokens, out] */
  forward(x: Tensor): Tensor {
    return linear(x, this.weight, this.bias)
  }
}

/** x / rms(x) · (weight + offset) over the innermost dimension. */
export class RMSNorm extends Module {
  readonly dim: number
  readonly eps: number
  /** 1 where the checkpoint stores w of (1 + w). */
  readonly offset: number
  /** [dim] F32 */
  weight!: Tensor

  constructor(dim: number, eps: number, offset = 0) {
    super()
    this.dim = dim
    this.eps = eps
    this.offset = offset
  }

  override parameters(): Parameter[] {
    const bind = (tensor: Tensor): void => void (this.weight = tensor)
    return [{ name: "weight", shape: [this.dim], kind: "vector", bind }]
  }

  /** x [..., dim] → the same shape */
  forward(x: Tensor): Tensor {
    return this.normalize(x)
  }

  /** The norm itself, also where another module has taken it over and forward() passes x on. */
  normalize(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.eps, this.offset)
  }
}

/** (x - mean(x)) / deviation(x) · weight + bias over the innermost dimension. */
export class LayerNorm extends Module {
  readonly dim: number
  readonly eps: number
  /** [dim] F32 */
  weight!: Tensor
  bias!: Tensor

  constructor(dim: number, eps: number) {
    super()
    this.dim = dim
    this.eps = eps
  }

  override parameters(): Parameter[] {
    const shape = [this.dim]
    return [
      { name: "weight", shape, kind: "vector", bind: (tensor) => (this.weight = tensor) },
      { name: "bias", shape, kind: "vector", bind: (tensor) => (this.bias = tensor) },
    ]
  }

  override requiredOps(): OpNames {
    return ["kt_layer_norm"]
  }

  /** x [..., dim] → the same shape; `out` may be x. */
  forward(x: Tensor, out?: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, this.eps, out)
  }
}

/** x / rms(x) over the innermost dimension, without a weight (Llama 4 calls it an L2 norm). */
export class L2Norm extends Module {
  readonly eps: number

  constructor(eps: number) {
    super()
    this.eps = eps
  }

  /** x [..., dim] → the same shape */
  forward(x: Tensor): Tensor {
    return rmsNorm(x, null, this.eps)
  }
}

/** Rows of a table by token id, times a constant. */
export class Embedding extends Module {
  readonly vocabSize: number
  readonly dim: number
  readonly scale: number
  /** [vocab, dim] of any weight type */
  weight!: Tensor

  constructor(vocabSize: number, dim: number, scale = 1) {
    super()
    this.vocabSize = vocabSize
    this.dim = dim
    this.scale = scale
  }

  override parameters(): Parameter[] {
    const bind = (tensor: Tensor): void => void (this.weight = tensor)
    return [{ name: "weight", shape: [this.vocabSize, this.dim], kind: "table", bind }]
  }

  /** ids [tokens] I32 → [tokens, dim] */
  forward(ids: Tensor): Tensor {
    return embedding(this.weight, ids, this.scale)
  }
}

/** The rows of x whose logits a batch asks for; x [T, hidden] → [R, hidden]. */
export function selectLogitsRows(x: Tensor, batch: ForwardBatch): Tensor {
  // rows are distinct and in order, so as many as there are tokens are all of them
  return batch.logitsRows.dim(0) === batch.numTokens ? x : embedding(x, batch.logitsRows)
}

registerModules({ Linear, RMSNorm, LayerNorm, L2Norm, Embedding })
