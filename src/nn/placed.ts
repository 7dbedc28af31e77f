import { KtError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import { copy, onDevice, refuseRecording, type Routing } from "../ops/index.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"
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
  module.forward = (...args) => {
    if (out.recording === undefined && backend.recording === undefined)
      return moved(forward(...args.map((arg) => moved(arg, backend))), out)
    return recorded(forward, args, backend, out)
  }
}

/** The host's ops are recorded beside the device's, which waits for their result. */
function recorded(
  forward: Forward,
  args: readonly unknown[],
  backend: Backend,
  out: Backend,
): Tensor {
  const { recording } = out
  const isHosts = (arg: unknown): arg is Tensor => arg instanceof Tensor && arg.backend === backend
  if (recording === undefined || !backend.isHost || !args.every(isHosts)) {
    refuseRecording(out)
    refuseRecording(backend)
  }
  recording?.beside(backend)
  const result = forward(...args)
  if (!(result instanceof Tensor))
    throw new KtError("a module amid a recorded step gives no tensor")
  const { dtype, shape } = result
  const at = out.allocShared(byteLength(dtype, shape))
  if (recording === undefined || at === undefined)
    throw new KtError(`${out.label} and the CPU have no memory in common`)
  copy(result, new Tensor(backend, dtype, shape, at))
  recording.await(out, recording.signal(backend))
  return copy(new Tensor(out, dtype, shape, at), Tensor.empty(out, dtype, shape))
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
