import { headLinear } from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import { Module, type OpNames, type Parameter, registerModules } from "./module.ts"

export interface LatentProjectionOptions {
  readonly numHeads: number
  /** Values of a latent. */
  readonly rank: number
  /** Of a head's key, without the part that rotates, and of its value. */
  readonly keyDim: number
  readonly valueDim: number
  /** The checkpoint has keys (transposed) and values as two stacks beside each other. */
  readonly split: boolean
}

/**
 * kv_b_proj of latent attention: what makes each head's key and value of a token's latent. Moved past the products with
 * queries and with attention weights (absorbed: DeepSeek-V2, arXiv 2405.04434, section 2.1.2), so that attention works on the
 * latents themselves. Both halves are read where they are stored, in any weight type: nothing is transposed or widened ahead.
 */
export class LatentProjection extends Module {
  readonly options: LatentProjectionOptions
  /** [heads · (key + value), rank] of any weight type; unless split */
  weight: Tensor | undefined
  /** [heads, rank, key] and [heads, value, rank] of any weight type; if split */
  k_b_proj: Tensor | undefined
  v_b_proj: Tensor | undefined
  /** [heads, key, rank], or [heads, rank, key] if split */
  #keys!: Tensor
  /** [heads, value, rank] */
  #values!: Tensor

  constructor(options: LatentProjectionOptions) {
    super()
    this.options = options
  }

  override parameters(): Parameter[] {
    const { numHeads, rank, keyDim, valueDim, split } = this.options
    // "table": rows are taken apart, so they stay as they are stored
    const kind = "table"
    if (split) {
      const bindKeys = (tensor: Tensor): void => void (this.#keys = this.k_b_proj = tensor)
      const bindValues = (tensor: Tensor): void => void (this.#values = this.v_b_proj = tensor)
      return [
        { name: "../k_b_proj.weight", shape: [numHeads, rank, keyDim], kind, bind: bindKeys },
        { name: "../v_b_proj.weight", shape: [numHeads, valueDim, rank], kind, bind: bindValues },
      ]
    }
    const bind = (tensor: Tensor): void => {
      this.weight = tensor
      const heads = tensor.unflatten(0, [numHeads, keyDim + valueDim])
      this.#keys = heads.narrow(1, 0, keyDim)
      this.#values = heads.narrow(1, keyDim, valueDim)
    }
    return [{ name: "weight", shape: [numHeads * (keyDim + valueDim), rank], kind, bind }]
  }

  override requiredOps(): OpNames {
    return ["kt_head_linear"]
  }

  /** Queries [T, heads, key] as queries over latents [T, heads, rank]: q · k(latent) = absorb(q) · latent. */
  absorb(q: Tensor, out?: Tensor): Tensor {
    return headLinear(q, this.#keys, { transposed: !this.options.split }, out)
  }

  /** Values [T, heads, value] of latents [T, heads, rank], mixed or not, for the heads from `first` on. */
  valuesOf(latents: Tensor, first: number, out: Tensor): Tensor {
    return headLinear(latents, someHeads(this.#values, first, latents.dim(1)), {}, out)
  }

  /** Keys [T, heads, key] of latents [T, heads, rank], for the heads from `first` on. */
  keysOf(latents: Tensor, first: number, out: Tensor): Tensor {
    const transposed = this.options.split
    return headLinear(latents, someHeads(this.#keys, first, latents.dim(1)), { transposed }, out)
  }
}

/** Some heads of a weight [heads, …] as a view that dies with the step: narrow()'s would live as long as the weight. */
function someHeads(weight: Tensor, first: number, count: number): Tensor {
  const { backend, dtype, shape, strides, data, owner } = weight
  if (count === weight.dim(0)) return weight
  const at = data + first * (strides[0] as number)
  return new Tensor(backend, dtype, shape.with(0, count), at, { strides, owner })
}

registerModules({ LatentProjection })
