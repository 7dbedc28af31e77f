import type { Backend } from "../native/backend.ts"
import type { Graph } from "../native/graph.ts"
import type { ArenaMark } from "../native/memory.ts"
import { copy, type Routing } from "../ops/index.ts"
import { F32, I32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"

/**
 * A layer's activations on their way to experts that the host computes, and the sum on its way back, in memory that both
 * sides read and write at one address: nothing is copied by the host, and the device goes on with other work meanwhile.
 */
export class Handover {
  /** Where the device writes the choice. */
  readonly routing: Routing
  /** The experts' sum, as the device reads it. */
  readonly sum: Tensor
  /** The same memory as the host has it: inputs valid after reach(). */
  readonly host: { readonly x: Tensor; readonly routing: Routing; readonly sum: Tensor }
  readonly #device: Backend
  readonly #x: Tensor
  readonly #mark: ArenaMark | undefined
  /** What the host computes is not made of ops alone: it is called in every step. */
  readonly #callsScript: boolean
  /** The point of a recorded step at which the host has what it computes with. */
  #arrived = 0

  private constructor(
    device: Backend,
    host: Backend,
    sizes: HandoverSizes,
    data: number,
    mark: ArenaMark | undefined,
    callsScript: boolean,
  ) {
    const { tokens, hidden, topK } = sizes
    this.#callsScript = callsScript
    const vectors = align(tokens * hidden * 4)
    const choice = align(tokens * topK * 4)
    const [sum, ids, weights] = [data + vectors, data + 2 * vectors, data + 2 * vectors + choice]
    const wide = [tokens, hidden]
    const narrow = [tokens, topK]
    this.#device = device
    this.#mark = mark
    // what a recorded step's host work reads and writes is described as long as the step can be launched
    const persistent = device.recording !== undefined
    this.#x = new Tensor(device, F32, wide, data)
    this.sum = new Tensor(device, F32, wide, sum)
    this.routing = {
      ids: new Tensor(device, I32, narrow, ids),
      weights: new Tensor(device, F32, narrow, weights),
    }
    this.host = {
      x: new Tensor(host, F32, wide, data, { persistent }),
      sum: new Tensor(host, F32, wide, sum, { persistent }),
      routing: {
        ids: new Tensor(host, I32, narrow, ids, { persistent }),
        weights: new Tensor(host, F32, narrow, weights, { persistent }),
      },
    }
  }

  /** Undefined where the two have no memory in common. */
  static open(
    device: Backend,
    host: Backend,
    sizes: HandoverSizes,
    callsScript = false,
  ): Handover | undefined {
    if (device.isHost || !host.isHost) return undefined
    const mark = device.shared?.mark()
    const data = device.allocShared(handoverBytes(sizes))
    return data === undefined
      ? undefined
      : new Handover(device, host, sizes, data, mark, callsScript)
  }

  /** Writes x [tokens, hidden] to the host; the routing was written by its own op. */
  send(x: Tensor): void {
    copy(x, this.#x)
    const device = this.#device
    const { recording } = device
    if (recording === undefined) device.mark()
    else if (this.#callsScript) recording.hostWork(() => device.mark())
    else this.#arrived = recording.signal(device)
  }

  /** Has the host compute with what was sent, once it is there; until then it does what does not need it. */
  receive(compute: () => void, meanwhile?: () => void): void {
    const device = this.#device
    const { recording } = device
    const work = (): void => {
      meanwhile?.()
      device.reachMark()
      compute()
    }
    if (recording === undefined) work()
    else if (this.#callsScript) recording.hostWork(work)
    else this.#recorded(recording, compute, meanwhile)
  }

  /** The host's ops are recorded beside the device's. */
  #recorded(recording: Graph, compute: () => void, meanwhile?: () => void): void {
    const host = this.host.x.backend
    recording.beside(host)
    meanwhile?.()
    recording.await(host, this.#arrived)
    compute()
    recording.await(this.#device, recording.signal(host))
  }

  /** Gives the memory to the next layer: its ops come after those that read the sum, and the host waits for them. */
  close(): void {
    if (this.#mark !== undefined) this.#device.shared?.release(this.#mark)
  }
}

export interface HandoverSizes {
  readonly tokens: number
  readonly hidden: number
  readonly topK: number
}

/** Page-locked bytes that a layer's activations take. */
export function handoverBytes({ tokens, hidden, topK }: HandoverSizes): number {
  return 2 * align(tokens * hidden * 4) + 2 * align(tokens * topK * 4)
}

function align(bytes: number): number {
  return Math.ceil(bytes / 256) * 256
}
