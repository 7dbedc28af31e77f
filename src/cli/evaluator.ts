import type { EngineConfig } from "../config.ts"
import { computeThreads, openBackends, packForDevice } from "../engine/backends.ts"
import { buildModel, type BuiltModel } from "../engine/build.ts"
import { withChunk } from "../engine/chunk.ts"
import { checkHostCache, kvLayers, kvType, stateLayers } from "../engine/kv-layers.ts"
import { applyPlacement, cacheDevices } from "../engine/placement.ts"
import { planDevices } from "../engine/plan.ts"
import { ConfigError } from "../errors.ts"
import { KVPool } from "../kvcache/pool.ts"
import { StatePool } from "../kvcache/state-pool.ts"
import { maxContextLength, type ModelConfig } from "../models/config.ts"
import { asCausalLM, type CausalLM } from "../models/registry.ts"
import type { Backend } from "../native/backend.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { packWeight } from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import { loadWeights } from "../weights/load.ts"

/** Runs a model over one sequence at a time on the calling thread and hands out its logits, which the engine does not. */
export class Evaluator implements Disposable {
  readonly config: ModelConfig
  /** Longest sequence it was made for. */
  readonly length: number
  readonly #backends: readonly Backend[]
  readonly #model: CausalLM
  readonly #pool: KVPool
  /** One slot: there is one sequence. */
  readonly #states: StatePool
  readonly #chunk: number
  readonly #resources: DisposableStack

  private constructor(
    built: BuiltModel,
    backends: readonly Backend[],
    pool: KVPool,
    states: StatePool,
    chunk: number,
    resources: DisposableStack,
  ) {
    this.config = built.config
    this.length = pool.pages * pool.pageSize
    this.#backends = backends
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
    asked: EngineConfig,
    length: number,
    onWarning: (line: string) => void,
  ): Promise<Evaluator> {
    using resources = new DisposableStack()
    const built = await buildModel(asked)
    const options = withChunk(asked, built)
    resources.defer(() => built.weights.close())
    for (const warning of built.plan.warnings) onWarning(warning)
    const { config } = built
    const longest = maxContextLength(config)
    if (length > longest)
      throw new ConfigError(`a sequence of ${length} tokens: the model's context is ${longest}`)
    const { precision, pageSize } = options
    const layers = kvLayers(config)
    const dtype = kvType(options, layers)
    const linear = stateLayers(config)
    const pages = Math.ceil(length / pageSize)
    const kvCacheTokens = pages * pageSize
    const sizes = { contextLength: length, kvCacheTokens, maxBatchSize: 1, prefixCache: false }
    planDevices({ ...options, ...sizes }, built, dtype)
    const { placement, model } = built
    const { threads } = computeThreads(options.threads, placement.devices)
    const backends = openBackends(placement.devices, { threads, precision }, resources)
    const { host, main: backend, computing } = backends
    applyPlacement(model, placement, backends.byDevice)
    const pack = (weight: Tensor): Tensor | null => {
      if (weight.backend !== host) return packForDevice(weight)
      // float activations take no other layout on the CPU
      return precision === "fast" ? packWeight(weight) : null
    }
    const packed = options.repack ? { pack } : {}
    resources.use(
      loadWeights(model, built.weights, { backend, host, ...packed, onNote: onWarning }),
    )
    const caches = cacheDevices(model, backend)
    for (const layer of layers.keys()) checkHostCache(dtype, caches.attention(layer).isHost)
    const pool = resources.use(new KVPool(caches.attention, layers, { pages, pageSize, dtype }))
    const states = resources.use(new StatePool(caches.states, linear, 1))
    return new Evaluator(built, computing, pool, states, options.maxBatchTokens, resources.move())
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
    const count = ids.length
    const rows: number[] = []
    for (let i = 0; i < count; i++) if (wants(start + i)) rows.push(i)
    // models know no empty tensors: where nothing is wanted one row is computed for nobody
    const kept = rows.length === 0 ? [count - 1] : rows
    const positions = Int32Array.from(ids, (_, i) => start + i)
    const { pages } = this.#pool
    const elsewhere = new Map<Backend, ForwardBatch>()
    const batches = this.#backends.map((backend) => {
      const ints = (values: Int32Array, shape = [values.length]): Tensor =>
        Tensor.from(backend, values, shape)
      const batch: ForwardBatch = {
        phase: promptLength === 0 && count === 1 ? "decode" : "prefill",
        numTokens: count,
        numSeqs: 1,
        inputIds: ints(Int32Array.from(ids)),
        positions: ints(positions),
        // pages are used in their order, so a token's slot is its position
        slotMapping: ints(positions),
        blockTables: ints(
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
        ...(this.#backends.length > 1 ? { elsewhere } : {}),
      }
      elsewhere.set(backend, batch)
      return batch
    })
    try {
      const logits = this.#model.forward(batches[0] as ForwardBatch).toFloat32Array()
      const vocab = this.config.vocab_size
      rows.forEach((row, r) => onLogits(start + row, logits.subarray(r * vocab, (r + 1) * vocab)))
    } finally {
      for (const backend of this.#backends) backend.resetStep()
    }
  }

  [Symbol.dispose](): void {
    this.#resources.dispose()
  }
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
