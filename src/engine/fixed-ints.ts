import type { Backend } from "../native/backend.ts"
import { Slab } from "../native/memory.ts"
import { I32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"

/**
 * Integers in native memory at a fixed place: inputs and outputs of steps, written and read by the host in place. Devices
 * other than the host get inputs as copies, since they read them in every layer, and write outputs into this memory.
 */
export class FixedInts {
  readonly values: Int32Array
  readonly #backend: Backend
  readonly #slab: Slab
  readonly #copies: ReadonlyMap<Backend, Tensor>

  /** @param others Devices besides `backend` that read them */
  constructor(backend: Backend, length: number, others: readonly Backend[] = []) {
    const most = Math.max(length, 1)
    const devices = [backend, ...others].filter(({ isHost }) => !isHost)
    const { library } = devices[0] ?? backend
    this.#backend = backend
    this.#slab = new Slab(library, most * 4, { pinned: true })
    this.values = new Int32Array(this.#slab.view(0, length * 4))
    this.#copies = new Map(devices.map((device) => [device, Tensor.allocate(device, I32, [most])]))
  }

  /** The first values as an input of this step. */
  view(shape: readonly number[], backend = this.#backend): Tensor {
    const copy = this.#copies.get(backend)
    const out = new Tensor(backend, I32, shape, copy?.data ?? this.#slab.address)
    if (copy !== undefined) backend.copy(out.data, this.#slab.address, out.numel * 4)
    return out
  }

  /** The first values as an output of this step; read `values` after the backend was synchronized. */
  target(shape: readonly number[]): Tensor {
    return new Tensor(this.#backend, I32, shape, this.#slab.address)
  }

  [Symbol.dispose](): void {
    this.#slab[Symbol.dispose]()
    for (const copy of this.#copies.values()) copy[Symbol.dispose]()
  }
}
