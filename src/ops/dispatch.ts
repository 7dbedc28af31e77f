import { DeviceError, KtError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import { type DTypeInfo, F32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"

/** The backend all operands of an op live on: the single dispatch point. */
export function backendOf(op: string, first: Tensor, ...rest: readonly (Tensor | null)[]): Backend {
  const { backend } = first
  for (let i = 0; i < rest.length; i++) {
    const other = rest[i]
    if (other !== null && other !== undefined && other.backend !== backend) {
      throw new DeviceError(
        `${op}: operand 0 is on ${backend.label}, operand ${i + 1} on ${other.backend.label}`,
      )
    }
  }
  return backend
}

export function expectShape(
  op: string,
  name: string,
  tensor: Tensor,
  shape: readonly number[],
): void {
  // a loop: this runs for every operand of every launch
  let same = tensor.shape.length === shape.length
  for (let i = 0; same && i < shape.length; i++) same = tensor.shape[i] === shape[i]
  if (same) return
  throw new KtError(
    `${op}: ${name} has shape [${tensor.shape.join(", ")}], expected [${shape.join(", ")}]`,
  )
}

export function expectDtype(op: string, name: string, tensor: Tensor, dtype: DTypeInfo): void {
  if (tensor.dtype !== dtype)
    throw new KtError(`${op}: ${name} is ${tensor.dtype.name}, expected ${dtype.name}`)
}

/** An uninitialised f32 tensor in the step arena. */
export function empty(like: Tensor, shape: readonly number[], dtype: DTypeInfo = F32): Tensor {
  return Tensor.empty(like.backend, dtype, shape)
}

/** The descriptor of an operand that may be absent. */
export function descOf(tensor: Tensor | null | undefined): number {
  return tensor?.desc ?? 0
}

/** Writes a pointer field of an option struct. */
export function putPointer(view: DataView, offset: number, address: number): void {
  const high = Math.floor(address / 4294967296)
  view.setUint32(offset, address - high * 4294967296, true)
  view.setUint32(offset + 4, high, true)
}
