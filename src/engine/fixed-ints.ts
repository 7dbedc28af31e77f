import type { Backend } from "../native/backend.ts"
import { Slab } from "../native/memory.ts"
import { I32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"

/**
 * Integers in native memory at a fixed place: inputs and outputs of steps, written and read by the host in place. A device
 * other than the host gets inputs as copies, since it reads them in every layer, and writes outputs into this memory.
 */
export class FixedInts {
  readonly values: Int32Array
  readonly #backend: Backend
  readonly #slab: Slab
  readonly #copy: Tensor | undefined

  constructor(backend: Backend, length: number) {
    this.#backend = backend
    this.#slab = new Slab(backend.library, Math.max(length, 1) * 4, { pinned: true })
    this.values = new Int32Array(this.#slab.view(0, length * 4))
    if (!backend.isHost) this.#copy = Tensor.allocate(backend, I32, [Math.max(length, 1)])
  }

  /** The first values as an input of this step. */
  view(shape: readonly number[]): Tensor {
    const out = this.#tensor(shape, this.#copy?.data ?? this.#slab.address)
    if (this.#copy !== undefined) this.#backend.copy(out.data, this.#slab.address, out.numel * 4)
    return out
  }

  /** The first values as an output of this step; read `values` after the backend was synchronized. */
  target(shape: readonly number[]): Tensor {
    return this.#tensor(shape, this.#slab.address)
  }

  #tensor(shape: readonly number[], data: number): Tensor {
    return new Tensor(this.#backend, I32, shape, data)
  }

  [Symbol.dispose](): void {
    this.#slab[Symbol.dispose]()
    this.#copy?.[Symbol.dispose]()
  }
}
