import type { Parameter } from "../nn/module.ts"
import { BF16, type DTypeInfo, Q8_0 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { held } from "./held.ts"

/** Names of upstream's CPU kernels: the first reads weights as the file has them, the others convert float weights at load. */
export const BACKENDS = ["llamafile", "AMXInt8", "AMXBF16"] as const
export type CpuBackend = (typeof BACKENDS)[number]

/** What float weights are held in; the kernels choose tiles, dot products or vectors by the CPU and the number of tokens. */
const HELD: Readonly<Record<CpuBackend, DTypeInfo | null>> = {
  llamafile: null,
  AMXInt8: Q8_0,
  AMXBF16: BF16,
}

/** A module's parameters, its matrices held as the backend has them. */
export function heldAs(parameters: Parameter[], backend: CpuBackend | undefined): Parameter[] {
  const dtype = HELD[backend ?? "llamafile"]
  if (dtype === null) return parameters
  const convert = (stored: Tensor): Tensor | null => held(stored, dtype)
  return parameters.map((p) =>
    p.kind === "weight" || p.kind === "experts" ? { ...p, convert } : p,
  )
}

/** A line for the plan. */
export function backendNotes(backend: CpuBackend | undefined): string[] {
  const dtype = HELD[backend ?? "llamafile"]
  return dtype === null ? [] : [`${backend}: float weights are held as ${dtype.name}`]
}
