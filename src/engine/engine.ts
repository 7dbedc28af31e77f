import type { EngineConfig } from "../config.ts"
import { ConfigError } from "../errors.ts"
import type { InjectionPlan } from "../inject/inject.ts"
import { BlockManager } from "../kvcache/block-manager.ts"
import { kvBytesPerPage, KVPool } from "../kvcache/pool.ts"
import { stateBytesPerSlot, StatePool } from "../kvcache/state-pool.ts"
import { StateSlots } from "../kvcache/state-slots.ts"
import { canGenerate, maxContextLength, type ModelConfig } from "../models/config.ts"
import type { AnyModel } from "../models/registry.ts"
import type { Backend } from "../native/backend.ts"
import { measure } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { loadWeights } from "../weights/load.ts"
import type { WeightSource } from "../weights/source.ts"
import type {
  EngineDetails,
  EngineInfo,
  EngineStats,
  GenerateParams,
  PoolingInfo,
  PoolParams,
  PrefixAction,
  PrefixAnswer,
  TokenEvent,
  TokenTable,
} from "../worker/protocol.ts"
import { gpus } from "./auto-place.ts"
import { computeThreads, openBackends, packForDevice, samplingBackend } from "./backends.ts"
import { buildModel, type BuiltModel } from "./build.ts"
import { openTiers } from "./cache-tiers.ts"
import { withChunk } from "./chunk.ts"
import { EngineCore } from "./core.ts"
import { expertUses, moduleUses } from "./details.ts"
import { type CacheIdentity, cacheIdentity } from "./fingerprint.ts"
import { Grammars, type SequenceGrammar } from "./grammar.ts"
import {
  attentionFloats,
  checkHostCache,
  expandedBytes,
  kvLayers,
  kvType,
  stateLayers,
  stateSlots,
} from "./kv-layers.ts"
import type { MemoryPlan } from "./memory-plan.ts"
import { ModelRunner } from "./model-runner.ts"
import { GREEDY } from "./params.ts"
import { applyPlacement, cacheDevices, deferExperts, placeResidents } from "./placement.ts"
import { crossingLayers, estimateStep, memoryRate, planLines, planRows } from "./plan-report.ts"
import { type ModelPlan, planDevices } from "./plan.ts"
import { Pooler } from "./pooling.ts"
import { Repacking } from "./repack.ts"
import { ropeKeyOf } from "./rope-key.ts"
import { SavedPrefixes } from "./saved-prefixes.ts"
import { maxRunning, Scheduler } from "./scheduler.ts"
import { Sequence } from "./sequence.ts"
import { draftFor, draftRequest, speculationFor } from "./speculation-setup.ts"
import { MAX_DRAFT_ROWS } from "./speculation.ts"
import { StepGraphs } from "./step-graphs.ts"
import { streamExperts } from "./stream-setup.ts"
import { Thinking } from "./thinking.ts"

export interface EngineHooks {
  readonly onProgress?: (stage: string, done: number, total: number) => void
  readonly onLog?: (level: "info" | "warning", message: string) => void
}

/** A loaded model that serves sequences of token ids, step by step, on the calling thread. */
export class Engine implements Disposable {
  readonly info: EngineInfo
  /** The settings that were asked for, with what was left open as it was settled. */
  readonly config: EngineConfig
  readonly streamIntervalMs: number
  /** The module tree with its operators. */
  readonly model: AnyModel
  readonly #plan: InjectionPlan
  readonly #core: EngineCore
  readonly #saved: SavedPrefixes
  readonly #grammars: Grammars
  #table: TokenTable | undefined
  readonly #resources: DisposableStack

  private constructor(
    config: EngineConfig,
    info: EngineInfo,
    built: BuiltModel,
    core: EngineCore,
    saved: SavedPrefixes,
    resources: DisposableStack,
  ) {
    this.info = info
    this.config = config
    this.streamIntervalMs = config.streamIntervalMs
    this.model = built.model
    this.#plan = built.plan
    this.#core = core
    this.#saved = saved
    this.#grammars = resources.use(new Grammars(info.vocabSize))
    this.#resources = resources
  }

  /**
   * Build, inject, plan memory, load, warm up.
   *
   * @param given As for `buildModel`
   * @throws ConfigError, FormatError or MemoryError, before weights are loaded wherever that can be told
   */
  static async create(
    asked: EngineConfig,
    hooks: EngineHooks = {},
    given?: ModelConfig,
  ): Promise<Engine> {
    const start = performance.now()
    using resources = new DisposableStack()
    hooks.onProgress?.("model", 0, 1)
    const built = await buildModel(asked, given)
    resources.defer(() => built.weights.close())
    const config = forModel(withChunk(asked, built), built.config)
    for (const warning of built.plan.warnings) hooks.onLog?.("warning", warning)
    const dtype = kvType(config, kvLayers(built.config))
    const draft = await draftFor(config, built, resources, hooks)
    const draftPlan = draft === undefined ? undefined : draftRequest(config, draft)
    const plan = planDevices(config, built, dtype, undefined, draftPlan)
    const { memory } = plan
    hooks.onProgress?.("model", 1, 1)

    const { numa, precision } = config
    const { threads, note } = computeThreads(config.threads, built.placement.devices)
    if (note !== undefined) hooks.onLog?.("info", note)
    const options = { threads, nodes: numaNodes(numa), precision }
    const backends = openBackends(built.placement.devices, options, resources)
    const { host, main: backend, computing } = backends
    applyPlacement(built.model, built.placement, backends.byDevice)
    if (computing.length > 1 || built.madeRules !== undefined)
      for (const line of planText(built, plan, host)) hooks.onLog?.("info", line)
    deferExperts(built.model, built.plan, built.placement)
    const caches = cacheDevices(built.model, backend)
    for (const layer of kvLayers(built.config).keys())
      checkHostCache(dtype, caches.attention(layer).isHost)
    if (built.placement.residents.size > 0)
      placeResidents(built.model, built.placement, backends.byDevice, config.repack, resources)
    if (backend.isa === "scalar" && process.arch === "x64")
      hooks.onLog?.("warning", "the scalar kernels run: KT_CPU_ISA says so or the CPU lacks AVX2")
    const repacking = computing.includes(host)
      ? repackingFor(config, plan.hostSpareBytes, hooks)
      : undefined
    const pack = (weight: Tensor): Tensor | null => {
      if (weight.backend === host) return repacking?.pack(weight) ?? null
      return config.repack ? packForDevice(weight) : null
    }
    resources.use(
      loadWeights(built.model, built.weights, {
        backend,
        host,
        pack,
        onProgress: (done, total) => hooks.onProgress?.("weights", done, total),
        onNote: (note) => hooks.onLog?.("info", note),
      }),
    )
    streamExperts(config, built, {
      backends,
      resources,
      spareBytes: repacking?.spareBytes ?? plan.hostSpareBytes,
      log: (level, message) => hooks.onLog?.(level, message),
    })
    const { classifier, encoder } = built.config
    if (classifier !== undefined && encoder?.classifier_dense === false)
      hooks.onLog?.(
        "warning",
        "the file lacks the dense layer before the classifier: scores are not the original model's",
      )
    if (repacking?.note !== undefined) hooks.onLog?.("warning", repacking.note)
    const { pages } = memory
    const { pageSize, maxBatchSize, maxBatchTokens, prefixCache } = config
    const pool = resources.use(
      new KVPool(caches.attention, kvLayers(built.config), { pages, pageSize, dtype }),
    )
    const { contextLength } = memory
    const wholePrompts = built.config.encoder !== undefined
    const limits = { maxBatchSize, maxBatchTokens, contextLength, wholePrompts }
    const linear = stateLayers(built.config)
    const slots = linear.length > 0 ? stateSlots(maxRunning(limits), prefixCache) : 0
    const statePool =
      slots > 0 ? resources.use(new StatePool(caches.states, linear, slots)) : undefined
    const states = slots > 0 ? new StateSlots(slots) : undefined
    const identity = (): CacheIdentity => {
      const stateBytes = statePool?.pieceBytes ?? 0
      const { pieceBytes } = pool
      return cacheIdentity(config, built, { dtype, pieceBytes, stateBytes }, backend)
    }
    const opened = await openTiers(config, {
      library: backend.library,
      pages: pool,
      states: statePool,
      spareBytes: repacking?.spareBytes ?? plan.hostSpareBytes,
      identity,
      log: (level, message) => hooks.onLog?.(level, message),
    })
    if (opened !== undefined) resources.defer(() => opened.close())
    const tiers = opened?.tiers
    const blocks = new BlockManager({ pages, pageSize, prefixCache, states, tiers })
    const speculation = speculationFor(config, built, {
      backend,
      host,
      resources,
      limits: { pages, pageSize, maxBatchSize, maxBatchTokens, contextLength },
      draft,
      pack: backend.isHost ? repacking?.pack : undefined,
      hooks,
    })
    const maxDraftTokens = speculation === undefined ? 0 : MAX_DRAFT_ROWS
    const sizes = { ...limits, maxDraftTokens }
    const ropeKey = ropeKeyOf(built.config)
    const graphs = graphsFor(config, computing, hooks)
    if (graphs !== undefined) resources.use(graphs)
    const sampling = samplingBackend(host, backend)
    const parts = { states: statePool, devices: computing, sampling, graphs, ropeKey }
    const runner = resources.use(new ModelRunner(backend, built.model, pool, sizes, parts))
    hooks.onProgress?.("warm-up", 0, 1)
    warmUp(runner, blocks, built.config)
    hooks.onProgress?.("warm-up", 1, 1)
    for (const { label, sharedProblem } of computing)
      if (sharedProblem !== undefined)
        hooks.onLog?.(
          "warning",
          `no page-locked memory for ${label}, copies are slower: ${sharedProblem}`,
        )

    const vocabSize = built.config.vocab_size
    const facts = {
      vocabSize,
      ropeKey,
      pageBytes: pool.pieceBytes,
      hostLimitBytes: opened?.hostLimitBytes,
      diskLimitBytes: opened?.diskLimitBytes,
      pooling: {
        hiddenSize: built.config.hidden_size,
        vocabSize,
        hasClassifier: built.config.classifier !== undefined,
        generates: canGenerate(built.config),
        isEncoder: wholePrompts,
      },
    }
    const scheduler = new Scheduler(limits, blocks)
    const core = new EngineCore(runner, scheduler, blocks, facts, speculation)
    const loadMs = performance.now() - start
    const cacheRamBytes = opened?.hostLimitBytes ?? 0
    const cpu = computing.includes(host) ? host : backend
    const info = { ...describe(config, built, memory, cpu), cacheRamBytes, loadMs }
    const fingerprint = (): string => identity().fingerprint
    const saved = new SavedPrefixes({ blocks, memory: pool, fingerprint, ropeKey })
    return new Engine(config, info, built, core, saved, resources.move())
  }

  get hasWork(): boolean {
    return this.#core.hasWork
  }

  /** Queues a sequence under an id of the caller's. @throws ConfigError when it is empty, too long or out of range */
  add(id: number, ids: Int32Array, params: GenerateParams, grammar?: SequenceGrammar): void {
    if (!canGenerate(this.model.config))
      throw new ConfigError(
        `a ${this.info.architecture} model of this kind embeds or ranks texts, and generates none`,
      )
    if (params.thinking !== undefined && this.#table === undefined)
      throw new ConfigError("the engine has no table of tokens")
    this.#core.add(id, ids, params, {
      ...(grammar === undefined ? {} : { grammar }),
      ...(params.thinking === undefined || this.#table === undefined
        ? {}
        : { thinking: new Thinking(params.thinking, this.#table) }),
    })
  }

  /** Queues a text that is to become a vector or a score; its only event has it. @throws ConfigError as add() does */
  pool(id: number, ids: Int32Array, params: PoolParams): void {
    this.#core.pool(id, ids, params)
  }

  /** What grammars and marks of reasoning are read with. */
  setVocabulary(table: TokenTable): void {
    this.#table = table
    this.#grammars.setVocabulary(table)
  }

  /** For add(); `stopTokens` may follow the end. @throws ConfigError as Grammars.matcher() does */
  grammar(text: string, stopTokens: readonly number[], written?: string): Promise<SequenceGrammar> {
    return this.#grammars.matcher(text, stopTokens, written)
  }

  /** Ends a sequence before the next step; its last event, with finish "abort", comes from that step(). */
  abort(id: number): void {
    this.#core.abort(id)
  }

  abortAll(): void {
    this.#core.abortAll()
  }

  /** Computes one step. At most one event per sequence. */
  step(): TokenEvent[] {
    return this.#core.step()
  }

  stats(): EngineStats {
    return this.#core.stats()
  }

  /** What it is made of, and how its experts are used. */
  details(): EngineDetails {
    return { modules: moduleUses(this.model, this.#plan), experts: expertUses(this.model) }
  }

  /** Known prefixes, to be kept elsewhere and brought back. @throws KtError where this model has none */
  prefix(action: PrefixAction): PrefixAnswer {
    return this.#saved.do(action)
  }

  /** Forgets every known prefix on all tiers; sequences that run go on. */
  clearCache(): void {
    this.#core.clearCache()
  }

  [Symbol.dispose](): void {
    this.#resources.dispose()
  }
}

/** Encoders compute a text in one step: its limit is also that of the context, unless --ctx asks for more. */
function forModel(config: EngineConfig, model: ModelConfig): EngineConfig {
  if (model.encoder === undefined) return config
  const { contextLength, maxBatchTokens } = config
  const longest = Math.min(maxContextLength(model), Math.max(contextLength, maxBatchTokens))
  return {
    ...config,
    contextLength: contextLength > 0 ? contextLength : longest,
    maxBatchTokens: Math.max(maxBatchTokens, contextLength),
    // what a token's states are depends on all that follows it
    prefixCache: false,
  }
}

/** Undefined where every op is to be called in every step. */
function graphsFor(
  { stepGraph, operators }: EngineConfig,
  [backend, ...others]: readonly Backend[],
  hooks: EngineHooks,
): StepGraphs | undefined {
  if (!stepGraph || backend === undefined) return undefined
  const reason =
    operators.length > 0
      ? "operators of --operators may do more than call ops"
      : others.some(({ isHost }) => !isHost) || (others.length > 0 && backend.isHost)
        ? "more than a GPU and the host's experts take part"
        : undefined
  if (reason === undefined)
    return new StepGraphs(backend, (message) => hooks.onLog?.("info", message))
  hooks.onLog?.("info", `steps that generate are not recorded as graphs: ${reason}`)
  return undefined
}

/** Of a model that is made for more than to generate. */
function poolingInfo(model: ModelConfig): PoolingInfo | undefined {
  const { pooling, classifier, hidden_size: dimensions } = model
  if (pooling === undefined) return undefined
  const hasClassifier = classifier !== undefined
  return { pooling, dimensions, hasClassifier, generates: canGenerate(model) }
}

/** Seconds that the rate of the host's memory is measured for, where a prediction needs it. */
const MEASURE_SECONDS = 0.1

/** What is where and how fast that should be, in lines. */
function planText(built: BuiltModel, plan: ModelPlan, host: Backend): string[] {
  const rows = planRows(built, plan)
  const names = new Map(gpus().map(({ name, model }) => [name, model]))
  const step = estimateStep(rows, crossingLayers(built), (device) =>
    device === "cpu"
      ? measure(host, "read", { seconds: MEASURE_SECONDS })
      : memoryRate(names.get(device) ?? ""),
  )
  return planLines(rows, step)
}

/** Undefined, with a line in the log that says why, where weights are read as the file has them. */
function repackingFor(
  config: EngineConfig,
  spareBytes: number,
  hooks: EngineHooks,
): Repacking | undefined {
  if (config.repack && config.precision === "fast") return new Repacking(spareBytes)
  const why = config.repack ? "float activations take no other layout" : "--no-repack"
  hooks.onLog?.("info", `weights are read as the file has them: ${why}`)
  return undefined
}

/** A short prompt and one token after it: pages of the weights come in, hot code is compiled, the arena has its size. */
function warmUp(runner: ModelRunner, blocks: BlockManager, model: ModelConfig): void {
  const params = { ...GREEDY, maxTokens: 2 }
  const isEncoder = model.encoder !== undefined
  const pooler = isEncoder ? new Pooler({ pooling: "mean", normalize: true }, isEncoder) : undefined
  const prompt = new Int32Array(Math.min(4, blocks.pageSize))
  const seq = new Sequence(-1, prompt, params, { pooler })
  const page = blocks.allocate()
  seq.pages.push(page)
  const slot = blocks.states?.take()
  if (slot !== undefined) seq.stateSlot = slot
  const batch = { seqs: [seq], numTokens: 0 }
  for (const count of isEncoder ? [seq.length] : [seq.length - 1, 1]) {
    seq.numScheduled = batch.numTokens = count
    runner.run(batch)
    seq.numComputed += count
    seq.stateSource = seq.stateSlot
  }
  blocks.release(page)
  if (slot !== undefined) blocks.states?.release(slot)
}

function describe(
  config: EngineConfig,
  built: BuiltModel,
  memory: MemoryPlan,
  cpu: Backend,
): Omit<EngineInfo, "cacheRamBytes" | "loadMs"> {
  const { weights, config: model } = built
  const pooling = poolingInfo(model)
  return {
    modelPath: weights.path,
    architecture: model.model_type,
    ...countWeights(weights),
    weightBytes: weights.totalBytes,
    vocabSize: model.vocab_size,
    contextLength: memory.contextLength,
    trainedContextLength: maxContextLength(model),
    maxBatchSize: config.maxBatchSize,
    kvCacheTokens: memory.kvCacheTokens,
    kvCacheBytes: memory.kvBytes,
    draftBytes: memory.draftBytes,
    threads: cpu.threads,
    numaNodes: cpu.nodes,
    isa: cpu.isa,
    device: built.device,
    precision: config.precision,
    ...(pooling === undefined ? {} : { pooling }),
  }
}

/** The backend's number for a `--numa` value. */
function numaNodes(numa: string): number {
  if (numa === "auto") return 0
  return numa === "off" ? 1 : Number(numa)
}

/** Parameters in all, and the type that most of their bytes have. */
function countWeights(weights: WeightSource): { parameters: number; quantization: string } {
  let parameters = 0
  const bytes = new Map<string, number>()
  for (const name of weights.names()) {
    const entry = weights.get(name)
    if (entry === undefined) continue
    parameters += entry.shape.reduce((a, b) => a * b, 1)
    bytes.set(entry.dtype.name, (bytes.get(entry.dtype.name) ?? 0) + entry.byteLength)
  }
  const [most] = [...bytes].toSorted((a, b) => b[1] - a[1])
  return { parameters, quantization: most?.[0] ?? "F32" }
}
