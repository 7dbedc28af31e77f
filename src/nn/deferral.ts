import { add, cast, type Routing } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"

/** Steps of more tokens are prompts', whose experts are not deferred. */
const MAX_TOKENS = 16

/**
 * Experts whose part in the sum comes a layer later ("expert deferral", KTransformers at SOSP 2025): the host computes
 * them while the device computes the next layer's attention. Shared by layers that follow each other on one device.
 */
export class Deferral {
  #work: (() => Tensor) | undefined
  #sum: Tensor | undefined
  /** Whether the step that they are of goes on: one that failed leaves them behind. */
  #isOfStep: () => boolean = () => false

  /** The last `count` of each token's experts, its least ones, apart from the others; undefined: nothing is deferred. */
  split(
    x: Tensor,
    { ids, weights }: Routing,
    count: number,
  ): { readonly now: Routing; readonly x: Tensor; readonly later: Routing } | undefined {
    const [tokens, k] = [ids.dim(0), ids.dim(1)]
    const most = Math.min(count, k - 1)
    if (most < 1 || tokens > MAX_TOKENS) return undefined
    const part = (start: number, length: number): Routing => ({
      ids: whole(ids.narrow(1, start, length)),
      weights: whole(weights.narrow(1, start, length)),
    })
    // what was handed over is overwritten by the next layer
    return { now: part(0, k - most), x: whole(x), later: part(k - most, most) }
  }

  /** Computes what a layer has put off, unless that was done. */
  run(): void {
    if (this.#work === undefined) return
    this.#sum = this.#isOfStep() ? this.#work() : undefined
    this.#work = undefined
  }

  /** sum += what the layer before has put off. */
  addTo(sum: Tensor): void {
    this.run()
    if (this.#sum !== undefined && this.#isOfStep()) add(sum, this.#sum, sum)
    this.#sum = undefined
  }

  /** `x`: a tensor of the step */
  putOff({ backend: { arena } }: Tensor, work: () => Tensor): void {
    const { generation } = arena
    this.#isOfStep = () => arena.generation === generation
    this.#work = work
  }
}

function whole(view: Tensor): Tensor {
  return cast(view, view.dtype)
}
