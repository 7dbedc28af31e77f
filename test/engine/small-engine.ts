import { EngineCore, type StepRunner } from "../../src/engine/core.ts"
import { kvLayers, stateLayers, stateSlots } from "../../src/engine/kv-layers.ts"
import { ModelRunner, type RunnableModel } from "../../src/engine/model-runner.ts"
import { ropeKeyOf } from "../../src/engine/rope-key.ts"
import { maxRunning, Scheduler } from "../../src/engine/scheduler.ts"
import { StepGraphs } from "../../src/engine/step-graphs.ts"
import { BlockManager } from "../../src/kvcache/block-manager.ts"
import { KVPool } from "../../src/kvcache/pool.ts"
import { StatePool } from "../../src/kvcache/state-pool.ts"
import { StateSlots } from "../../src/kvcache/state-slots.ts"
import { Backend, openDevice, type Precision } from "../../src/native/backend.ts"
import { F16, F32 } from "../../src/tensor/dtype.ts"
import { loadModel } from "../models/build.ts"
import type { Golden } from "../models/goldens.ts"

export const PAGE = 8
export const CONTEXT = 56

export interface Limits {
  readonly threads?: number
  readonly nodes?: number
  readonly precision?: Precision
  readonly maxBatchSize?: number
  readonly maxBatchTokens?: number
  readonly pages?: number
  readonly prefixCache?: boolean
  readonly fuse?: boolean
  readonly device?: string
  /** Steps that generate are recorded as graphs. */
  readonly graphs?: boolean
}

/** What stands between the engine and its parts: the identity by default. */
export interface Around {
  readonly model?: (model: RunnableModel, vocab: number) => RunnableModel
  readonly runner?: (runner: StepRunner) => StepRunner
}

export interface SmallEngine extends Disposable {
  readonly core: EngineCore
  readonly graphs: StepGraphs | undefined
  /** What a StepGraphs logged. */
  readonly log: readonly string[]
}

/** An engine of a tiny model with pages of 8 tokens. */
export async function smallEngine(
  source: Golden,
  limits: Limits,
  around: Around = {},
): Promise<SmallEngine> {
  const { threads = 1, nodes = 1, maxBatchSize = 8, maxBatchTokens = 512, pages = 64 } = limits
  const { precision = "f32", prefixCache = false, fuse = true } = limits
  using stack = new DisposableStack()
  const host = stack.use(new Backend({ threads, nodes, precision }))
  const { library, index } = openDevice(limits.device ?? "cpu")
  const backend =
    limits.device === undefined
      ? host
      : stack.use(new Backend({ precision, device: index }, library))
  const { model, loaded } = await loadModel(source.config, source.weights, { backend, host, fuse })
  stack.use(loaded)
  const { config } = source
  const sizes = { maxBatchSize, maxBatchTokens, contextLength: CONTEXT }
  const dtype = precision === "f32" ? F32 : F16
  const pool = stack.use(new KVPool(backend, kvLayers(config), { pages, pageSize: PAGE, dtype }))
  const linear = stateLayers(config)
  const slots = stateSlots(maxRunning(sizes), prefixCache)
  const statePool = linear.length > 0 ? stack.use(new StatePool(backend, linear, slots)) : undefined
  const states = linear.length > 0 ? new StateSlots(slots) : undefined
  const blocks = new BlockManager({ pages, pageSize: PAGE, prefixCache, states })
  const log: string[] = []
  const graphs = limits.graphs
    ? stack.use(new StepGraphs(backend, (line) => log.push(line)))
    : undefined
  const ropeKey = ropeKeyOf(config)
  const used = around.model?.(model, config.vocab_size) ?? model
  const runner = stack.use(
    new ModelRunner(backend, used, pool, sizes, { states: statePool, graphs, ropeKey }),
  )
  const core = new EngineCore(
    around.runner?.(runner) ?? runner,
    new Scheduler(sizes, blocks),
    blocks,
    { vocabSize: config.vocab_size, ropeKey },
  )
  const resources = stack.move()
  return { core, graphs, log, [Symbol.dispose]: () => resources.dispose() }
}

/** Eight prompts of 1 to 39 tokens, some with a common beginning. */
export function promptsOf({ tensors }: Golden): Int32Array[] {
  const bytes = tensors.get("input_ids")?.bytes
  const all = new Int32Array((bytes as Uint8Array).slice().buffer)
  const first = all.subarray(0, 32)
  const second = all.length > 32 ? all.subarray(32, 64) : first.toReversed()
  const joined = Int32Array.from([...first.subarray(0, 20), ...second.subarray(1, 20)])
  const lengths = [32, 17, 24, 9]
  return [
    ...lengths.map((length) => first.slice(0, length)),
    second.slice(),
    second.slice(0, 1),
    second.slice(3, 19),
    joined,
  ]
}
