import type { Backend } from "../native/backend.ts"
import { nativeView } from "../native/memory.ts"
import { I32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"

/** Integers in native memory at a fixed place: inputs and outputs of steps, written and read in place. */
export class FixedInts {
  readonly values: Int32Array
  readonly #tensor: Tensor

  constructor(backend: Backend, length: number) {
    this.#tensor = Tensor.allocate(backend, I32, [length])
    this.values = new Int32Array(nativeView(this.#tensor.data, length * 4))
  }

  /** The first values as a tensor of this step. */
  view(shape: readonly number[]): Tensor {
    return new Tensor(this.#tensor.backend, I32, shape, this.#tensor.data)
  }

  [Symbol.dispose](): void {
    this.#tensor[Symbol.dispose]()
  }
}
