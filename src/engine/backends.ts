import {
  Backend,
  type BackendOptions,
  openDevice,
  queryCpu,
  queryDevices,
} from "../native/backend.ts"
import { packWeight } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"

/** What a model computes on, and the CPU, where checkpoints are read. */
export interface Backends {
  readonly host: Backend
  /** `host` itself where the CPU computes. */
  readonly backend: Backend
}

/** Opens a device for a model, added to what `resources` gives back. `options` are the CPU's. */
export function openBackends(
  device: string,
  options: BackendOptions,
  resources: DisposableStack,
): Backends {
  const isHost = device === "cpu"
  const host = resources.use(new Backend(isHost ? options : { ...options, threads: 1 }))
  if (isHost) return { host, backend: host }
  const { library, index } = openDevice(device)
  const { precision = "fast" } = options
  return { host, backend: resources.use(new Backend({ precision, device: index }, library)) }
}

/** Free bytes of the memory that weights, KV cache and activations lie in. */
export function freeBytes(device: string): number {
  if (device === "cpu") return queryCpu().memoryFreeBytes
  const { library, index } = openDevice(device)
  return queryDevices(library)[index]?.memoryFreeBytes ?? 0
}

/** How a device's weights are rearranged: float activations read them too. */
export const packForDevice = (weight: Tensor): Tensor | null => packWeight(weight)
