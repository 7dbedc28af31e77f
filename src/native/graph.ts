import { KtError, NativeError } from "../errors.ts"
import { KT_ERR_UNSUPPORTED } from "./abi.generated.ts"
import type { Backend } from "./backend.ts"
import type { Address } from "./library.ts"
import { outSlot } from "./memory.ts"

interface HostWork {
  readonly work: () => void
  readonly waits: "all" | "itself"
}

/**
 * Ops that were called once while it was recorded, with the addresses and sizes that they were called with: each launch computes them
 * all. What lies at those addresses is read at the launch. Between its parts the host may have work of its own.
 */
export class Graph implements Disposable {
  readonly #backend: Backend
  readonly #parts: (Address | HostWork)[] = []
  readonly #readers: (() => void)[] = []

  private constructor(backend: Backend) {
    this.#backend = backend
  }

  /**
   * Calls `compute`, whose ops are kept and not computed: no tensor has values until the launch.
   *
   * @throws whatever makes that impossible; nothing was computed then
   */
  static record<T>(backend: Backend, compute: () => T): { graph: Graph; result: T } {
    if (backend.recording !== undefined) throw new KtError("a graph is being recorded already")
    const graph = new Graph(backend)
    backend.kept.rewind()
    graph.#begin()
    backend.recording = graph
    try {
      const result = compute()
      graph.#end()
      return { graph, result }
    } catch (error) {
      graph.#abandon()
      throw error
    } finally {
      backend.recording = undefined
    }
  }

  /**
   * While it is recorded: work of the host that every launch does here, before the ops that follow, and after those before
   * it unless it waits for what it needs itself.
   */
  hostWork(work: () => void, waits: "all" | "itself" = "all"): void {
    this.#end()
    this.#parts.push({ work, waits })
    this.#begin()
  }

  /** While it is recorded: what reads results after every launch. */
  afterLaunch(read: () => void): void {
    this.#readers.push(read)
  }

  /** Computes what was recorded; false, and nothing was done, when memory that it used has been given back since. */
  launch(): boolean {
    const backend = this.#backend
    for (const [i, part] of this.#parts.entries()) {
      if (typeof part !== "number") {
        if (part.waits === "all") backend.synchronize()
        part.work()
        continue
      }
      const status = backend.library.kt_graph_launch(backend.ctx, part)
      if (status === KT_ERR_UNSUPPORTED && i === 0) return false
      backend.check(status, "kt_graph_launch")
    }
    return true
  }

  /** Calls the readers; the ops of the last launch are done. */
  read(): void {
    for (const read of this.#readers) read()
  }

  #begin(): void {
    const { library, ctx } = this.#backend
    this.#backend.check(library.kt_graph_begin(ctx), "kt_graph_begin")
  }

  #end(): void {
    const { library, ctx } = this.#backend
    const out = outSlot()
    const status = library.kt_graph_end(ctx, out)
    if (status !== 0) throw new NativeError("kt_graph_end", status, library.kt_last_error())
    this.#parts.push(Number(out[0]))
  }

  /** Ends a recording that failed, so that ops are computed again when they are called. */
  #abandon(): void {
    const { library, ctx } = this.#backend
    const out = outSlot()
    if (library.kt_graph_end(ctx, out) === 0) library.kt_graph_destroy(Number(out[0]))
    this[Symbol.dispose]()
  }

  [Symbol.dispose](): void {
    for (const part of this.#parts)
      if (typeof part === "number") this.#backend.library.kt_graph_destroy(part)
    this.#parts.length = 0
    this.#readers.length = 0
  }
}
