import type { EngineConfig } from "../config.ts"
import { freeBytes, openBackends } from "../engine/backends.ts"
import { buildModel, type BuiltModel } from "../engine/build.ts"
import { kvLayers, kvType, stateLayers } from "../engine/kv-layers.ts"
import { ConfigError, MemoryError } from "../errors.ts"
import { kvBytesPerPage, KVPool } from "../kvcache/pool.ts"
import { stateBytesPerSlot, StatePool } from "../kvcache/state-pool.ts"
import { maxContextLength, type ModelConfig } from "../models/config.ts"
import { asCausalLM, type CausalLM } from "../models/registry.ts"
import type { Backend } from "../native/backend.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { packWeight } from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import { loadWeights } from "../weights/load.ts"
import { formatBytes } from "./output.ts"

/** Runs a model over one sequence at a time on the calling thread and hands out its logits, which the engine does not. */
export class Evaluator implements Disposable {
  readonly config: ModelConfig
  /** Longest sequence it was made for. */
  readonly length: number
  readonly #backend: Backend
  readonly #model: CausalLM
  readonly #pool: KVPool
  /** One slot: there is one sequence. */
  readonly #states: StatePool
  readonly #chunk: number
  readonly #resources: DisposableStack

  private constructor(
    built: BuiltModel,
    backend: Backend,
    pool: KVPool,
    states: StatePool,
    chunk: number,
    resources: DisposableStack,
  ) {
    this.config = built.config
    this.length = pool.pages * pool.pageSize
    this.#backend = backend
    this.#model = asCausalLM(built.model)
    this.#pool = pool
    this.#states = states
    this.#chunk = chunk
    this.#resources = resources
  }

  /**
   * @param length tokens of the longest sequence
   * @throws ConfigError, FormatError or MemoryError, before weights are loaded wherever that can be told
   */
  static async open(
    options: EngineConfig,
    length: number,
    onWarning: (line: string) => void,
  ): Promise<Evaluator> {
    using resources = new DisposableStack()
    const built = await buildModel(options)
    resources.defer(() => built.weights.close())
    for (const warning of built.plan.warnings) onWarning(warning)
    const { config } = built
    const longest = maxContextLength(config)
    if (length > longest)
      throw new ConfigError(`a sequence of ${length} tokens: the model's context is ${longest}`)
    const { threads, precision, pageSize } = options
    const layers = kvLayers(config)
    const dtype = kvType(options, layers)
    const linear = stateLayers(config)
    const pages = Math.ceil(length / pageSize)
    const cacheBytes = pages * kvBytesPerPage(layers, pageSize, dtype) + stateBytesPerSlot(linear)
    checkMemory(built.weights.totalBytes, cacheBytes, freeBytes(built.device))
    const { host, backend } = openBackends(built.device, { threads, precision }, resources)
    // float activations take no other layout on the CPU
    const isPacked = options.repack && (precision === "fast" || !backend.isHost)
    const pack = isPacked ? { pack: packWeight } : {}
    resources.use(
      loadWeights(built.model, built.weights, { backend, host, ...pack, onNote: onWarning }),
    )
    const pool = resources.use(new KVPool(backend, layers, { pages, pageSize, dtype }))
    const states = resources.use(new StatePool(backend, linear, 1))
    return new Evaluator(built, backend, pool, states, options.maxBatchTokens, resources.move())
  }

  /**
   * Computes tokens `ids` that follow the first `start` of the sequence; a start of 0 begins a new one. `onLogits` gets
   * each wanted row, in order, as a view that lives as long as the call.
   *
   * @param wants whether the logits after the token at this position of the sequence are wanted
   */
  forward(
    ids: Int32Array,
    start: number,
    wants: (position: number) => boolean,
    onLogits: (position: number, logits: Float32Array) => void,
  ): void {
    for (let at = 0; at < ids.length; at += this.#chunk) {
      const part = ids.subarray(at, Math.min(at + this.#chunk, ids.length))
      this.#step(part, start + at, start === 0 ? ids.length : 0, wants, onLogits)
    }
  }

  #step(
    ids: Int32Array,
    start: number,
    promptLength: number,
    wants: (position: number) => boolean,
    onLogits: (position: number, logits: Float32Array) => void,
  ): void {
    const backend = this.#backend
    const count = ids.length
    const rows: number[] = []
    for (let i = 0; i < count; i++) if (wants(start + i)) rows.push(i)
    // models know no empty tensors: where nothing is wanted one row is computed for nobody
    const kept = rows.length === 0 ? [count - 1] : rows
    const ints = (values: Int32Array): Tensor => Tensor.from(backend, values)
    const positions = Int32Array.from(ids, (_, i) => start + i)
    const { pages } = this.#pool
    const batch: ForwardBatch = {
      phase: promptLength === 0 && count === 1 ? "decode" : "prefill",
      numTokens: count,
      numSeqs: 1,
      inputIds: ints(Int32Array.from(ids)),
      positions: ints(positions),
      // pages are used in their order, so a token's slot is its position
      slotMapping: ints(positions),
      blockTables: Tensor.from(
        backend,
        Int32Array.from({ length: pages }, (_, i) => i),
        [1, pages],
      ),
      queryStart: ints(Int32Array.of(0, count)),
      seqLens: ints(Int32Array.of(start + count)),
      logitsRows: ints(Int32Array.from(kept)),
      ropeLengths: Int32Array.from(ids, (_, i) => Math.max(promptLength, start + i + 1)),
      kvCache: this.#pool.layers,
      states: {
        segments: {
          start: ints(Int32Array.of(0, count)),
          source: ints(Int32Array.of(start === 0 ? -1 : 0)),
          target: ints(Int32Array.of(0)),
        },
        layers: this.#states.layers,
      },
    }
    try {
      const logits = this.#model.forward(batch).toFloat32Array()
      const vocab = this.config.vocab_size
      rows.forEach((row, r) => onLogits(start + row, logits.subarray(r * vocab, (r + 1) * vocab)))
    } finally {
      backend.resetStep()
    }
  }

  [Symbol.dispose](): void {
    this.#resources.dispose()
  }
}

function checkMemory(weightBytes: number, cacheBytes: number, free: number): void {
  if (weightBytes + cacheBytes <= free) return
  throw new MemoryError(
    `not enough memory: ${formatBytes(weightBytes)} of weights and ${formatBytes(cacheBytes)} of caches are needed, ${formatBytes(free)} are free`,
    { hint: "a smaller or more strongly quantised model would fit" },
  )
}

/** The lowest id among the largest logits. */
export function argmax(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i
  return best
}

/** Natural log-probability of a token under a row of logits, summed in float64. */
export function logProbability(logits: Float32Array, token: number): number {
  let max = -Infinity
  for (let i = 0; i < logits.length; i++) if (logits[i]! > max) max = logits[i]!
  let sum = 0
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - max)
  return logits[token]! - max - Math.log(sum)
}
