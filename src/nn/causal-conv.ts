import type { Backend } from "../native/backend.ts"
import { causalConv1d, type StateSegments } from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import { Module, type OpNames, type Parameter, registerModules } from "./module.ts"

export interface CausalConvOptions {
  readonly channels: number
  readonly kernel: number
  /** Which stored channel is which: `order[i]` is channel i of the input; undefined: the same. */
  readonly order?: Int32Array | undefined
}

/** Depthwise causal convolution and SiLU; sequences carry their last inputs from step to step. */
export class CausalConv1d extends Module {
  readonly options: CausalConvOptions
  /** [channels, 1, kernel] F32, as stored */
  weight!: Tensor
  /** [kernel, channels] F32, in the input's order */
  #taps: Tensor | undefined

  constructor(options: CausalConvOptions) {
    super()
    this.options = options
  }

  override parameters(): Parameter[] {
    const { channels, kernel } = this.options
    const bind = (tensor: Tensor): void => void (this.weight = tensor)
    return [{ name: "weight", shape: [channels, 1, kernel], kind: "vector", bind }]
  }

  override requiredOps(): OpNames {
    return ["kt_causal_conv1d"]
  }

  override materialize(backend: Backend): void {
    const { channels, kernel, order } = this.options
    const stored = this.weight.toFloat32Array()
    const taps = new Float32Array(stored.length)
    for (let c = 0; c < channels; c++) {
      const from = (order?.[c] ?? c) * kernel
      for (let j = 0; j < kernel; j++) taps[j * channels + c] = stored[from + j] as number
    }
    this.#taps = Tensor.from(backend, taps, [kernel, channels], { persistent: true })
  }

  /** x [T, groups, channels / groups], state [slots, kernel - 1, channels] → x's shape */
  forward(x: Tensor, segments: StateSegments, state: Tensor): Tensor {
    return causalConv1d(x, this.#taps as Tensor, segments, state)
  }
}

registerModules({ CausalConv1d })
