import { type Module, namedModules } from "../nn/module.ts"
import { Experts } from "../nn/moe.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"
import type { ExpertUse, ModuleUse } from "../worker/protocol.ts"

/** Every module that has weights, with where they are and of which types. Tensors that several share count for the first. */
export function moduleUses(root: Module): ModuleUse[] {
  const seen = new Set<unknown>()
  const uses: ModuleUse[] = []
  for (const [path, module] of namedModules(root)) {
    const types = new Map<string, number>()
    let isPacked = false
    let device = "cpu"
    for (const value of Object.values(module) as unknown[]) {
      if (!(value instanceof Tensor) || seen.has(value.data)) continue
      seen.add(value.data)
      isPacked ||= value.packed
      device = value.backend.label
      const { name } = value.dtype
      types.set(name, (types.get(name) ?? 0) + byteLength(value.dtype, value.shape))
    }
    if (types.size === 0) continue
    const operator = module.classNames()[0] ?? "(unregistered)"
    uses.push({ path, operator, device, isPacked, types: [...types] })
  }
  return uses
}

/** How often the experts of each layer were chosen, in their order. */
export function expertUses(root: Module): ExpertUse[] {
  return [...namedModules(root)].flatMap(([path, module]) =>
    module instanceof Experts ? [{ path, counts: [...module.uses] }] : [],
  )
}
