import { KtError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import { onDevice, refuseRecording, type Routing } from "../ops/index.ts"
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

/** The host's part of a recorded step: computed anew, from where its inputs lie, whenever that is launched. */
function recorded(
  forward: Forward,
  args: readonly unknown[],
  backend: Backend,
  out: Backend,
): Tensor {
  const isHosts = (arg: unknown): arg is Tensor => arg instanceof Tensor && arg.backend === backend
  if (!backend.isHost || !args.every(isHosts)) {
    refuseRecording(out)
    refuseRecording(backend)
  }
  const inputs = args as readonly Tensor[]
  const first = forward(...inputs)
  if (!(first instanceof Tensor)) throw new KtError("a module amid a recorded step gives no tensor")
  const target = Tensor.empty(out, first.dtype, first.shape)
  const bytes = byteLength(first.dtype, first.shape)
  const places = inputs.map(({ dtype, shape, data, strides }) => ({ dtype, shape, data, strides }))
  out.recording?.hostWork(() => {
    const now = places.map(
      ({ dtype, shape, data, strides }) => new Tensor(backend, dtype, shape, data, { strides }),
    )
    const result = forward(...now) as Tensor
    out.copy(target.data, result.data, bytes)
  }, "itself")
  return target
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
