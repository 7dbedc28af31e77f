import { packedBytes, packWeight } from "../ops/index.ts"
import { byteLength, type Tensor } from "../tensor/tensor.ts"

/** Rearranges weights as long as memory holds what they grow by. */
export class Repacking {
  #spareBytes: number
  #left = 0
  #leftBytes = 0

  /** @param spareBytes Memory that is free beside the file's own bytes, whose pages the rearranged weights replace */
  constructor(spareBytes: number) {
    this.#spareBytes = spareBytes
  }

  /** What is left of them. */
  get spareBytes(): number {
    return this.#spareBytes
  }

  /** For `loadWeights`: the rearranged weight, or null where the kernels read it as it is. */
  readonly pack = (weight: Tensor): Tensor | null => {
    const bytes = packedBytes(weight)
    if (bytes === null) return null
    const growth = bytes - byteLength(weight.dtype, weight.shape)
    if (growth > 0 && growth > this.#spareBytes) {
      this.#left++
      this.#leftBytes += growth
      return null
    }
    this.#spareBytes -= Math.max(0, growth)
    return packWeight(weight)
  }

  /** What stays as the file has it for want of memory. */
  get note(): string | undefined {
    if (this.#left === 0) return undefined
    return `${this.#left} weights are read as the file has them, slower: rearranged they need ${Math.ceil(this.#leftBytes / 2 ** 20)} MiB more than is free`
  }
}
