import { type Activation, fusedExperts } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { ForwardBatch } from "./forward-batch.ts"
import { Module, type Parameter, registerModules } from "./module.ts"

export interface ExpertsOptions {
  readonly numExperts: number
  readonly hiddenSize: number
  readonly intermediateSize: number
  readonly act: Activation
}

/** The routed experts of one layer: gated feed-forward networks whose matrices are stacked. */
export class Experts extends Module {
  readonly options: ExpertsOptions
  /** [experts, intermediate, hidden] */
  gate_proj!: Tensor
  up_proj!: Tensor
  /** [experts, hidden, intermediate] */
  down_proj!: Tensor

  constructor(options: ExpertsOptions) {
    super()
    this.options = options
  }

  override parameters(): Parameter[] {
    const { numExperts, hiddenSize, intermediateSize } = this.options
    const wide = [numExperts, intermediateSize, hiddenSize]
    const narrow = [numExperts, hiddenSize, intermediateSize]
    return [
      { name: "gate_proj", shape: wide, kind: "experts", bind: (t) => (this.gate_proj = t) },
      { name: "up_proj", shape: wide, kind: "experts", bind: (t) => (this.up_proj = t) },
      { name: "down_proj", shape: narrow, kind: "experts", bind: (t) => (this.down_proj = t) },
    ]
  }

  /** Σⱼ weights[t][j] · expert ids[t][j] of x. x [tokens, hidden], ids [tokens, k] I32, weights [tokens, k]. */
  forward(x: Tensor, ids: Tensor, weights: Tensor, _batch: ForwardBatch): Tensor {
    const { gate_proj, up_proj, down_proj, options } = this
    return fusedExperts({
      x,
      ids,
      weights,
      gate: gate_proj,
      up: up_proj,
      down: down_proj,
      act: options.act,
    })
  }
}

registerModules({ Experts })
