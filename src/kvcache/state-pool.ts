import { KtError } from "../errors.ts"
import type { LayerStateCache } from "../nn/forward-batch.ts"
import { F32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"
import { copyIn, copyOut, type Entries, entriesOf } from "./pool.ts"

/** What one layer keeps of a sequence, whatever its length. */
export interface StateLayerSpec {
  /** Inputs before the current one that the layer's convolution sees. */
  readonly convInputs: number
  readonly convChannels: number
  readonly heads: number
  readonly kDim: number
  readonly vDim: number
}

/** Bytes of one sequence's state in all layers. */
export function stateBytesPerSlot(layers: readonly StateLayerSpec[]): number {
  let values = 0
  for (const { convInputs, convChannels, heads, kDim, vDim } of layers)
    values += convInputs * convChannels + heads * kDim * vDim
  return values * 4
}

/**
 * States of sequences, a slot each, in every layer that keeps one; always F32, since errors would add up over a sequence.
 * Address space is taken at once; the system gives memory to a slot when it is first written.
 */
export class StatePool implements Disposable {
  readonly layers: readonly LayerStateCache[]
  readonly slots: number
  readonly bytes: number
  /** Of one slot over all layers: what copyOut() and copyIn() move. */
  readonly pieceBytes: number
  readonly #entries: readonly Entries[]

  /**
   * @param backend The device, or that of each layer
   * @throws NativeError when the address space cannot be had
   */
  constructor(
    backend: Tensor["backend"] | ((layer: number) => Tensor["backend"]),
    layers: readonly StateLayerSpec[],
    slots: number,
  ) {
    if (layers.length > 0 && slots < 1) throw new KtError(`a state cache of ${slots} slots`)
    this.slots = slots
    this.bytes = slots * stateBytesPerSlot(layers)
    const made: LayerStateCache[] = []
    this.layers = made
    try {
      for (const [i, { convInputs, convChannels, heads, kDim, vDim }] of layers.entries()) {
        const device = typeof backend === "function" ? backend(i) : backend
        const conv = Tensor.allocate(device, F32, [slots, convInputs, convChannels])
        made.push({ conv, state: conv })
        const state = Tensor.allocate(device, F32, [slots, heads, kDim, vDim])
        made[made.length - 1] = { conv, state }
      }
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
    this.#entries = made.flatMap(({ conv, state }) => [conv, state].map(entriesOf))
    this.pieceBytes = this.#entries.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /** Writes a slot's states, layer after layer, to memory of `pieceBytes`. */
  copyOut(slot: number, to: Uint8Array): void {
    copyOut(this.#entries, slot, to)
  }

  /** Overwrites a slot with what copyOut() gave. */
  copyIn(slot: number, from: Uint8Array): void {
    copyIn(this.#entries, slot, from)
  }

  [Symbol.dispose](): void {
    for (const { conv, state } of this.layers) {
      conv[Symbol.dispose]()
      state[Symbol.dispose]()
    }
  }
}
