import type { Backend } from "../native/backend.ts"
import {
  actMul,
  cast,
  embedding,
  type ExpertsOperands,
  fusedExperts,
  type Routing,
} from "../ops/index.ts"
import { I32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"

type Stacks = Pick<ExpertsOperands, "gate" | "up" | "down">
type Biases = Pick<ExpertsOperands, "gateBias" | "upBias" | "downBias">

/**
 * Some experts of a layer whose others the host computes, in a device's memory: those that were chosen among them are
 * computed there, in the same step, with the host left to the rest.
 */
export class ResidentExperts implements Disposable {
  readonly device: Backend
  /** Experts by their number, in order. */
  readonly ids: readonly number[]
  readonly #pack: (weight: Tensor) => Tensor | null
  readonly #stacks = new Map<keyof Stacks, Tensor>()
  readonly #biases = new Map<keyof Biases, Tensor>()
  readonly #isResident: readonly boolean[]
  /** [experts, 1] F32: each expert's place in the stacks (0 of others), and 1 for those that have one */
  readonly #places: Tensor
  readonly #shares: Tensor

  /** @param pack Rearranges stacks for the device's kernels, or null where they read them as they are */
  constructor(
    device: Backend,
    ids: readonly number[],
    numExperts: number,
    pack: (weight: Tensor) => Tensor | null,
  ) {
    this.device = device
    this.ids = ids
    this.#pack = pack
    const places = new Float32Array(numExperts)
    const shares = new Float32Array(numExperts)
    for (const [place, id] of ids.entries()) {
      places[id] = place
      shares[id] = 1
    }
    this.#isResident = Array.from(shares, (share) => share === 1)
    this.#places = Tensor.from(device, places, [numExperts, 1], { persistent: true })
    this.#shares = Tensor.from(device, shares, [numExperts, 1], { persistent: true })
  }

  /** Takes its experts of a stack [experts, rows, columns] of the host, as the file has it. */
  take(which: keyof Stacks, stored: Tensor): void {
    const { device, ids } = this
    const bytes = stored.strides[0] as number
    const own = Tensor.allocate(device, stored.dtype, [ids.length, ...stored.shape.slice(1)])
    for (const [place, id] of ids.entries())
      device.copy(own.data + place * bytes, stored.data + id * bytes, bytes)
    const packed = this.#pack(own)
    if (packed !== null) own[Symbol.dispose]()
    this.#stacks.set(which, packed ?? own)
  }

  /** The same of biases [experts, rows] F32. */
  takeBias(which: keyof Biases, stored: Tensor): void {
    const all = stored.toFloat32Array()
    const rows = stored.dim(1)
    const own = new Float32Array(this.ids.length * rows)
    for (const [place, id] of this.ids.entries())
      own.set(all.subarray(id * rows, (id + 1) * rows), place * rows)
    const shape = [this.ids.length, rows]
    this.#biases.set(which, Tensor.from(this.device, own, shape, { persistent: true }))
  }

  /** Whether the device has an expert. */
  has(id: number): boolean {
    return this.#isResident[id] === true
  }

  /** What its experts add to the sum of a step, [tokens, hidden]; the others' weights are zero. */
  forward(
    x: Tensor,
    { ids, weights }: Routing,
    options: Pick<ExpertsOperands, "act" | "scaleInput">,
  ): Tensor {
    const flat = ids.reshape([ids.numel])
    const places = cast(embedding(this.#places, flat), I32).reshape(ids.shape)
    const shares = actMul(embedding(this.#shares, flat).reshape(ids.shape), weights, "relu")
    return fusedExperts({
      ...options,
      x,
      ids: places,
      weights: shares,
      gate: this.#stacks.get("gate") as Tensor,
      up: this.#stacks.get("up") as Tensor,
      down: this.#stacks.get("down") as Tensor,
      gateBias: this.#biases.get("gateBias") ?? null,
      upBias: this.#biases.get("upBias") ?? null,
      downBias: this.#biases.get("downBias") ?? null,
    })
  }

  /**
   * What is left to the host, of a routing that it reads: as many experts for each token as one has at most, fewer filled up with
   * others that are computed anyway, at weight zero. Undefined where nothing is left.
   */
  rest({ ids, weights }: Routing): Routing | undefined {
    const [tokens, k] = [ids.dim(0), ids.dim(1)]
    const chosen = ids.toInt32Array()
    const shares = weights.toFloat32Array()
    let most = 0
    /** Of the token that has most. */
    let first = 0
    for (let t = 0; t < tokens; t++) {
      let count = 0
      for (let j = t * k; j < (t + 1) * k; j++) if (!this.has(chosen[j] as number)) count++
      if (count <= most) continue
      most = count
      first = t
    }
    if (most === 0) return undefined
    const spare = [...chosen.subarray(first * k, (first + 1) * k)].filter((id) => !this.has(id))
    const restIds = new Int32Array(tokens * most)
    const restShares = new Float32Array(tokens * most)
    for (let t = 0; t < tokens; t++) {
      let to = t * most
      for (let j = t * k; j < (t + 1) * k; j++) {
        const id = chosen[j] as number
        if (this.has(id)) continue
        restIds[to] = id
        restShares[to++] = shares[j] as number
      }
      // no expert twice for one token
      const own = restIds.subarray(t * most, to)
      for (let s = 0; to < (t + 1) * most; s++)
        if (!own.includes(spare[s] as number)) restIds[to++] = spare[s] as number
    }
    const { backend } = ids
    return {
      ids: Tensor.from(backend, restIds, [tokens, most]),
      weights: Tensor.from(backend, restShares, [tokens, most]),
    }
  }

  [Symbol.dispose](): void {
    for (const tensor of [...this.#stacks.values(), ...this.#biases.values()])
      tensor[Symbol.dispose]()
    this.#places[Symbol.dispose]()
    this.#shares[Symbol.dispose]()
  }
}
