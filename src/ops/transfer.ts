import { KtError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"
import { cast } from "./elementwise.ts"

/**
 * x on another device, in its step arena, or x itself where it lies there. The copy comes after the ops that make x and
 * before those that are called with the result.
 */
export function onDevice(x: Tensor, backend: Backend): Tensor {
  const { backend: source } = x
  if (source === backend) return x
  refuseRecording(source)
  refuseRecording(backend)
  const from = x.isContiguous ? x : cast(x, x.dtype)
  const out = Tensor.empty(backend, x.dtype, x.shape)
  const bytes = byteLength(x.dtype, x.shape)
  if (source.isHost) backend.copy(out.data, from.data, bytes)
  else if (backend.isHost) source.copy(out.data, from.data, bytes)
  else if (source.library === backend.library) {
    backend.follow(source)
    backend.copy(out.data, from.data, bytes)
    // what is made there next may lie where x is read
    source.follow(backend)
  } else out.write(from.bytes())
  return out
}

/** @throws KtError where a step is being recorded: what other devices do between is not part of it */
export function refuseRecording({ recording, label }: Backend): void {
  if (recording !== undefined) throw new KtError(`tensors go between ${label} and other devices`)
}
