import type { Backend } from "../native/backend.ts"
import { onDevice, type Routing } from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import { batchOn, type ForwardBatch } from "./forward-batch.ts"
import type { Module } from "./module.ts"
import type { PositionEmbeddings } from "./rope.ts"

type Forward = (...args: readonly unknown[]) => unknown

/**
 * Has a module compute on its own device where what calls it is on another: its inputs are copied there, its result to
 * `out`. Callers that take the module apart and do not call forward() must look at its device.
 */
export function computeAcross(module: Module, out: Backend): void {
  const { backend } = module
  if (backend === undefined || !hasForward(module)) return
  const forward = module.forward.bind(module)
  module.forward = (...args) => moved(forward(...args.map((arg) => moved(arg, backend))), out)
}

function hasForward(module: Module): module is Module & { forward: Forward } {
  return "forward" in module && typeof module.forward === "function"
}

/** What modules hand each other, on another device. */
function moved(value: unknown, backend: Backend): unknown {
  if (value instanceof Tensor) return onDevice(value, backend)
  if (typeof value !== "object" || value === null) return value
  if ("inputIds" in value) return batchOn(value as ForwardBatch, backend)
  if ("table" in value) {
    const positions = value as PositionEmbeddings
    return { ...positions, table: onDevice(positions.table, backend) }
  }
  if ("ids" in value && "weights" in value) {
    const { ids, weights } = value as Routing
    return { ids: onDevice(ids, backend), weights: onDevice(weights, backend) }
  }
  return value
}
