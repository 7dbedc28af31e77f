import { expect, test } from "bun:test"

import { repackMxfp4 } from "../../src/weights/mxfp4.ts"
import { type GoldenTensor, readGoldenTensors } from "../fixtures/golden-tensors.ts"
import { golden } from "../setup.ts"

/** The 16 values of E2M1 (OCP Microscaling Formats 1.0). */
const VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]

test("codes and scales as published become the blocks that dequantise to the same values", () => {
  const tensors = readGoldenTensors(golden("quant", "mxfp4.safetensors"))
  const quant = tensors.get("random.quant") as GoldenTensor
  const dequant = (tensors.get("random.dequant") as GoldenTensor).f32()
  const [experts, rows, cols] = [2, 2, 512]
  // gate and up alternate: the stack has rows 0, 2 for one and 1, 3 for the other
  const width = rows * 2
  const blocks = cols / 32
  for (const start of [0, 1]) {
    const codes = new Uint8Array(experts * width * blocks * 16)
    const scales = new Uint8Array(experts * width * blocks)
    const wantBytes: number[] = []
    for (let e = 0; e < experts; e++) {
      for (let r = 0; r < rows; r++) {
        const line = e * rows + r
        for (let b = 0; b < blocks; b++) {
          const block = line * blocks + b
          const at = (e * width + start + 2 * r) * blocks + b
          scales[at] = quant.bytes[block * 17] as number
          const code = (j: number): number =>
            ((quant.bytes[block * 17 + 1 + (j % 16)] as number) >> (j < 16 ? 0 : 4)) & 15
          for (let j = 0; j < 16; j++) codes[at * 16 + j] = code(2 * j) | (code(2 * j + 1) << 4)
          // the published form by its own definition
          for (let j = 0; j < 32; j++) {
            const byte = codes[at * 16 + (j >> 1)] as number
            const value = VALUES[(byte >> (4 * (j & 1))) & 15] as number
            expect(value * 2 ** ((scales[at] as number) - 127)).toBe(
              dequant[block * 32 + j] as number,
            )
          }
          wantBytes.push(...quant.bytes.subarray(block * 17, block * 17 + 17))
        }
      }
    }
    const out = new Uint8Array(experts * rows * blocks * 17)
    repackMxfp4(codes, scales, out, [experts, rows, cols], { name: "", start, step: 2, width })
    expect([...out]).toEqual(wantBytes)
  }
})
