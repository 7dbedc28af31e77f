import { expect, test } from "bun:test"

import { copy } from "../../src/ops/elementwise.ts"
import { linear } from "../../src/ops/index.ts"
import { type DTypeInfo, F8_E4M3, F32, I4_BF16, I4_ZERO } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { decodeBlocks } from "../reference/formats.ts"
import { describeBackends, randomArray, relativeError } from "./harness.ts"

/** Blocks with every code; scales of all sizes. */
function blocks(dtype: DTypeInfo, count: number): Uint8Array {
  const bytes = new Uint8Array(count * dtype.blockBytes)
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 37 + (i >> 3)) & 255
  const view = new DataView(bytes.buffer)
  for (let b = 0; b < count; b++) {
    const at = b * dtype.blockBytes
    if (dtype === F8_E4M3) {
      view.setFloat32(at, 1.2345e-4 * (b + 1), true)
      for (let i = 0; i < 128; i++) {
        const code = (b * 128 + i) & 255
        bytes[at + 4 + i] = (code & 127) === 127 ? 0 : code
      }
    } else if (dtype === I4_BF16) view.setUint16(at, 0x3c00 + 7 * (b % 64), true)
    else {
      view.setFloat16(at, 0.0123 * (b + 1), true)
      bytes[at + 2] = b % 17
    }
  }
  return bytes
}

describeBackends("types of quantised safetensors", (backend) => {
  for (const dtype of [F8_E4M3, I4_BF16, I4_ZERO]) {
    test(`${dtype.name} has its definition's values, and products of them`, () => {
      const rows = 34
      const cols = 256
      const bytes = blocks(dtype, (rows * cols) / dtype.blockSize)
      const w = Tensor.allocate(backend, dtype, [rows, cols])
      w.write(bytes)
      const want = decodeBlocks(dtype.id, dtype.blockBytes, bytes)
      const out = Tensor.allocate(backend, F32, [rows, cols])
      expect(copy(w, out).toFloat32Array()).toEqual(Float32Array.from(want))
      for (const tokens of [1, 5]) {
        const x = randomArray(tokens * cols, 7)
        const sums = new Float32Array(tokens * rows)
        for (let t = 0; t < tokens; t++)
          for (let r = 0; r < rows; r++) {
            let sum = 0
            for (let i = 0; i < cols; i++) sum += want[r * cols + i]! * x[t * cols + i]!
            sums[t * rows + r] = sum
          }
        const y = linear(Tensor.from(backend, x, [tokens, cols]), w).toFloat32Array()
        // int8 activations where the type is one of whole numbers
        const bound = backend.precision === "f32" || dtype === F8_E4M3 ? 1e-6 : 1e-2
        expect(relativeError(y, sums)).toBeLessThan(bound)
      }
      backend.resetStep()
      for (const tensor of [w, out]) tensor[Symbol.dispose]()
    })
  }
})
