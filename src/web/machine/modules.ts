import type { ExpertCounts, ModuleEntry } from "./api.ts"

/** Modules that differ in nothing but their layer. */
export interface ModuleGroup {
  /** With a star in place of each number: "model.layers.*.self_attn.q_proj". */
  pattern: string
  count: number
  operator: string
  device: string
  packed: boolean
  types: string[]
  bytes: number
}

export function bytesOf(module: Pick<ModuleEntry, "types">): number {
  return Object.values(module.types).reduce((sum, bytes) => sum + bytes, 0)
}

/** In the order in which their first members come. */
export function groupModules(modules: readonly ModuleEntry[]): ModuleGroup[] {
  const groups = new Map<string, ModuleGroup>()
  for (const module of modules) {
    const { path, operator, device, packed } = module
    const pattern = path.replace(/(^|\.)\d+(?=\.|$)/g, "$1*")
    const types = Object.keys(module.types).sort()
    const key = JSON.stringify([pattern, operator, device, packed, types])
    const bytes = bytesOf(module)
    const known = groups.get(key)
    if (known === undefined)
      groups.set(key, { pattern, count: 1, operator, device, packed, types, bytes })
    else {
      known.count += 1
      known.bytes += bytes
    }
  }
  return [...groups.values()]
}

/** Bytes of weights by device, most first. */
export function bytesByDevice(modules: readonly ModuleEntry[]): [device: string, bytes: number][] {
  const devices = new Map<string, number>()
  for (const module of modules)
    devices.set(module.device, (devices.get(module.device) ?? 0) + bytesOf(module))
  return [...devices].sort((a, b) => b[1] - a[1])
}

/** The number of a layer in a module's path, else the path. */
export function layerName({ path }: ExpertCounts): string {
  return /\.(\d+)\./.exec(path)?.[1] ?? path
}
