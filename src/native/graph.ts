import { KtError, NativeError } from "../errors.ts"
import { KT_ERR_CANCELLED, KT_ERR_UNSUPPORTED } from "./abi.generated.ts"
import type { Backend } from "./backend.ts"
import type { Address } from "./library.ts"
import { outSlot } from "./memory.ts"
import type { Turns } from "./turns.ts"

/** Integers that a step leaves in native memory, 4 bytes each. */
interface Integers {
  readonly data: Address
  readonly numel: number
}

interface Reader {
  readonly integers: Integers
  readonly read: (values: Int32Array) => void
}

/** What is nearer to each other than this is copied to the host together. */
const READ_GAP = 4096

/** Ops that are launched together: the device's, and the host's that take turns with them. */
interface Part {
  readonly device: Address
  readonly host: Address | undefined
}

/**
 * Ops that were called once while it was recorded, with the addresses and sizes that they were called with: each launch computes them
 * all. What lies at those addresses is read at the launch. The host may compute a part of them, by native code alone: it and
 * the device take turns within one launch. What needs JavaScript comes between launches.
 */
export class Graph implements Disposable {
  readonly #backend: Backend
  readonly #parts: (Part | (() => void))[] = []
  readonly #readers: Reader[] = []
  /** Points that the host, and the device, wait for. */
  readonly #waits = { host: [] as number[], device: [] as number[] }
  #hostMs = 0
  /** Takes part in what is being recorded now. */
  #host: Backend | undefined
  /** Takes part in some launch of this graph. */
  host: Backend | undefined

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
    backend.prepareSharing()
    backend.turns?.rewind()
    graph.#begin()
    try {
      const result = compute()
      graph.#end()
      return { graph, result }
    } catch (error) {
      graph.#abandon()
      throw error
    }
  }

  /** While it is recorded: ops of the host are kept too from here on, and come in their order beside the device's. */
  beside(host: Backend): void {
    if (this.#host === host) return
    if (this.#host !== undefined) throw new KtError("two hosts take part in one launch")
    host.check(host.library.kt_graph_begin(host.ctx), "kt_graph_begin")
    host.recording = this
    this.#host = host
    this.host = host
  }

  /** While it is recorded: a point after the ops so far of the device or its host, for the other one's await(). */
  signal(by: Backend): number {
    const turns = this.#turns()
    const point = turns.next()
    by.check(by.library.kt_turn_signal(by.ctx, turns.address, point), "kt_turn_signal")
    return point
  }

  /** While it is recorded: ops of the device or its host from here on come after a point of the other one. */
  await(by: Backend, point: number): void {
    const { address } = this.#turns()
    by.check(by.library.kt_turn_wait(by.ctx, address, point), "kt_turn_wait")
    this.#waits[by === this.#backend ? "device" : "host"].push(point)
  }

  #turns(): Turns {
    const { turns, label } = this.#backend
    if (turns === undefined) throw new KtError(`${label} and the CPU have no memory in common`)
    return turns
  }

  /** While it is recorded: what every launch does here, before the ops that follow; it waits for what it needs itself. */
  hostWork(work: () => void): void {
    this.#end()
    this.#parts.push(work)
    this.#begin()
  }

  /** While it is recorded: who reads integers of kept memory at each read(). */
  onRead(integers: Integers, read: (values: Int32Array) => void): void {
    this.#readers.push({ integers, read })
  }

  /** Computes what was recorded; false, and nothing was done, when memory that it used has been given back since. */
  launch(): boolean {
    const backend = this.#backend
    const { library, ctx } = backend
    this.#hostMs = 0
    for (const [i, part] of this.#parts.entries()) {
      if (typeof part === "function") {
        part()
        continue
      }
      const { device, host } = part
      if (host !== undefined) backend.turns?.begin()
      const status =
        host === undefined
          ? library.kt_graph_launch(ctx, device)
          : library.kt_graph_start(ctx, device)
      if (status === KT_ERR_UNSUPPORTED && i === 0) return false
      backend.check(status, "kt_graph_launch")
      if (host !== undefined) this.#launchBeside(host)
    }
    return true
  }

  /** The host's ops of a launch that the device has begun. */
  #launchBeside(ops: Address): void {
    const { library, ctx } = this.host as Backend
    const started = performance.now()
    const status = library.kt_graph_launch(ctx, ops)
    this.#hostMs += performance.now() - started
    if (status === 0) return
    const error = new NativeError("kt_graph_launch", status, library.kt_last_error())
    this.#backend.turns?.giveUp()
    try {
      this.#backend.synchronize()
    } catch (cause) {
      // the host has waited for one that had failed
      if (status === KT_ERR_CANCELLED) throw cause
    }
    throw error
  }

  /** Calls the readers with what the last launch left: what lies side by side comes in one copy. */
  read(): void {
    const readers = this.#readers
    for (let first = 0; first < readers.length;) {
      const { data: start, numel } = (readers[first] as Reader).integers
      let end = start + numel * 4
      let behind = first + 1
      for (; behind < readers.length; behind++) {
        const { data, numel: more } = (readers[behind] as Reader).integers
        if (data < end || data > end + READ_GAP) break
        end = data + more * 4
      }
      const values = new Int32Array((end - start) / 4)
      this.#backend.copy(values, start, values.byteLength)
      for (; first < behind; first++) {
        const { integers, read } = readers[first] as Reader
        const at = (integers.data - start) / 4
        read(values.subarray(at, at + integers.numel))
      }
    }
  }

  /** Milliseconds of the last launch, whose ops are done: the host's ops, and for how long it and the device waited for each other. */
  times(): { readonly host: number; readonly hostWaited: number; readonly deviceWaited: number } {
    const { turns } = this.#backend
    const sum = (points: readonly number[]): number =>
      points.reduce((ms, point) => ms + (turns?.waitedMs(point) ?? 0), 0)
    const { host, device } = this.#waits
    return { host: this.#hostMs, hostWaited: sum(host), deviceWaited: sum(device) }
  }

  #begin(): void {
    const { library, ctx } = this.#backend
    this.#backend.check(library.kt_graph_begin(ctx), "kt_graph_begin")
    this.#backend.recording = this
  }

  #end(): void {
    const device = endOf(this.#backend)
    const host = this.#host
    this.#host = undefined
    try {
      this.#parts.push({ device, host: host && endOf(host) })
    } catch (error) {
      this.#backend.library.kt_graph_destroy(device)
      throw error
    }
  }

  /** Ends a recording that failed, so that ops are computed again when they are called. */
  #abandon(): void {
    for (const backend of [this.#backend, this.#host])
      if (backend?.recording === this) {
        backend.recording = undefined
        const out = outSlot()
        if (backend.library.kt_graph_end(backend.ctx, out) === 0)
          backend.library.kt_graph_destroy(Number(out[0]))
      }
    this[Symbol.dispose]()
  }

  [Symbol.dispose](): void {
    for (const part of this.#parts) {
      if (typeof part === "function") continue
      this.#backend.library.kt_graph_destroy(part.device)
      if (part.host !== undefined) this.host?.library.kt_graph_destroy(part.host)
    }
    this.#parts.length = 0
    this.#readers.length = 0
  }
}

/** Ends what a context keeps. */
function endOf(backend: Backend): Address {
  const out = outSlot()
  backend.recording = undefined
  const status = backend.library.kt_graph_end(backend.ctx, out)
  if (status !== 0) throw new NativeError("kt_graph_end", status, backend.library.kt_last_error())
  return Number(out[0])
}
