import { expect, test } from "bun:test"

import { headLinear } from "../../src/ops/head-linear.ts"
import { packWeight } from "../../src/ops/linear.ts"
import { type DTypeInfo, F32, Q8_0 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { headLinear as reference } from "../reference/head-linear.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"
import { dequantized, PLAIN, QUANTIZED, randomWeight } from "./weights.ts"

/** Rounding of the f32 sums. */
const TOLERANCE = 3e-6

describeBackends({ name: "headLinear", needs: ["kt_head_linear"] }, (backend) => {
  /** Shapes [heads, out, in] at which rows hold whole blocks, for both forms. */
  function shapes(dtype: DTypeInfo): readonly (readonly [number, number, number])[] {
    if (dtype.blockSize === 256)
      return [
        [3, 256, 256],
        [1, 512, 256],
      ]
    if (dtype.blockSize > 32)
      return [
        [2, 128, 128],
        [1, 256, 384],
      ]
    if (dtype.blockSize === 32)
      return [
        [3, 96, 32],
        [2, 544, 64],
        [40, 64, 128],
      ]
    return [
      [1, 1, 1],
      [2, 15, 16],
      [3, 17, 15],
      [5, 65, 24],
      [2, 300, 130],
      [33, 64, 32],
    ]
  }

  for (const dtype of [...PLAIN, ...QUANTIZED]) {
    test(`${dtype.name}: both forms, every kind of token count`, () => {
      backend.precision = "fast" // of no effect
      for (const [heads, rows, cols] of shapes(dtype)) {
        for (const transposed of [false, true]) {
          const shape = transposed ? [heads, cols, rows] : [heads, rows, cols]
          const w = randomWeight(backend, dtype, shape, rows + cols)
          const values = dequantized(w)
          for (const tokens of [1, 3, 4, 9, 67]) {
            const x = randomArray(tokens * heads * cols, tokens)
            const got = headLinear(Tensor.from(backend, x, [tokens, heads, cols]), w, {
              transposed,
            })
            const want = reference(x, values, { heads, rows, cols, transposed })
            expectClose(got.toFloat32Array(), want, TOLERANCE)
            backend.resetStep()
          }
        }
      }
    })
  }

  test("halves of a joint weight and parts of rows are views", () => {
    const [heads, nope, value, rank, tokens] = [4, 32, 64, 96, 5]
    const joint = randomWeight(backend, Q8_0, [heads, nope + value, rank], 1)
    const all = dequantized(joint)
    const part = (start: number, count: number): Float32Array =>
      Float32Array.from(
        Array.from({ length: heads }, (_, h) => [
          ...all.subarray(
            (h * (nope + value) + start) * rank,
            (h * (nope + value) + start + count) * rank,
          ),
        ]).flat(),
      )
    const width = nope + 8
    const q = randomArray(tokens * heads * width, 2)
    const qNope = Float32Array.from(q.filter((_, i) => i % width < nope))
    const latent = headLinear(
      Tensor.from(backend, q, [tokens, heads, width]).narrow(2, 0, nope),
      joint.narrow(1, 0, nope),
      { transposed: true },
    )
    const wantLatent = reference(qNope, part(0, nope), {
      heads,
      rows: rank,
      cols: nope,
      transposed: true,
    })
    expectClose(latent.toFloat32Array(), wantLatent, TOLERANCE)
    const out = headLinear(latent, joint.narrow(1, nope, value))
    const wantOut = reference(latent.toFloat32Array(), part(nope, value), {
      heads,
      rows: value,
      cols: rank,
      transposed: false,
    })
    expectClose(out.toFloat32Array(), wantOut, TOLERANCE)
  })

  test("results do not depend on the batch", () => {
    for (const transposed of [false, true]) {
      const w = randomWeight(backend, F32, [3, 64, 64], 3)
      const x = randomArray(9 * 192, 4)
      const together = headLinear(Tensor.from(backend, x, [9, 3, 64]), w, {
        transposed,
      }).toFloat32Array()
      for (let t = 0; t < 9; t++) {
        const own = Tensor.from(backend, x.slice(t * 192, (t + 1) * 192), [1, 3, 64])
        const alone = headLinear(own, w, { transposed }).toFloat32Array()
        expect([...alone]).toEqual([...together.slice(t * 192, (t + 1) * 192)])
      }
    }
  })

  test("other shapes and packed weights are refused", () => {
    const x = Tensor.from(backend, randomArray(2 * 3 * 32, 1), [2, 3, 32])
    const w = randomWeight(backend, Q8_0, [3, 64, 32], 1)
    expect(() => headLinear(x, w, { transposed: true })).toThrow(
      "w has shape [3, 64, 32], expected [3, 32, 32]",
    )
    expect(() => headLinear(x, randomWeight(backend, Q8_0, [2, 64, 32], 1))).toThrow("w has shape")
    const packed = packWeight(w)
    if (packed !== null) expect(() => headLinear(x, packed)).toThrow("w is packed")
  })
})
