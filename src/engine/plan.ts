import type { EngineConfig } from "../config.ts"
import { kvBytesPerPage } from "../kvcache/pool.ts"
import { stateBytesPerSlot } from "../kvcache/state-pool.ts"
import { maxContextLength, type ModelConfig } from "../models/config.ts"
import { streamBytes } from "../nn/expert-stream.ts"
import { namedModules } from "../nn/module.ts"
import type { DTypeInfo } from "../tensor/dtype.ts"
import { resolveWeights } from "../weights/load.ts"
import { freeBytes } from "./backends.ts"
import type { BuiltModel } from "./build.ts"
import { attentionFloats, expandedBytes, kvLayers, stateLayers, stateSlots } from "./kv-layers.ts"
import { type DraftRequest, type MemoryPlan, planMemory, RESERVE_BYTES } from "./memory-plan.ts"
import { maxRunning } from "./scheduler.ts"
import { MAX_DRAFT_ROWS } from "./speculation.ts"

/**
 * Of a GPU beside weights, caches and activations: the runtime's context and code, the kernels' scratch memory, and what packed weights
 * take more than the file's. On an H100 a DeepSeek-V3 of 61 layers took 0.8 GiB of it when loaded, 0.9 in its prompts.
 */
export const DEVICE_RESERVE_BYTES = 2 ** 30

/** What one device gets. */
export interface DevicePlan {
  readonly device: string
  readonly freeBytes: number
  readonly weightBytes: number
  readonly kvBytes: number
  readonly stateBytes: number
  /** Activations, logits, experts on their way, and of a GPU what the runtime and the kernels take. */
  readonly workspaceBytes: number
}

export interface ModelPlan {
  /** Contexts and pages; its bytes are those of all devices. */
  readonly memory: MemoryPlan
  readonly devices: readonly DevicePlan[]
  /** What is left of the host's memory. */
  readonly hostSpareBytes: number
}

/**
 * What each device of a model gets, before anything is allocated; the one with the least room for it decides the KV cache.
 *
 * @param free Bytes that a device has; by default what is free on it
 * @param draft What guesses ahead, on the main device
 * @throws ConfigError when the context exceeds the model's, MemoryError naming the device where it does not fit
 */
export function planDevices(
  config: EngineConfig,
  built: BuiltModel,
  dtype: DTypeInfo,
  free: (device: string) => number = freeBytes,
  draft?: DraftRequest,
): ModelPlan {
  const { placement } = built
  const { pageSize } = config
  const weights = weightBytes(built)
  const caches = cacheBytes(built, pageSize, dtype)
  const slots = stateSlots(maxRunning(config), config.prefixCache)
  const streams = config.streamExperts ? streamBuffers(built) : new Map<string, number>()
  const requests = placement.devices.map((device, i) => ({
    device,
    draft: i === 0 ? draft : undefined,
    contextLength: config.contextLength,
    kvCacheTokens: config.kvCacheTokens,
    pageSize,
    modelLength: maxContextLength(built.config),
    bytesPerPage: caches.get(device)?.page ?? 0,
    stateBytes: slots * (caches.get(device)?.state ?? 0),
    // repacked weights replace mapped pages, which the system takes back
    weightBytes: weights.get(device) ?? 0,
    workspaceBytes:
      workspaceBytes(config, built.config) +
      (streams.get(device) ?? 0) +
      (device.startsWith("cpu") ? 0 : DEVICE_RESERVE_BYTES - RESERVE_BYTES),
    freeBytes: Math.min(free(device), config.memoryBytes || Number.POSITIVE_INFINITY),
  }))
  const isHostAlone = placement.devices.every((device) => device === "cpu")
  const plan = ({ device, ...request }: (typeof requests)[number]): MemoryPlan =>
    planMemory(isHostAlone ? request : { ...request, device })
  const first = requests.map(plan)
  const kvCacheTokens = Math.min(...first.map((plan) => plan.kvCacheTokens))
  const contextLength = Math.min(...first.map((plan) => plan.contextLength))
  // with all of them known to have room for as much
  const plans = requests.map((request) => plan({ ...request, contextLength, kvCacheTokens }))
  const [main] = plans as [MemoryPlan, ...MemoryPlan[]]
  const kvBytes = plans.reduce((sum, plan) => sum + plan.kvBytes, 0)
  const host = placement.devices.indexOf("cpu")
  return {
    memory: { ...main, kvBytes },
    devices: requests.map((request, i) => ({
      device: request.device,
      freeBytes: request.freeBytes,
      weightBytes: request.weightBytes,
      kvBytes: plans[i]?.kvBytes ?? 0,
      stateBytes: request.stateBytes,
      workspaceBytes: request.workspaceBytes,
    })),
    hostSpareBytes: host >= 0 ? (plans[host]?.spareBytes ?? 0) : free("cpu"),
  }
}

/** Bytes of stored weights by device; what several modules share counts once on each device. */
export function weightBytes({ model, weights, placement }: BuiltModel): Map<string, number> {
  const paths = new Map([...namedModules(model)].map(([path, module]) => [module, path]))
  const seen = new Set<string>()
  const bytes = new Map<string, number>()
  for (const { module, parameter, entries } of resolveWeights(model, weights)) {
    const device = placement.byPath.get(paths.get(module) ?? "") ?? "cpu"
    const path = paths.get(module) ?? ""
    const own = parameter.kind === "experts" ? placement.residents.get(path) : undefined
    for (const { name, byteLength } of entries) {
      if (seen.has(`${device} ${name}`)) continue
      seen.add(`${device} ${name}`)
      bytes.set(device, (bytes.get(device) ?? 0) + byteLength)
      if (own === undefined) continue
      const block = placement.byPath.get(path.slice(0, path.lastIndexOf("."))) ?? "cpu"
      // one entry for all of them, or one each
      const share = (byteLength * entries.length * own.length) / (parameter.shape[0] as number)
      bytes.set(block, (bytes.get(block) ?? 0) + share / entries.length)
    }
  }
  return bytes
}

/** Bytes that each device needs for experts that long prompts bring there. */
function streamBuffers({ model, weights, placement }: BuiltModel): Map<string, number> {
  if (placement.streamed.size === 0) return new Map()
  const paths = new Map([...namedModules(model)].map(([path, module]) => [module, path]))
  const layers = new Map<string, number>()
  for (const { module, parameter, entries } of resolveWeights(model, weights)) {
    const path = paths.get(module) ?? ""
    if (parameter.kind !== "experts" || !placement.streamed.has(path)) continue
    const bytes = entries.reduce((sum, { byteLength }) => sum + byteLength, 0)
    layers.set(path, (layers.get(path) ?? 0) + bytes)
  }
  const buffers = new Map<string, number>()
  for (const [path, bytes] of layers) {
    const device = placement.streamed.get(path) as string
    buffers.set(device, Math.max(buffers.get(device) ?? 0, streamBytes(bytes)))
  }
  return buffers
}

interface CacheBytes {
  page: number
  state: number
}

/** Bytes of a page of keys and values, and of a sequence's states, by device. */
function cacheBytes(
  { config, model, placement }: BuiltModel,
  pageSize: number,
  dtype: DTypeInfo,
): Map<string, CacheBytes> {
  const [layers, linear] = [kvLayers(config), stateLayers(config)]
  const bytes = new Map<string, CacheBytes>()
  const of = (device: string): CacheBytes => {
    const known = bytes.get(device) ?? { page: 0, state: 0 }
    bytes.set(device, known)
    return known
  }
  const seen = new Set<number>()
  for (const [path, module] of namedModules(model)) {
    const device = placement.byPath.get(path) ?? "cpu"
    if ("layerIdx" in module) {
      const layer = layers[Number(module.layerIdx)]
      // layers of an encoder share one
      if (layer === undefined || seen.has(Number(module.layerIdx))) continue
      seen.add(Number(module.layerIdx))
      of(device).page += kvBytesPerPage([layer], pageSize, dtype)
    }
    if ("stateIdx" in module) {
      const layer = linear[Number(module.stateIdx)]
      if (layer !== undefined) of(device).state += stateBytesPerSlot([layer])
    }
  }
  return bytes
}

/** Activations of one layer for the largest step, twice because an arena grows by doubling, and its rows of logits. */
export function workspaceBytes(config: EngineConfig, model: ModelConfig): number {
  const dense = 3 * model.intermediate_size
  const experts = model.num_experts_per_tok + model.n_shared_experts
  const sparse = 3 * experts * model.moe_intermediate_size
  const perToken = 8 * model.hidden_size + attentionFloats(model) + Math.max(dense, sparse)
  const drafts = config.spec === "off" && config.draft === undefined ? 0 : MAX_DRAFT_ROWS
  const logits = (config.maxBatchSize + drafts) * model.vocab_size
  return 4 * (2 * config.maxBatchTokens * perToken + 2 * logits) + 2 * expandedBytes(model)
}
