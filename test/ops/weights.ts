import type { Backend } from "../../src/native/backend.ts"
import { copy } from "../../src/ops/elementwise.ts"
import * as dtypes from "../../src/tensor/dtype.ts"
import { byteLength, Tensor } from "../../src/tensor/tensor.ts"
import { randomArray } from "./harness.ts"

/** Byte offsets of the f16 scale fields of each block type. */
const SCALE_FIELDS: Record<string, readonly number[]> = {
  Q4_0: [0],
  Q4_1: [0, 2],
  Q5_0: [0],
  Q5_1: [0, 2],
  Q8_0: [0],
  Q2_K: [80, 82],
  Q3_K: [108],
  Q4_K: [0, 2],
  Q5_K: [0, 2],
  Q6_K: [208],
}

export const QUANTIZED = [
  dtypes.Q4_0,
  dtypes.Q4_1,
  dtypes.Q5_0,
  dtypes.Q5_1,
  dtypes.Q8_0,
  dtypes.Q2_K,
  dtypes.Q3_K,
  dtypes.Q4_K,
  dtypes.Q5_K,
  dtypes.Q6_K,
] as const
export const PLAIN = [dtypes.F32, dtypes.F16, dtypes.BF16] as const

/** A weight of random blocks (every bit pattern of codes and sub-scales), with block scales of about 0.02. */
export function randomWeight(
  backend: Backend,
  dtype: dtypes.DTypeInfo,
  shape: readonly number[],
  seed: number,
): Tensor {
  const w = Tensor.allocate(backend, dtype, shape)
  const bytes = w.bytes()
  const noise = randomArray(bytes.length, seed, 1)
  if (dtype.blockSize === 1) {
    const values = randomArray(w.numel, seed)
    if (dtype === dtypes.F32)
      new Float32Array(bytes.buffer, bytes.byteOffset, values.length).set(values)
    else if (dtype === dtypes.F16)
      new Float16Array(bytes.buffer, bytes.byteOffset, values.length).set(values)
    else copy(Tensor.from(backend, values, shape), w)
    return w
  }
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.floor((noise[i] as number) * 1e6)
  const halves = new Float16Array(1)
  const raw = new Uint8Array(halves.buffer)
  for (let block = 0; block < bytes.length; block += dtype.blockBytes) {
    for (const [i, field] of (SCALE_FIELDS[dtype.name] as readonly number[]).entries()) {
      halves[0] =
        (0.02 + 0.01 * (noise[block + i] as number)) * (dtype.blockSize === 256 ? 0.05 : 1)
      bytes.set(raw, block + field)
    }
  }
  return w
}

/** The values of a weight as f32, row-major. */
export function dequantized(w: Tensor): Float32Array {
  const out = Tensor.allocate(w.backend, dtypes.F32, w.shape)
  const values = copy(w, out).toFloat32Array()
  out[Symbol.dispose]()
  return values
}

export { byteLength }
