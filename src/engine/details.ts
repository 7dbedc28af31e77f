import { basename } from "node:path"

import type { InjectionPlan } from "../inject/inject.ts"
import { ruleLabel } from "../inject/rules.ts"
import { type Module, namedModules } from "../nn/module.ts"
import { Experts } from "../nn/moe.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"
import type { ExpertUse, ModuleUse } from "../worker/protocol.ts"

/**
 * Every module that has weights, with where they are, of which types, and the rule that says so. Tensors that several share
 * count for the first.
 */
export function moduleUses(root: Module, plan: InjectionPlan): ModuleUse[] {
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
    const rule = ruleOf(path, plan)
    uses.push({ path, operator, device, rule, isPacked, types: [...types] })
  }
  return uses
}

/** Of the module itself, or the nearest one around it that a rule names; a file goes by its name alone. */
function ruleOf(path: string, { entries }: InjectionPlan): string {
  for (let at = path; at !== ""; at = at.slice(0, Math.max(0, at.lastIndexOf(".")))) {
    const entry = entries.get(at)
    if (entry === undefined) continue
    const { file, line, index } = entry.rule
    return ruleLabel({ file: basename(file), line, index })
  }
  return ""
}

/** How often the experts of each layer were chosen, in their order. */
export function expertUses(root: Module): ExpertUse[] {
  return [...namedModules(root)].flatMap(([path, module]) =>
    module instanceof Experts ? [{ path, counts: [...module.uses] }] : [],
  )
}
