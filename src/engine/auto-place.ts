import type { EngineConfig } from "../config.ts"
import { ConfigError } from "../errors.ts"
import { kvBytesPerPage } from "../kvcache/pool.ts"
import { stateBytesPerSlot } from "../kvcache/state-pool.ts"
import { maxContextLength, type ModelConfig } from "../models/config.ts"
import type { AnyModel } from "../models/registry.ts"
import { type DeviceInfo, queryDevices } from "../native/backend.ts"
import { backendNames, probeLibrary } from "../native/library.ts"
import { streamBytes } from "../nn/expert-stream.ts"
import { namedModules } from "../nn/module.ts"
import { Experts } from "../nn/moe.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { resolveWeights } from "../weights/load.ts"
import type { SafetensorsFile } from "../weights/safetensors.ts"
import type { LayerLayout, Layout } from "./auto-rules.ts"
import { chunkTokens } from "./chunk.ts"
import { type ExpertStats, readExpertStats } from "./expert-stats.ts"
import { kvLayers, kvType, stateLayers, stateSlots } from "./kv-layers.ts"
import { DEVICE_RESERVE_BYTES, workspaceBytes } from "./plan.ts"
import { maxRunning } from "./scheduler.ts"

/** A device that a model may be placed on. */
export interface DeviceBudget {
  readonly device: string
  readonly freeBytes: number
}

/** The context that room is kept for where none is asked for: experts take what longer ones would need. */
const AUTO_TOKENS = 32_768

/** Bytes of a model's parts. */
export interface PartSizes {
  readonly embeddings: number
  /** The head shares the embeddings' matrix. */
  readonly isTied: boolean
  readonly head: number
  readonly layers: readonly { readonly shared: number; readonly experts: number }[]
}

/** The devices of the libraries beside the CPU's that can be used here. */
export function gpus(): DeviceInfo[] {
  return backendNames().flatMap((backend) => {
    const probe = backend === "cpu" ? undefined : probeLibrary(backend)
    if (probe?.available !== true) return []
    try {
      return queryDevices(probe.library)
    } catch {
      return [] // no driver: `kt doctor` says why
    }
  })
}

/** What the file's tensors take, by the part of the model that computes with them. */
export function partSizes(model: AnyModel, weights: GgufFile | SafetensorsFile): PartSizes {
  const modules = new Map([...namedModules(model)].map(([path, module]) => [module, path]))
  const seen = new Set<string>()
  const layers = model.config.layer_types.map(() => ({ shared: 0, experts: 0 }))
  let [embeddings, head] = [0, 0]
  let isTied = false
  for (const { module, entries } of resolveWeights(model, weights)) {
    const path = modules.get(module) ?? ""
    let bytes = 0
    for (const { name, byteLength } of entries) {
      if (seen.has(name)) isTied ||= path === "lm_head"
      else bytes += byteLength
      seen.add(name)
    }
    const layer = layers[Number(/^model\.layers\.(\d+)\./.exec(path)?.[1] ?? -1)]
    if (layer !== undefined) layer[module instanceof Experts ? "experts" : "shared"] += bytes
    else if (path === "model.embed_tokens") embeddings += bytes
    else head += bytes
  }
  return { embeddings, isTied, head, layers }
}

/**
 * Attention and what else every token needs first, then the experts of as many layers as there is room for, the first ones
 * first. Several devices get neighbouring layers in proportion to their memory. Where one has no room for all layers, the
 * first ones are the CPU's.
 */
export function chooseLayout(
  asked: EngineConfig,
  model: ModelConfig,
  sizes: PartSizes,
  budgets: readonly DeviceBudget[],
): Layout {
  const config = { ...asked, maxBatchTokens: chunkTokens(asked, model, false, 0) }
  const cache = cacheOfLayers(config, model)
  const fixed = DEVICE_RESERVE_BYTES + workspaceBytes(config, model)
  const room = budgets.map(({ freeBytes }) => Math.max(0, freeBytes - fixed))
  const needs = sizes.layers.map(({ shared }, i) => shared + (cache[i] ?? 0))
  const headBytes = sizes.head + (sizes.isTied ? sizes.embeddings : 0)
  const last = budgets.length - 1
  room[last] = (room[last] ?? 0) - headBytes
  if (budgets.length === 0 || (room[last] ?? 0) < (needs.at(-1) ?? 0)) return allOnCpu(sizes)
  const devices = shareLayers(needs, room)
  const layers = devices.map((d, i): LayerChoice => {
    if (d >= 0) room[d] = (room[d] ?? 0) - (needs[i] ?? 0)
    const device = budgets[d]?.device ?? "cpu"
    const hasExperts = (sizes.layers[i]?.experts ?? 0) > 0
    return { device, experts: hasExperts ? "cpu" : undefined, streams: false, onDevice: [] }
  })
  const workspace = (tokens: number): number =>
    workspaceBytes({ ...config, maxBatchTokens: tokens }, model)
  const longer = budgets.map(
    ({ freeBytes }) =>
      workspace(chunkTokens(asked, model, true, freeBytes)) - workspace(config.maxBatchTokens),
  )
  if (config.streamExperts) keepStreamRoom(layers, devices, room, sizes, longer)
  const stats = config.expertStats === undefined ? undefined : readExpertStats(config.expertStats)
  for (const [i, expert] of expertsInOrder(layers, model.num_experts, stats)) {
    const layer = layers[i] as LayerChoice
    const d = devices[i] as number
    const bytes = (sizes.layers[i]?.experts ?? 0) / model.num_experts
    if (d < 0 || (room[d] ?? 0) < bytes) continue
    room[d] = (room[d] ?? 0) - bytes
    layer.onDevice.push(expert)
    if (layer.onDevice.length < model.num_experts) continue
    layer.experts = layer.device
    layer.streams = false
    layer.onDevice = []
  }
  for (const layer of layers) layer.onDevice.sort((a, b) => a - b)
  const head = budgets[last]?.device ?? "cpu"
  const first = devices[0] as number
  const takesTable = sizes.isTied
    ? first === last
    : first >= 0 && (room[first] ?? 0) >= sizes.embeddings
  return { embeddings: takesTable ? (layers[0]?.device ?? "cpu") : "cpu", head, layers }
}

interface LayerChoice {
  device: string
  experts: string | undefined
  streams: boolean
  onDevice: number[]
}

/** Layer and number of each expert: the most used ones first, or without counts layer after layer. */
function expertsInOrder(
  layers: readonly LayerChoice[],
  count: number,
  stats: ExpertStats | undefined,
): (readonly [layer: number, expert: number])[] {
  const all = layers.flatMap(({ experts }, i) =>
    experts === undefined ? [] : Array.from({ length: count }, (_, e) => [i, e] as const),
  )
  if (stats === undefined) return all
  const uses = layers.map((_, i) => {
    const path = Object.keys(stats.layers).find((one) => one.startsWith(`model.layers.${i}.`))
    const counts = path === undefined ? undefined : stats.layers[path]
    if (counts !== undefined && counts.length !== count)
      throw new ConfigError(
        `--expert-stats: ${path} has counts of ${counts.length} experts, the model has ${count}`,
      )
    return counts
  })
  const usesOf = ([i, e]: readonly [number, number]): number => uses[i]?.[e] ?? 0
  return all.toSorted((a, b) => usesOf(b) - usesOf(a))
}

/**
 * Where a device has no room for all experts of its layers, it keeps some for those that long prompts bring, and for the
 * longer chunks (`longer` bytes) that these are computed in.
 */
function keepStreamRoom(
  layers: readonly LayerChoice[],
  devices: readonly number[],
  room: number[],
  { layers: sizes }: PartSizes,
  longer: readonly number[],
): void {
  for (const [d, left] of room.entries()) {
    const experts = sizes.map(({ experts: bytes }, i) => (devices[i] === d ? bytes : 0))
    const buffers = streamBytes(Math.max(...experts)) + (longer[d] ?? 0)
    const all = experts.reduce((a, b) => a + b, 0)
    if (all <= left || buffers > left) continue
    room[d] = left - buffers
    for (const [i, layer] of layers.entries()) if (devices[i] === d) layer.streams = true
  }
}

function allOnCpu({ layers }: PartSizes): Layout {
  const layer = (experts: number): LayerLayout => ({
    device: "cpu",
    experts: experts > 0 ? "cpu" : undefined,
  })
  return {
    embeddings: "cpu",
    head: "cpu",
    layers: layers.map(({ experts }) => layer(experts)),
  }
}

/** For each layer its device's index, -1: the CPU. The layers of all devices are the last ones, each device's side by side. */
function shareLayers(needs: readonly number[], room: readonly number[]): number[] {
  const devices = new Array<number>(needs.length).fill(-1)
  const left = [...room]
  const total = room.reduce((a, b) => a + b, 0)
  const all = needs.reduce((a, b) => a + b, 0)
  const scale = Math.min(1, total / all)
  let d = room.length - 1
  let used = 0
  for (let i = needs.length - 1; i >= 0; i--) {
    const need = needs[i] as number
    // a device's fair part of the layers, more only where the others have no room
    while (d > 0 && used + need / 2 > ((room[d] ?? 0) / total) * all * scale) {
      d--
      used = 0
    }
    if ((left[d] ?? 0) < need && d > 0) {
      d--
      used = 0
    }
    if ((left[d] ?? 0) < need) break
    left[d] = (left[d] ?? 0) - need
    used += need
    devices[i] = d
  }
  return devices
}

/** Bytes of each layer's cache or states, for the context that is asked for. */
function cacheOfLayers(config: EngineConfig, model: ModelConfig): number[] {
  const asked = Math.max(config.contextLength, config.kvCacheTokens)
  const tokens = asked > 0 ? asked : Math.min(maxContextLength(model), AUTO_TOKENS)
  const pages = Math.ceil(tokens / config.pageSize)
  const [attention, linear] = [kvLayers(model), stateLayers(model)]
  const dtype = kvType(config, attention)
  const slots = stateSlots(maxRunning(config), config.prefixCache)
  let [a, l] = [0, 0]
  return model.layer_types.map((type) => {
    if (type === "linear_attention") {
      const state = linear[l++]
      return state === undefined ? 0 : slots * stateBytesPerSlot([state])
    }
    const layer = attention[a++]
    return layer === undefined ? 0 : pages * kvBytesPerPage([layer], config.pageSize, dtype)
  })
}
