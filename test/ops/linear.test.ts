import { expect, test } from "bun:test"

import { linear, linearResidual, normLinear, packWeight } from "../../src/ops/linear.ts"
import type { DTypeInfo } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/linear.ts"
import { rmsNorm } from "../reference/ops.ts"
import { describeBackends, expectClose, int8Tolerance, nearest, randomArray } from "./harness.ts"
import { dequantized, PLAIN, QUANTIZED, randomWeight } from "./weights.ts"

const ROWS = [1, 7, 16, 17, 40]
const TOKENS = [1, 2, 3, 8, 9, 21]
/** Rounding of the f32 sums, against float64 on the same rounded inputs. */
const F32_ROUNDING = 4e-6

/** At least `wanted` columns in whole blocks. */
function columns(dtype: DTypeInfo, wanted: number): number {
  return Math.ceil(wanted / dtype.blockSize) * dtype.blockSize
}

describeBackends("linear", (backend) => {
  for (const dtype of QUANTIZED) {
    const cols = [...new Set([1, 3, 18].map((k) => columns(dtype, 32 * k)))]
    test(`${dtype.name}: int8 activations, blocks of the file and packed`, () => {
      backend.precision = "fast"
      for (const n of cols) {
        for (const rows of ROWS) {
          const w = randomWeight(backend, dtype, [rows, n], rows * n)
          const values = dequantized(w)
          const packed = packWeight(w)
          const bias = randomArray(rows, 5)
          for (const tokens of TOKENS) {
            const x = randomArray(tokens * n, tokens + n)
            x.fill(0, 0, 32) // a block of zeros has no scale
            const want = reference.linear(reference.roundToInt8(x), values, n, bias)
            const plain = reference.linear(x, values, n, bias)
            for (const weight of packed === null ? [w] : [w, packed]) {
              const got = linear(
                Tensor.from(backend, x, [tokens, n]),
                weight,
                Tensor.from(backend, bias),
              ).toFloat32Array()
              const own = backend.isHost ? want : nearest(got, [want, plain])
              expectClose(got, own, int8Tolerance(backend, tokens, F32_ROUNDING))
            }
            backend.resetStep()
          }
        }
      }
    })
  }

  for (const dtype of [...PLAIN, ...QUANTIZED]) {
    test(`${dtype.name}: float activations`, () => {
      backend.precision = "f32"
      const widths =
        dtype.blockSize > 1
          ? [...new Set([columns(dtype, 32), columns(dtype, 96)])]
          : [1, 15, 16, 17, 48, 130]
      for (const n of widths) {
        for (const rows of [1, 3, 4, 9, 33]) {
          const w = randomWeight(backend, dtype, [rows, n], rows + n)
          const values = dequantized(w)
          for (const tokens of [1, 4, 5, 11]) {
            const x = randomArray(tokens * n, tokens)
            const got = linear(Tensor.from(backend, x, [tokens, n]), w).toFloat32Array()
            expectClose(got, reference.linear(x, values, n), F32_ROUNDING)
            backend.resetStep()
          }
        }
      }
    })
  }

  test("BF16: activations may be rounded to the weights' type with precision fast", () => {
    backend.precision = "fast"
    const bf16 = PLAIN.find((dtype) => dtype.name === "BF16") as DTypeInfo
    for (const n of [1, 31, 32, 33, 50, 130]) {
      for (const rows of [1, 4, 9, 33]) {
        const w = randomWeight(backend, bf16, [rows, n], rows + n)
        for (const tokens of [1, 4, 5, 19]) {
          const x = randomArray(tokens * n, tokens)
          const got = linear(Tensor.from(backend, x, [tokens, n]), w).toFloat32Array()
          // half a unit in the last of 8 bits for each activation
          expectClose(got, reference.linear(x, dequantized(w), n), 4e-3)
          backend.resetStep()
        }
      }
    }
  })

  test("more columns and tokens than a pass of the kernels takes", () => {
    backend.precision = "fast"
    for (const dtype of QUANTIZED) {
      const n = 1792 // three panels of unequal widths; whole blocks of every type
      const rows = 5
      const tokens = 275
      const w = randomWeight(backend, dtype, [rows, n], 3)
      const x = randomArray(tokens * n, 4)
      const want = reference.linear(reference.roundToInt8(x), dequantized(w), n)
      const packed = packWeight(w)
      for (const weight of packed === null ? [w] : [w, packed])
        expectClose(
          linear(Tensor.from(backend, x, [tokens, n]), weight).toFloat32Array(),
          want,
          int8Tolerance(backend, tokens, F32_ROUNDING),
        )
      backend.resetStep()
    }
  })

  test("float results do not depend on the batch", () => {
    backend.precision = "f32"
    const w = randomWeight(backend, QUANTIZED[4], [37, 128], 3)
    const x = randomArray(9 * 128, 4)
    const together = linear(Tensor.from(backend, x, [9, 128]), w).toFloat32Array()
    for (let t = 0; t < 9; t++) {
      const alone = linear(
        Tensor.from(backend, x.slice(t * 128, (t + 1) * 128), [1, 128]),
        w,
      ).toFloat32Array()
      expect([...alone]).toEqual([...together.slice(t * 37, (t + 1) * 37)])
    }
  })

  test("normLinear and linearResidual are their parts", () => {
    for (const precision of ["fast", "f32"] as const) {
      backend.precision = precision
      for (const tokens of [1, 2, 5, 19]) {
        const n = 96
        const rows = 50
        const w = randomWeight(backend, QUANTIZED[1], [rows, n], 9)
        const values = dequantized(w)
        const x = randomArray(tokens * n, tokens)
        const norm = randomArray(n, 2)
        const normed = Float32Array.from(rmsNorm(x, norm, 1e-5, 1))
        const rounded = (v: Float32Array): ArrayLike<number> =>
          precision === "fast" ? reference.roundToInt8(v) : v
        const got = normLinear(
          Tensor.from(backend, x, [tokens, n]),
          Tensor.from(backend, norm),
          1e-5,
          1,
          w,
        ).toFloat32Array()
        // rounding to int8 may fall the other way where the norm differs in its last bit
        expectClose(
          got,
          reference.linear(rounded(normed), values, n),
          precision === "fast" ? int8Tolerance(backend, tokens, 1e-3) : F32_ROUNDING,
        )

        const start = randomArray(tokens * rows, 7)
        const residual = Tensor.from(backend, start, [tokens, rows])
        linearResidual(Tensor.from(backend, x, [tokens, n]), w, null, residual)
        const plain = reference.linear(rounded(x), values, n)
        expectClose(
          residual.toFloat32Array(),
          plain.map((v, i) => v + (start[i] as number)),
          precision === "fast" ? int8Tolerance(backend, tokens, F32_ROUNDING) : F32_ROUNDING,
        )

        const post = randomArray(rows, 8)
        const after = Tensor.from(backend, start, [tokens, rows])
        linearResidual(Tensor.from(backend, x, [tokens, n]), w, null, after, {
          norm: Tensor.from(backend, post),
          eps: 1e-6,
          offset: 1,
        })
        expectClose(
          after.toFloat32Array(),
          rmsNorm(plain, post, 1e-6, 1).map((v, i) => v + (start[i] as number)),
          precision === "fast" ? int8Tolerance(backend, tokens, 1e-5) : 1e-5,
        )
        backend.resetStep()
      }
    }
  })

  test.skipIf(!backend.isHost)("a weight that ends where its memory ends is rearranged", () => {
    backend.precision = "fast"
    // whole pages, so that what follows may belong to nobody; the last field of a block is its only 16-bit one
    const n = 256
    const rows = 2048
    for (const dtype of QUANTIZED.filter(({ name }) => ["Q3_K", "Q6_K", "TQ2_0"].includes(name))) {
      const w = randomWeight(backend, dtype, [rows, n], 5)
      const x = randomArray(n, 6)
      const given = Tensor.from(backend, x, [1, n])
      const packed = packWeight(w) as Tensor
      const [plain, rearranged] = [w, packed].map((one) => linear(given, one).toFloat32Array())
      expectClose(rearranged as Float32Array, plain as Float32Array, 1e-4)
      backend.resetStep()
    }
  })

  test("bad operands are refused by name", () => {
    backend.precision = "fast"
    const w = randomWeight(backend, QUANTIZED[0], [4, 64], 1)
    const x = Tensor.from(backend, randomArray(32, 1), [1, 32])
    expect(() => linear(x, w)).toThrow("w has shape [4, 64], expected [4, 32]")
    const wide = Tensor.from(backend, randomArray(64, 1), [1, 64])
    expect(() => linear(wide, w, Tensor.from(backend, randomArray(3, 1)))).toThrow(
      "bias dimension 0 is 3, expected 4",
    )
    backend.precision = "f32"
    if (backend.isHost)
      expect(() => linear(wide, packWeight(w) as Tensor)).toThrow("packed for int8 activations")
  })
})
