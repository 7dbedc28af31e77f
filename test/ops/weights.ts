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
  IQ4_NL: [0],
  IQ4_XS: [0],
  Q1_0: [0],
  Q2_0: [0],
  TQ1_0: [52],
  TQ2_0: [64],
  IQ2_XXS: [0],
  IQ2_XS: [0],
  IQ2_S: [0],
  IQ3_XXS: [0],
  IQ3_S: [0],
  IQ1_S: [0],
}

/** Types whose scales are no f16 field: what makes a block's scale sane. */
const SCALES: Record<string, (block: Uint8Array, noise: number) => void> = {
  Q8_K: (block, noise) =>
    new DataView(block.buffer, block.byteOffset).setFloat32(0, 0.001 + 0.0005 * noise, true),
  MXFP4: (block, noise) => void (block[0] = 123 + Math.round(noise)),
  NVFP4: (block, noise) => block.fill(32 + Math.round(4 * noise), 0, 4),
  I4_BF16: (block, noise) =>
    block.set(new Uint8Array(new Float32Array([0.02 + 0.01 * noise]).buffer).subarray(2)),
  I4_ZERO: (block, noise) => {
    block.set(new Uint8Array(new Float16Array([0.02 + 0.01 * noise]).buffer))
    block[2] = (block[2] as number) % 17
  },
  IQ1_M: (block, noise) => {
    const half = new Uint16Array(new Float16Array([0.02 + 0.01 * noise]).buffer)[0] as number
    for (let i = 0; i < 4; i++) {
      const byte = 48 + 2 * i + 1
      block[byte] = ((block[byte] as number) & 15) | (((half >> (4 * i)) & 15) << 4)
    }
  },
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
  dtypes.Q8_K,
  dtypes.IQ4_NL,
  dtypes.IQ4_XS,
  dtypes.MXFP4,
  dtypes.NVFP4,
  dtypes.Q1_0,
  dtypes.Q2_0,
  dtypes.TQ1_0,
  dtypes.TQ2_0,
  dtypes.IQ2_XXS,
  dtypes.IQ2_XS,
  dtypes.IQ2_S,
  dtypes.IQ3_XXS,
  dtypes.IQ3_S,
  dtypes.IQ1_S,
  dtypes.IQ1_M,
  dtypes.I4_BF16,
  dtypes.I4_ZERO,
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
  const bytes = new Uint8Array(byteLength(dtype, shape))
  const noise = randomArray(bytes.length, seed, 1)
  if (dtype.blockSize === 1) {
    const values = randomArray(w.numel, seed)
    if (dtype === dtypes.F32)
      new Float32Array(bytes.buffer, bytes.byteOffset, values.length).set(values)
    else if (dtype === dtypes.F16)
      new Float16Array(bytes.buffer, bytes.byteOffset, values.length).set(values)
    else return copy(Tensor.from(backend, values, shape), w)
    w.write(bytes)
    return w
  }
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.floor((noise[i] as number) * 1e6)
  const halves = new Float16Array(1)
  const raw = new Uint8Array(halves.buffer)
  for (let block = 0; block < bytes.length; block += dtype.blockBytes) {
    SCALES[dtype.name]?.(
      bytes.subarray(block, block + dtype.blockBytes),
      Math.max(-1, Math.min(1, noise[block] as number)),
    )
    for (const [i, field] of (SCALE_FIELDS[dtype.name] ?? []).entries()) {
      halves[0] =
        (0.02 + 0.01 * (noise[block + i] as number)) * (dtype.blockSize === 256 ? 0.05 : 1)
      bytes.set(raw, block + field)
    }
  }
  w.write(bytes)
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
