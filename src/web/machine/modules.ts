import type { ExpertCounts, ModuleEntry } from "./api.ts"

/** Modules that differ in nothing but their layer. */
export interface ModuleGroup {
  /** With a star in place of each number: "model.layers.*.self_attn.q_proj"; the path where it is the only one. */
  pattern: string
  /** Which layers it has, "0, 3-5", where other groups have the rest. */
  layers: string | undefined
  count: number
  operator: string
  device: string
  rule: string
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
  const members = new Map<ModuleGroup, ModuleEntry[]>()
  for (const module of modules) {
    const { path, operator, device, rule, packed } = module
    const pattern = path.replace(/(^|\.)\d+(?=\.|$)/g, "$1*")
    const types = Object.keys(module.types).sort()
    const key = JSON.stringify([pattern, operator, device, rule, packed, types])
    const bytes = bytesOf(module)
    const known = groups.get(key)
    if (known === undefined) {
      const same = { operator, device, rule, packed, types }
      const group = { pattern, layers: undefined, count: 1, bytes, ...same }
      groups.set(key, group)
      members.set(group, [module])
    } else {
      known.count += 1
      known.bytes += bytes
      members.get(known)?.push(module)
    }
  }
  const all = [...groups.values()]
  const alike = new Map<string, number>()
  for (const { pattern } of all) alike.set(pattern, (alike.get(pattern) ?? 0) + 1)
  return all.map((group) => {
    const paths = (members.get(group) ?? []).map(({ path }) => path)
    if (paths.length === 1) return { ...group, pattern: paths[0] ?? group.pattern }
    return alike.get(group.pattern) === 1 ? group : { ...group, layers: ranges(paths) }
  })
}

/** The first numbers in paths, those in a row as one: "0, 3-5". */
function ranges(paths: readonly string[]): string {
  const numbers = [...new Set(paths.map((path) => Number(/(?:^|\.)(\d+)(?=\.|$)/.exec(path)?.[1])))]
  const rows: [from: number, to: number][] = []
  for (const number of numbers.sort((a, b) => a - b)) {
    const last = rows.at(-1)
    if (last !== undefined && last[1] === number - 1) last[1] = number
    else rows.push([number, number])
  }
  return rows.map(([from, to]) => (from === to ? String(from) : `${from}-${to}`)).join(", ")
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
