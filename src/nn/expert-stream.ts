import type { Backend, Fence } from "../native/backend.ts"
import type { Memory } from "../native/memory.ts"
import type { DTypeInfo } from "../tensor/dtype.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"

/** An expert stack of the host as the file has it. */
export interface StreamedStack {
  readonly dtype: DTypeInfo
  readonly shape: readonly number[]
  /** Of its bytes, in page-locked memory where that can be had. */
  readonly address: number
}

/** One layer's stacks: gate, up, down. */
export type StreamedLayer = readonly [StreamedStack, StreamedStack, StreamedStack]

/** Layers that are on the device at once: one is computed with while the next is on its way. */
const SLOTS = 2

interface Slot {
  readonly memory: Memory
  /** The stacks have arrived. */
  readonly ready: Fence
  /** They are no longer read. */
  readonly free: Fence
  layer: number
}

/**
 * Experts of the host on their way through a device, layer after layer, while prompts are computed there: two buffers, filled
 * by a context of their own beside the device's ops.
 */
export class ExpertStream implements Disposable {
  readonly device: Backend
  /** From so many tokens on a step's experts are computed with on the device. */
  threshold: number
  readonly #uploads: Backend
  readonly #layers: readonly StreamedLayer[]
  readonly #slots: readonly Slot[]

  /**
   * @param uploads Another context of the device
   * @throws NativeError where the device has no room for the buffers
   */
  constructor(
    device: Backend,
    uploads: Backend,
    layers: readonly StreamedLayer[],
    threshold: number,
  ) {
    this.device = device
    this.threshold = threshold
    this.#uploads = uploads
    this.#layers = layers
    const bytes = Math.max(...layers.map(layerBytes))
    const slots: Slot[] = []
    this.#slots = slots
    for (let i = 0; i < Math.min(SLOTS, layers.length); i++)
      slots.push({
        memory: device.allocate(bytes),
        ready: uploads.fence(),
        free: device.fence(),
        layer: -1,
      })
    // the buffers are made zero by the device's own context
    device.synchronize()
  }

  /** The stacks of a layer on the device, for ops that are called now; done() after them. */
  take(layer: number): { readonly gate: Tensor; readonly up: Tensor; readonly down: Tensor } {
    this.#upload(layer)
    // at first nothing is on its way
    if (this.#slotOf(layer + 1).layer < 0 && layer + 1 < this.#layers.length)
      this.#upload(layer + 1)
    const slot = this.#slotOf(layer)
    slot.ready.holdUp(this.device)
    let at = slot.memory.address
    const [gate, up, down] = (this.#layers[layer] as StreamedLayer).map((stack) => {
      const tensor = new Tensor(this.device, stack.dtype, stack.shape, at + headOf(stack))
      at += roomOf(stack)
      return tensor
    }) as [Tensor, Tensor, Tensor]
    return { gate, up, down }
  }

  /** The ops that read a layer's stacks were called: its buffer is for the layer after the next, or of the next step. */
  done(layer: number): void {
    const { length } = this.#slots
    this.#slotOf(layer).free.record()
    this.#upload(layer + length < this.#layers.length ? layer + length : layer % length)
  }

  #slotOf(layer: number): Slot {
    return this.#slots[layer % this.#slots.length] as Slot
  }

  #upload(layer: number): void {
    const slot = this.#slotOf(layer)
    if (slot.layer === layer) return
    slot.free.holdUp(this.#uploads)
    let at = slot.memory.address
    for (const stack of this.#layers[layer] as StreamedLayer) {
      const head = headOf(stack)
      const bytes = byteLength(stack.dtype, stack.shape)
      this.#uploads.copy(at + head, stack.address, bytes)
      at += roomOf(stack)
    }
    slot.ready.record()
    slot.layer = layer
  }

  /** Milliseconds that a layer's way to the device takes. */
  measure(): number {
    using begin = this.#uploads.fence()
    using end = this.#uploads.fence()
    const slot = this.#slots[0] as Slot
    for (const fence of [begin, end]) {
      slot.layer = -1
      this.#upload(0)
      fence.record()
    }
    return begin.until(end)
  }

  [Symbol.dispose](): void {
    this.#uploads.synchronize()
    for (const { memory, ready, free } of this.#slots)
      for (const part of [memory, ready, free]) part[Symbol.dispose]()
  }
}

function layerBytes(layer: StreamedLayer): number {
  return layer.reduce((sum, stack) => sum + roomOf(stack), 0)
}

/** Device bytes of the buffers for layers of at most `bytes`. */
export function streamBytes(bytes: number): number {
  return SLOTS * (bytes + 3 * 2 * LINE)
}

/** What a link moves at a time: a way from one place within such a piece to another one takes longer. */
const LINE = 256

/** Bytes before a stack, so that it lies within a piece as it does in its file. */
function headOf({ address }: StreamedStack): number {
  return address % LINE
}

function roomOf(stack: StreamedStack): number {
  return Math.ceil((headOf(stack) + byteLength(stack.dtype, stack.shape)) / LINE) * LINE
}
