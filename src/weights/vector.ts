import { BF16, type DTypeInfo, F16, F32, F64 } from "../tensor/dtype.ts"

/** Types that norms, biases and other vectors are read from. */
export const VECTOR_TYPES: ReadonlySet<DTypeInfo> = new Set([F32, F16, BF16, F64])

/** Stored bytes (any alignment) of a type of `VECTOR_TYPES` as F32 values of their own. */
export function toFloat32(dtype: DTypeInfo, bytes: Uint8Array): Float32Array {
  const { buffer } = new Uint8Array(bytes)
  if (dtype === F32) return new Float32Array(buffer)
  if (dtype === F16) return Float32Array.from(new Float16Array(buffer))
  if (dtype === F64) return Float32Array.from(new Float64Array(buffer))
  const halves = new Uint16Array(buffer)
  const wide = new Uint32Array(halves.length)
  for (let i = 0; i < halves.length; i++) wide[i] = (halves[i] as number) * 65536
  return new Float32Array(wide.buffer)
}
