import type { Backend, Fence } from "../native/backend.ts"
import type { Graph } from "../native/graph.ts"
import type { StepTimes } from "../worker/protocol.ts"

export const NO_STEPS: StepTimes = {
  steps: 0,
  gpuSeconds: 0,
  cpuSeconds: 0,
  syncSeconds: 0,
  hostSeconds: 0,
}

/** Where the time of launched steps goes, from the device's own clock and from what each side of a launch has waited. */
export class StepClock implements Disposable {
  readonly #backend: Backend
  readonly #fences: readonly [Fence, Fence] | undefined
  #graph: Graph | undefined
  #started = 0
  #launchMs = 0
  #totals: StepTimes = NO_STEPS

  constructor(backend: Backend) {
    this.#backend = backend
    // ops of the host are done when a launch returns
    this.#fences = backend.isHost ? undefined : [backend.fence(), backend.fence()]
  }

  get totals(): StepTimes {
    return this.#totals
  }

  begin(): void {
    this.#started = performance.now()
  }

  /** Has a step's graph launched. */
  launch(graph: Graph): boolean {
    const started = performance.now()
    this.#fences?.[0].record()
    const isDone = graph.launch()
    this.#fences?.[1].record()
    this.#launchMs = performance.now() - started
    this.#graph = isDone ? graph : undefined
    return isDone
  }

  /** All that the step's devices were told is done. */
  end(): void {
    const graph = this.#graph
    if (graph === undefined) return
    this.#graph = undefined
    const ms = performance.now() - this.#started
    const { host, hostWaited, deviceWaited } = graph.times()
    const fences = this.#fences
    const span = fences === undefined ? 0 : fences[0].until(fences[1])
    const gpu = Math.max(0, span - deviceWaited)
    const cpu = fences === undefined ? this.#launchMs : Math.max(0, host - hostWaited)
    const launched = fences === undefined ? this.#launchMs : Math.max(span, host)
    const sync = Math.max(0, launched - gpu - cpu)
    const sum = this.#totals
    this.#totals = {
      steps: sum.steps + 1,
      gpuSeconds: sum.gpuSeconds + gpu / 1000,
      cpuSeconds: sum.cpuSeconds + cpu / 1000,
      syncSeconds: sum.syncSeconds + sync / 1000,
      hostSeconds: sum.hostSeconds + Math.max(0, ms - launched) / 1000,
    }
  }

  [Symbol.dispose](): void {
    for (const fence of this.#fences ?? []) fence[Symbol.dispose]()
  }
}
