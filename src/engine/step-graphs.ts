import type { Backend } from "../native/backend.ts"
import { Graph } from "../native/graph.ts"
import type { Arena, ArenaMark } from "../native/memory.ts"
import { SAMPLE_STEPS } from "../nn/moe.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { StepTimes } from "../worker/protocol.ts"
import { StepClock } from "./step-times.ts"

/** Graphs that are held at once, and sequences of the largest: larger steps gain nothing worth memory. */
const MAX_GRAPHS = 32
export const MAX_GRAPH_SEQS = 32
/** Buckets that are remembered as seen once. */
const MAX_SEEN = 64

interface StepGraph {
  readonly graph: Graph
  readonly logits: Tensor
  /** The step arenas behind what the graph writes: what is allocated after a launch lies there. */
  readonly ends: readonly { readonly arena: Arena; readonly mark: ArenaMark }[]
  /** How often the host's arena was given back, where the host takes part. */
  readonly hostMoves: number
}

/**
 * Steps that generate, recorded by bucket. Steps of one bucket make the same calls with the same addresses: inputs lie in fixed buffers,
 * and the step arena is handed out in order. The first step of a bucket is computed as it is called, the second is recorded, later ones
 * are launched. Nobody but a bucket's name says what its steps depend on, so it must name all that JavaScript decides by.
 */
export class StepGraphs implements Disposable {
  readonly #backend: Backend
  readonly #log: (message: string) => void
  /** The least recently used first. */
  readonly #graphs = new Map<string, StepGraph>()
  readonly #seen = new Set<string>()
  /** Arena and precision that the graphs were recorded with. */
  #moves = 0
  #precision = ""
  #refused = false
  #launches = 0
  readonly #clock: StepClock

  constructor(backend: Backend, log: (message: string) => void = () => {}) {
    this.#backend = backend
    this.#clock = new StepClock(backend)
    this.#log = log
  }

  /** Steps that were computed by a graph. */
  get launches(): number {
    return this.#launches
  }

  get times(): StepTimes {
    return this.#clock.totals
  }

  /** A step begins, whether it is launched or not, or ends: its ops are done. */
  stepBegins(): void {
    this.#clock.begin()
  }

  stepEnds(): void {
    this.#clock.end()
  }

  /** Computes a step: its logits, of which a tensor of this step is to be made before they are used. */
  run(bucket: string, compute: () => Tensor): Tensor {
    this.#forgetStale()
    const known = this.#graphs.get(bucket)
    if (known !== undefined) {
      const logits = this.#launch(bucket, known)
      if (logits !== undefined) return logits
    } else if (this.#seen.has(bucket)) {
      const made = this.#record(bucket, compute)
      const logits = made && this.#launch(bucket, made)
      if (logits !== undefined) return logits
    } else if (!this.#refused) {
      if (this.#seen.size === MAX_SEEN) this.#seen.clear()
      this.#seen.add(bucket)
    }
    return compute()
  }

  #launch(bucket: string, step: StepGraph): Tensor | undefined {
    const { host } = step.graph
    if ((host?.arena.moves ?? 0) !== step.hostMoves || !this.#clock.launch(step.graph)) {
      this.clear()
      return undefined
    }
    for (const { arena, mark } of step.ends) arena.release(mark)
    this.#graphs.delete(bucket)
    this.#graphs.set(bucket, step)
    if (++this.#launches % SAMPLE_STEPS === 0) step.graph.read()
    return step.logits
  }

  #record(bucket: string, compute: () => Tensor): StepGraph | undefined {
    const backend = this.#backend
    const before = backend.arena.mark()
    try {
      const { graph, result: logits } = Graph.record(backend, compute)
      const arenas = [backend, graph.host].flatMap((one) => (one === undefined ? [] : [one.arena]))
      const ends = arenas.map((arena) => ({ arena, mark: arena.mark() }))
      const step = { graph, logits, ends, hostMoves: graph.host?.arena.moves ?? 0 }
      this.#graphs.set(bucket, step)
      const [oldest] = this.#graphs.keys()
      if (this.#graphs.size > MAX_GRAPHS && oldest !== undefined) this.#forget(oldest)
      return step
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      this.#log(`steps that generate are not recorded as graphs: ${reason}`)
      this.clear()
      this.#refused = true
      backend.arena.release(before)
      return undefined
    }
  }

  /** The step arena's memory is another, or the kernels compute otherwise. */
  #forgetStale(): void {
    const { arena, shared, precision } = this.#backend
    const moves = arena.moves + (shared?.moves ?? 0)
    if (this.#moves === moves && this.#precision === precision) return
    this.clear()
    this.#moves = moves
    this.#precision = precision
  }

  #forget(bucket: string): void {
    this.#graphs.get(bucket)?.graph[Symbol.dispose]()
    this.#graphs.delete(bucket)
  }

  /** Every bucket begins anew. */
  clear(): void {
    for (const bucket of [...this.#graphs.keys()]) this.#forget(bucket)
    this.#seen.clear()
  }

  [Symbol.dispose](): void {
    this.clear()
    this.#clock[Symbol.dispose]()
  }
}
