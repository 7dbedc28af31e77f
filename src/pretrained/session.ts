import { EngineCore } from "../engine/core.ts"
import { attentionFloats, expandedBytes, kvLayers, stateLayers } from "../engine/kv-layers.ts"
import { planMemory } from "../engine/memory-plan.ts"
import { ModelRunner } from "../engine/model-runner.ts"
import { ropeKeyOf } from "../engine/rope-key.ts"
import { Scheduler } from "../engine/scheduler.ts"
import { BlockManager } from "../kvcache/block-manager.ts"
import { kvBytesPerPage, KVPool } from "../kvcache/pool.ts"
import { stateBytesPerSlot, StatePool } from "../kvcache/state-pool.ts"
import { StateSlots } from "../kvcache/state-slots.ts"
import { maxContextLength, type ModelConfig } from "../models/config.ts"
import type { CausalLM } from "../models/registry.ts"
import { type Backend, queryCpu } from "../native/backend.ts"
import { F16, F32 } from "../tensor/dtype.ts"

export interface SessionOptions {
  /** Prompt and output together; 0 = the model's own limit, cut to what memory holds. */
  readonly contextLength: number
  readonly pageSize: number
  /** Prompt tokens computed at once. */
  readonly maxBatchTokens: number
}

/** The parts of the engine that one sequence at a time needs, on the calling thread. */
export class Session implements Disposable {
  readonly core: EngineCore
  readonly contextLength: number
  readonly #resources: DisposableStack

  /** @throws ConfigError when the context is longer than the model's, MemoryError when it does not fit */
  constructor(model: CausalLM, backend: Backend, options: SessionOptions) {
    using resources = new DisposableStack()
    const { config } = model
    const { pageSize, maxBatchTokens } = options
    const dtype = backend.precision === "f32" ? F32 : F16
    const layers = kvLayers(config)
    const linear = stateLayers(config)
    const memory = planMemory({
      contextLength: options.contextLength,
      kvCacheTokens: 0,
      pageSize,
      modelLength: maxContextLength(config),
      bytesPerPage: kvBytesPerPage(layers, pageSize, dtype),
      stateBytes: stateBytesPerSlot(linear),
      // the weights are in memory by now
      weightBytes: 0,
      workspaceBytes: workspaceBytes(config, maxBatchTokens),
      freeBytes: queryCpu().memoryFreeBytes,
    })
    const { pages, contextLength } = memory
    const pool = resources.use(new KVPool(backend, layers, { pages, pageSize, dtype }))
    const statePool =
      linear.length > 0 ? resources.use(new StatePool(backend, linear, 1)) : undefined
    const states = linear.length > 0 ? new StateSlots(1) : undefined
    const blocks = new BlockManager({ pages, pageSize, prefixCache: false, states })
    const limits = { maxBatchSize: 1, maxBatchTokens, contextLength }
    const runner = resources.use(new ModelRunner(backend, model, pool, limits, statePool))
    this.core = new EngineCore(runner, new Scheduler(limits, blocks), blocks, {
      vocabSize: config.vocab_size,
      ropeKey: ropeKeyOf(config),
    })
    this.contextLength = contextLength
    this.#resources = resources.move()
  }

  [Symbol.dispose](): void {
    this.#resources.dispose()
  }
}

/** Activations of the largest step, twice because the step's arena grows by doubling, and a row of logits. */
function workspaceBytes(config: ModelConfig, tokens: number): number {
  const inner = Math.max(
    config.intermediate_size,
    (config.num_experts_per_tok + config.n_shared_experts) * config.moe_intermediate_size,
  )
  const perToken = 8 * config.hidden_size + attentionFloats(config) + 3 * inner
  return 8 * (tokens * perToken + config.vocab_size) + 2 * expandedBytes(config)
}
