import {
  Backend,
  type BackendOptions,
  openDevice,
  queryCpu,
  queryDevices,
} from "../native/backend.ts"
import { lacksOp } from "../native/library.ts"
import { packWeight } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"

/** What a model computes on, and the CPU, where checkpoints are read. */
export interface Backends {
  readonly host: Backend
  /** Where the logits are; `host` itself where the CPU computes all of a model. */
  readonly main: Backend
  /** By name, the host always among them. */
  readonly byDevice: ReadonlyMap<string, Backend>
  /** All that compute, `main` first. */
  readonly computing: readonly Backend[]
}

/** Opens a model's devices, the first its main one, added to what `resources` gives back. `options` are the CPU's. */
export function openBackends(
  devices: readonly string[],
  options: BackendOptions,
  resources: DisposableStack,
): Backends {
  const computesHere = devices.includes("cpu")
  const host = resources.use(new Backend(computesHere ? options : { ...options, threads: 1 }))
  const byDevice = new Map([["cpu", host]])
  for (const device of devices) {
    if (device === "cpu") continue
    const { library, index, logical } = openDevice(device)
    const { precision = "fast", threads = 0 } = options
    const settings = { precision, threads, device: index, logical }
    byDevice.set(device, resources.use(new Backend(settings, library)))
  }
  const computing = devices.map((device) => byDevice.get(device) as Backend)
  return { host, main: computing[0] ?? host, byDevice, computing }
}

/** From so many cores on the CPU's experts leave one to the process's other threads. */
const MANY_CORES = 8

/**
 * Compute threads of the CPU: as asked for, or 0, all its cores. Beside a device it leaves one of many to the driver's threads
 * and the process's own: a region lasts as long as its slowest thread.
 */
export function computeThreads(
  asked: number,
  devices: readonly string[],
): { readonly threads: number; readonly note: string | undefined } {
  const isHybrid = devices.includes("cpu") && devices.some((device) => device !== "cpu")
  const cores = isHybrid && asked === 0 ? queryCpu().physicalCores : 0
  if (cores < MANY_CORES) return { threads: asked, note: undefined }
  const threads = cores - 1
  const note = `${threads} CPU threads compute: one of ${cores} cores is left to the driver and the host (--threads sets another number)`
  return { threads, note }
}

/** What draws tokens: where the logits are, or the host for a device that has no samplers. */
export function samplingBackend(host: Backend, main: Backend): Backend {
  return lacksOp(main.library, "kt_sample") ? host : main
}

/** Free bytes of the memory that weights, KV cache and activations lie in. */
export function freeBytes(device: string): number {
  if (device === "cpu") return queryCpu().memoryFreeBytes
  const { library, index, shared } = openDevice(device)
  return Math.floor((queryDevices(library)[index]?.memoryFreeBytes ?? 0) / shared)
}

/** How weights of devices are rearranged; of the GPU's kernels float activations read them too. */
export function packForDevice(weight: Tensor): Tensor | null {
  const { name, precision } = weight.backend
  return name === "cpu" && precision === "f32" ? null : packWeight(weight)
}
