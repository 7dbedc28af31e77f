import { ConfigError, DeviceError } from "../errors.ts"
import type { InjectionPlan } from "../inject/inject.ts"
import { type KwargValue, ruleLabel } from "../inject/rules.ts"
import type { AnyModel } from "../models/registry.ts"
import type { Backend } from "../native/backend.ts"
import { lacksOp } from "../native/library.ts"
import { Deferral } from "../nn/deferral.ts"
import { type Module, ModuleList, namedModules } from "../nn/module.ts"
import { Experts } from "../nn/moe.ts"
import { computeAcross } from "../nn/placed.ts"
import { ResidentExperts } from "../nn/resident-experts.ts"
import { RotaryEmbedding } from "../nn/rope.ts"
import { KFusedLatentAttention } from "../operators/fused-latent.ts"
import { KFusedAttention, KFusedDecoderLayer, KFusedHead, KFusedMLP } from "../operators/fused.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { packForDevice } from "./backends.ts"

/** Which device each module computes on. */
export interface Placement {
  /** The one that the logits are on first. */
  readonly devices: readonly string[]
  /** By the module's path; the root is "". */
  readonly byPath: ReadonlyMap<string, string>
  /** By the path of the host's experts: the device that long prompts take them to. */
  readonly streamed: ReadonlyMap<string, string>
  /** By the path of the host's experts: those of them that their block's device has too. */
  readonly residents: ReadonlyMap<string, readonly number[]>
  /** From so many tokens on, where rules say it; undefined: as measured. */
  readonly streamThreshold: number | undefined
}

const LAYER = /^model\.layers\.(\d+)$/

/**
 * What rules say of devices: a module is on its rule's, else on that of the module that holds it; a layer on that of its
 * place in `transfer_map`, else on that of its first module with a rule; what no rule reaches is on `base`.
 *
 * @param resolve The device that computes what is meant for a device of a rule
 */
export function placeModules(
  root: AnyModel,
  plan: InjectionPlan,
  resolve: (device: string) => string,
  base: string,
): Placement {
  const byPath = new Map<string, string>()
  const own = (path: string): string | undefined => {
    const { generate_device, prefill_device } = plan.entries.get(path)?.kwargs ?? {}
    const named = [generate_device, prefill_device].find((value) => typeof value === "string")
    return typeof named === "string" ? resolve(named) : undefined
  }
  const ranges = transferMap(plan.entries.get("model")?.kwargs["transfer_map"], resolve)
  const walk = (module: Module, path: string, inherited: string): void => {
    const device = own(path) ?? layerDevice(module, path, ranges, own) ?? inherited
    byPath.set(path, device)
    for (const [name, child] of module.children())
      walk(child, path === "" ? name : `${path}.${name}`, device)
  }
  walk(root, "", base)
  // the sampler reads the logits where the head makes them, and the model ends where its head begins
  const head = byPath.get("lm_head") ?? base
  byPath.set("", head)
  if (byPath.has("model")) byPath.set("model", head)
  if (new Map(root.children()).get("lm_head") instanceof KFusedHead) byPath.set("model.norm", head)
  const devices = new Set([head, ...byPath.values()])
  if (devices.size > 1 && root.config.encoder !== undefined)
    throw new ConfigError(
      `${root.config.model_type} models compute on one device, not on ${[...devices].join(" and ")}`,
    )
  checkOutDevices(root, plan, byPath, resolve)
  const { threshold, streamed } = streamedExperts(root, plan, byPath, resolve)
  const residents = residentExperts(root, plan, byPath)
  return { devices: [...devices], byPath, streamed, residents, streamThreshold: threshold }
}

/**
 * A module's result goes where it is used, so that `out_device` can only say the same.
 *
 * @throws ConfigError naming rule, module and both devices where it says another
 */
function checkOutDevices(
  root: AnyModel,
  { entries }: InjectionPlan,
  byPath: ReadonlyMap<string, string>,
  resolve: (device: string) => string,
): void {
  for (const [path, module] of namedModules(root)) {
    const entry = entries.get(path)
    const asked = entry?.kwargs["out_device"]
    // rotations are made on every device that asks for them
    if (entry === undefined || typeof asked !== "string" || module instanceof RotaryEmbedding)
      continue
    const user = userOf(path, byPath)
    const device = byPath.get(user) ?? "cpu"
    if (resolve(asked) === device) continue
    throw new ConfigError(
      `${ruleLabel(entry.rule)}: out_device ${asked}: the result of ${path} is used by ${user || "the sampler"} on ${device}`,
      { hint: "without out_device results go where they are used" },
    )
  }
}

/** The module that takes a module's result. */
function userOf(path: string, byPath: ReadonlyMap<string, string>): string {
  if (path === "model.embed_tokens") return "model.layers.0"
  const layer = LAYER.exec(path)
  const next = `model.layers.${Number(layer?.[1]) + 1}`
  if (layer !== null) return byPath.has(next) ? next : "model.norm"
  return path.slice(0, Math.max(0, path.lastIndexOf(".")))
}

/** What `gpu_experts` asks for, of the host's experts in blocks on another device. */
function residentExperts(
  root: AnyModel,
  { entries }: InjectionPlan,
  byPath: ReadonlyMap<string, string>,
): Map<string, readonly number[]> {
  const residents = new Map<string, readonly number[]>()
  for (const [path, module] of namedModules(root)) {
    const wanted = entries.get(path)?.kwargs["gpu_experts"]
    if (!(module instanceof Experts) || wanted === undefined || wanted === null) continue
    const block = byPath.get(path.slice(0, path.lastIndexOf(".")))
    if (byPath.get(path) !== "cpu" || block === undefined || block === "cpu") continue
    const ids = chosenExperts(wanted, module.options.numExperts, path)
    if (ids.length > 0) residents.set(path, ids)
  }
  return residents
}

function chosenExperts(wanted: KwargValue, count: number, path: string): number[] {
  if (Array.isArray(wanted)) {
    const ids = [...new Set(wanted.map(Number))].toSorted((a, b) => a - b)
    const bad = ids.find((id) => id >= count)
    if (bad !== undefined)
      throw new ConfigError(`gpu_experts: ${path} has ${count} experts, none of number ${bad}`)
    return ids
  }
  const number =
    typeof wanted === "string"
      ? Math.round((Number.parseFloat(wanted) / 100) * count)
      : Number(wanted)
  if (number > count)
    throw new ConfigError(`gpu_experts ${String(wanted)}: ${path} has ${count} experts`)
  return Array.from({ length: number }, (_, i) => i)
}

/** Experts of the host whose rules have another `prefill_device` and an operator there, on the device of their block. */
function streamedExperts(
  root: AnyModel,
  { entries }: InjectionPlan,
  byPath: ReadonlyMap<string, string>,
  resolve: (device: string) => string,
): { threshold: number | undefined; streamed: Map<string, string> } {
  const streamed = new Map<string, string>()
  const model = entries.get("model")?.kwargs ?? {}
  const asked =
    model["per_layer_prefill_intput_threshold"] ?? model["per_layer_prefill_input_threshold"]
  const threshold = typeof asked === "number" ? asked : undefined
  if (threshold === 0) return { threshold, streamed }
  for (const [path, module] of namedModules(root)) {
    if (!(module instanceof Experts) || byPath.get(path) !== "cpu") continue
    const { prefill_device: device, prefill_op: op } = entries.get(path)?.kwargs ?? {}
    const block = byPath.get(path.slice(0, path.lastIndexOf(".")))
    if (typeof device !== "string" || op === "None" || op === null || block === undefined) continue
    if (resolve(device) === block && block !== "cpu") streamed.set(path, block)
  }
  return { threshold, streamed }
}

/** Everything on one device. */
export function placeOn(device: string, root: Module): Placement {
  const paths = [...namedModules(root)].map(([path]) => path)
  return {
    devices: [device],
    byPath: new Map(paths.map((path) => [path, device])),
    streamed: new Map(),
    residents: new Map(),
    streamThreshold: undefined,
  }
}

interface Range {
  readonly from: number
  readonly device: string
}

/** `{30: "cuda:1"}`: layers from 30 on. */
function transferMap(
  value: KwargValue | undefined,
  resolve: (device: string) => string,
): readonly Range[] {
  if (typeof value !== "object" || value === null) return []
  return Object.entries(value)
    .map(([from, device]) => ({ from: Number(from), device: resolve(String(device)) }))
    .toSorted((a, b) => b.from - a.from)
}

function layerDevice(
  module: Module,
  path: string,
  ranges: readonly Range[],
  own: (path: string) => string | undefined,
): string | undefined {
  const layer = LAYER.exec(path)
  if (layer === null) return undefined
  const mapped = ranges.find(({ from }) => Number(layer[1]) >= from)?.device
  if (mapped !== undefined) return mapped
  for (const [below, child] of namedModules(module)) {
    const device = child instanceof Experts || below === "" ? undefined : own(`${path}.${below}`)
    if (device !== undefined) return device
  }
  return undefined
}

/** Gives every module its device, and has those compute across that are on another one than what calls them. */
export function applyPlacement(
  root: Module,
  { byPath }: Placement,
  backends: ReadonlyMap<string, Backend>,
): void {
  for (const [path, module] of namedModules(root)) {
    const backend = backends.get(byPath.get(path) ?? "")
    module.backend = backend
    if (backend !== undefined) checkOps(path, module, backend)
  }
  const walk = (parent: Module, parentPath: string): void => {
    for (const [name, child] of parent.children()) {
      const path = parentPath === "" ? name : `${parentPath}.${name}`
      checkFused(parent, parentPath, child, path, byPath)
      const out = path === "model.embed_tokens" ? firstLayer(parent)?.backend : parent.backend
      if (out !== undefined && child.backend !== out && !crossesItself(child, path))
        computeAcross(child, out)
      walk(child, path)
    }
  }
  walk(root, "")
}

function checkOps(path: string, module: Module, { library, label }: Backend): void {
  const lacking = module.requiredOps().find((name) => lacksOp(library, name))
  if (lacking === undefined) return
  throw new DeviceError(`${path} cannot be on ${label}, whose library has no ${lacking}`, {
    hint: "a rule can put it on another device: generate_device: cpu",
  })
}

/** Experts take their input from any device; layers are handed the residual stream; rotations are made where they are asked for. */
function crossesItself(module: Module, path: string): boolean {
  return (
    module instanceof Experts ||
    module instanceof RotaryEmbedding ||
    module instanceof ModuleList ||
    LAYER.test(path)
  )
}

function firstLayer(model: Module): Module | undefined {
  const layers = new Map(model.children()).get("layers")
  return layers instanceof ModuleList ? layers.items[0] : undefined
}

/** Fused operators compute with their parts' weights themselves. */
function checkFused(
  parent: Module,
  parentPath: string,
  child: Module,
  path: string,
  byPath: ReadonlyMap<string, string>,
): void {
  if (child.backend === parent.backend) return
  const takesApart =
    parent instanceof KFusedAttention ||
    parent instanceof KFusedLatentAttention ||
    parent instanceof KFusedMLP ||
    (parent instanceof KFusedDecoderLayer && path.endsWith("norm"))
  if (!takesApart) return
  const [own, outer] = [byPath.get(path), byPath.get(parentPath)]
  throw new ConfigError(
    `${path} is on ${own}, but ${parentPath} on ${outer} is fused with it: rules must put both on one device`,
    { hint: "--no-fuse computes them apart" },
  )
}

/** Has layers put off as many of the host's experts as their rules allow, where the next one's are the host's too. */
export function deferExperts(
  root: Module,
  { entries }: InjectionPlan,
  { byPath }: Placement,
): void {
  const blockOf = (path: string): string | undefined =>
    byPath.get(path) === "cpu" ? byPath.get(path.slice(0, path.lastIndexOf("."))) : undefined
  const layers = [...namedModules(root)].flatMap(([path, module]) =>
    module instanceof Experts ? [{ path, module, block: blockOf(path) }] : [],
  )
  for (const [i, { path, module, block }] of layers.entries()) {
    const next = layers[i + 1]
    const wanted = entries.get(path)?.kwargs["max_deferred_experts"]
    if (typeof wanted !== "number" || wanted === 0 || next === undefined) continue
    if (block === undefined || block === "cpu" || next.block !== block) continue
    module.deferral ??= new Deferral()
    module.maxDeferred = wanted
    next.module.deferral = module.deferral
  }
}

/** Has experts of the host that a device is to have too be taken there when weights are bound. */
export function placeResidents(
  root: Module,
  { byPath, residents }: Placement,
  backends: ReadonlyMap<string, Backend>,
  repack: boolean,
  resources: DisposableStack,
): void {
  for (const [path, module] of namedModules(root)) {
    const ids = residents.get(path)
    const device = backends.get(byPath.get(path.slice(0, path.lastIndexOf("."))) ?? "")
    if (!(module instanceof Experts) || ids === undefined || device === undefined) continue
    const { numExperts } = module.options
    const pack = (weight: Tensor): Tensor | null => (repack ? packForDevice(weight) : null)
    module.residents = resources.use(new ResidentExperts(device, ids, numExperts, pack))
  }
}

/** The devices of the layers' caches: of attention layers and of those that keep states, each in their order. */
export function cacheDevices(
  root: Module,
  main: Backend,
): { readonly attention: (layer: number) => Backend; readonly states: (layer: number) => Backend } {
  const attention: Backend[] = []
  const states: Backend[] = []
  for (const [, module] of namedModules(root)) {
    const { backend = main } = module
    if ("layerIdx" in module) attention[Number(module.layerIdx)] = backend
    if ("stateIdx" in module) states[Number(module.stateIdx)] = backend
  }
  return {
    attention: (layer) => attention[layer] ?? main,
    states: (layer) => states[layer] ?? main,
  }
}
