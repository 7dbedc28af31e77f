import type { ModelConfig } from "../models/config.ts"
import { type Module, namedModules } from "../nn/module.ts"
import { Experts } from "../nn/moe.ts"
import { resolveWeights } from "../weights/load.ts"
import { runsOf } from "./auto-rules.ts"
import type { BuiltModel } from "./build.ts"
import type { DevicePlan, ModelPlan } from "./plan.ts"

/** One device of a plan, for people. */
export interface PlanRow extends DevicePlan {
  readonly totalBytes: number
  /** "layers 0-47, experts of layers 0-11, head" */
  readonly what: string
  /** Bytes of weights that a token of one sequence reads. */
  readonly tokenBytes: number
  /** Ops of a step, each at least as long as launching it takes. */
  readonly launches: number
}

export function planRows(built: BuiltModel, { devices }: ModelPlan): PlanRow[] {
  const parts = partsByDevice(built)
  const reads = tokenBytes(built)
  const launches = launchesByDevice(built)
  const inOrder = devices.toSorted((a, b) => (rank(a.device) < rank(b.device) ? -1 : 1))
  return inOrder.map((plan) => ({
    ...plan,
    totalBytes: plan.weightBytes + plan.kvBytes + plan.stateBytes + plan.workspaceBytes,
    what: parts.get(plan.device) ?? "",
    tokenBytes: reads.get(plan.device) ?? 0,
    launches: launches.get(plan.device) ?? 0,
  }))
}

/** GPUs by number, then the CPU. */
function rank(device: string): string {
  return device === "cpu" ? "~" : device.replace(/\d+$/, (index) => index.padStart(3, "0"))
}

/** What is where, by device. */
function partsByDevice({ model, placement }: BuiltModel): Map<string, string> {
  const layers = new Map<string, number[]>()
  const experts = new Map<string, number[]>()
  const others = new Map<string, string[]>()
  const resident = new Map<string, number>()
  for (const [path, { length }] of placement.residents) {
    const device = placement.byPath.get(path.slice(0, path.lastIndexOf("."))) ?? "cpu"
    resident.set(device, (resident.get(device) ?? 0) + length)
  }
  const add = <T>(to: Map<string, T[]>, device: string, value: T): void =>
    void to.set(device, [...(to.get(device) ?? []), value])
  for (const [path, module] of namedModules(model)) {
    const device = placement.byPath.get(path) ?? "cpu"
    const layer = /^model\.layers\.(\d+)(\.|$)/.exec(path)
    if (layer !== null && layer[2] === "") add(layers, device, Number(layer[1]))
    else if (layer !== null && module instanceof Experts) add(experts, device, Number(layer[1]))
    else if (path === "model.embed_tokens") add(others, device, "embeddings")
    else if (path === "lm_head") add(others, device, "head")
  }
  return new Map(
    placement.devices.map((device) => [
      device,
      [
        ...(layers.has(device) ? [`layers ${ranges(layers.get(device) ?? [])}`] : []),
        ...(experts.has(device) ? [`experts of layers ${ranges(experts.get(device) ?? [])}`] : []),
        ...(resident.has(device) ? [`${resident.get(device)} experts of others`] : []),
        ...(others.get(device) ?? []),
      ].join(", "),
    ]),
  )
}

function ranges(indices: readonly number[]): string {
  return runsOf(indices)
    .map(({ first, last }) => (first === last ? String(first) : `${first}-${last}`))
    .join(", ")
}

function tokenBytes({ model, weights, placement, config }: BuiltModel): Map<string, number> {
  const paths = new Map([...namedModules(model)].map(([path, module]) => [module, path]))
  const bytes = new Map<string, number>()
  for (const { module, entries } of resolveWeights(model, weights)) {
    const path = paths.get(module) ?? ""
    if (path === "model.embed_tokens") continue
    const share = module instanceof Experts ? expertShare(config) : 1
    const all = entries.reduce((sum, { byteLength }) => sum + byteLength, 0)
    const device = placement.byPath.get(path) ?? "cpu"
    // with all experts chosen alike
    const own = (placement.residents.get(path)?.length ?? 0) / Math.max(1, config.num_experts)
    const block = placement.byPath.get(path.slice(0, path.lastIndexOf("."))) ?? "cpu"
    bytes.set(device, (bytes.get(device) ?? 0) + share * all * (1 - own))
    if (own > 0) bytes.set(block, (bytes.get(block) ?? 0) + share * all * own)
  }
  return bytes
}

function expertShare({ num_experts: experts, num_experts_per_tok: chosen }: ModelConfig): number {
  return experts > 0 ? chosen / experts : 1
}

/** Of a memory's rate, what decoding reaches; seconds that a layer's activations take to the host's experts and back. */
const REACHED = 0.7
const HANDOVER_SECONDS = 25e-6
/**
 * Seconds of a kernel beside what it reads, within a recorded step: its start, fill and end. On an H100 eight of a layer that do next to
 * nothing took 27 us, and 5 each fit whole models there (llama-8b 3.2 ms a token, qwen3-30b-a3b 3.6); a region of two of a CPU's threads.
 */
const LAUNCH_SECONDS = 5e-6
const REGION_SECONDS = 2e-6
/** Kernels by part: norm and projections, rope and cache, attention, the sum of its parts, the output. */
const ATTENTION_OPS = 5
/** Of latents: both halves of the queries, the latent, their norms, ropes, and the products by head before and after. */
const LATENT_OPS = 12
/** Projections, convolution, gates, the rule itself, its norm and the output. */
const LINEAR_OPS = 7
/** Norm, router, choice and order; gate and up; down with the sum. */
const EXPERT_OPS = 6
/** Norm; gate and up; down. */
const MLP_OPS = 3
/** Norm and product; sampling. */
const HEAD_OPS = 2

function launchesByDevice({ model, placement, config }: BuiltModel): Map<string, number> {
  const launches = new Map<string, number>()
  for (const [path, module] of namedModules(model)) {
    const ops = opsOf(path, module, config)
    if (ops === 0) continue
    const device = placement.byPath.get(path) ?? "cpu"
    launches.set(device, (launches.get(device) ?? 0) + ops)
  }
  return launches
}

function opsOf(path: string, module: Module, config: ModelConfig): number {
  if (path === "lm_head") return HEAD_OPS
  if (path === "model.embed_tokens") return 1
  if ("stateIdx" in module) return LINEAR_OPS
  if ("layerIdx" in module) return config.mla === undefined ? ATTENTION_OPS : LATENT_OPS
  if (module instanceof Experts) return EXPERT_OPS
  const isMlp = /\.(mlp|feed_forward|shared_experts?)$/.test(path)
  const parts = isMlp ? [...module.children()].map(([, child]) => child) : []
  return isMlp && !parts.some((part) => part instanceof Experts) ? MLP_OPS : 0
}

/** A plan in a line a device, for the log. */
export function planLines(rows: readonly PlanRow[], step: StepEstimate | undefined): string[] {
  const gib = (bytes: number): string => (bytes / 2 ** 30).toFixed(2)
  const lines = rows.map(
    (row) =>
      `${row.device}: ${gib(row.totalBytes)} of ${gib(row.freeBytes)} GiB (weights ${gib(row.weightBytes)}, cache ${gib(row.kvBytes + row.stateBytes)}): ${row.what}`,
  )
  return step === undefined ? lines : [...lines, estimateLine(step)]
}

/** Layers whose experts are on another device than the rest of them. */
export function crossingLayers({ model, placement }: BuiltModel): number {
  let count = 0
  for (const [path, module] of namedModules(model)) {
    const layer = /^model\.layers\.\d+/.exec(path)?.[0]
    if (layer === undefined || !(module instanceof Experts)) continue
    if (placement.byPath.get(path) !== placement.byPath.get(layer)) count++
  }
  return count
}

/** Where the time of one generated token of one sequence goes, by what is known beforehand; attention to a long context is not in it. */
export interface StepEstimate {
  /** Reading weights at 0.7 of the memories' rates. */
  readonly readSeconds: number
  readonly launches: number
  readonly launchSeconds: number
  /** Layers whose experts are on another device. */
  readonly handovers: number
  readonly handoverSeconds: number
  readonly tokensPerSecond: number
}

/** From the rate of each device's memory in bytes/s; undefined where one is not known. */
export function estimateStep(
  rows: readonly PlanRow[],
  handovers: number,
  bandwidth: (device: string) => number | undefined,
): StepEstimate | undefined {
  let [readSeconds, launchSeconds, launches] = [0, 0, 0]
  for (const row of rows) {
    const rate = bandwidth(row.device)
    if (rate === undefined) return undefined
    readSeconds += row.tokenBytes / (REACHED * rate)
    launches += row.launches
    launchSeconds += row.launches * (row.device === "cpu" ? REGION_SECONDS : LAUNCH_SECONDS)
  }
  const handoverSeconds = handovers * HANDOVER_SECONDS
  const tokensPerSecond = 1 / (readSeconds + launchSeconds + handoverSeconds)
  return { readSeconds, launches, launchSeconds, handovers, handoverSeconds, tokensPerSecond }
}

/** "about 17 tokens/s for one sequence (reading weights 51.2 ms, 900 launches 4.5 ms, 58 handovers 1.5 ms)" */
export function estimateLine(step: StepEstimate): string {
  const ms = (seconds: number): string => {
    const value = seconds * 1000
    return `${value.toFixed(value < 0.1 ? 3 : value < 10 ? 2 : 1)} ms`
  }
  const parts = [
    `reading weights ${ms(step.readSeconds)}`,
    `${step.launches} launches ${ms(step.launchSeconds)}`,
    ...(step.handovers > 0 ? [`${step.handovers} handovers ${ms(step.handoverSeconds)}`] : []),
  ]
  const { tokensPerSecond: rate } = step
  return `about ${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s for one sequence (${parts.join(", ")})`
}

/** Bytes/s of the memory of GPUs by what their names contain, the more particular ones first: makers' figures. */
const MEMORY_RATES: readonly (readonly [name: string, gigabytes: number])[] = [
  ["H200", 4800],
  ["H100 NVL", 3900],
  ["H100 PCIe", 2000],
  ["H100", 3350],
  ["B200", 8000],
  ["GH200", 4000],
  ["A100-SXM4-80GB", 2039],
  ["A100", 1555],
  ["L40S", 864],
  ["L4", 300],
  ["RTX 6000 Ada", 960],
  ["RTX PRO 6000", 1792],
  ["A6000", 768],
  ["RTX 5090", 1792],
  ["RTX 5080", 960],
  ["RTX 5070", 672],
  ["RTX 4090", 1008],
  ["RTX 4080", 717],
  ["RTX 4070", 504],
  ["RTX 4060", 272],
  ["RTX 3090", 936],
  ["RTX 3080", 760],
  ["RTX 3060", 360],
]

/** Of a GPU's memory, by its name; undefined: it is not in the table. */
export function memoryRate(gpu: string): number | undefined {
  const words = gpu.toLowerCase()
  const known = MEMORY_RATES.find(([name]) => words.includes(name.toLowerCase()))
  return known === undefined ? undefined : known[1] * 1e9
}
