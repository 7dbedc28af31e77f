import { expect, test } from "bun:test"

import { addRmsNorm, rmsNorm } from "../../src/ops/rms-norm.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/ops.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"

const WIDTHS = [1, 7, 8, 9, 15, 16, 17, 48, 576, 4096]

describeBackends("rmsNorm", (backend) => {
  for (const n of WIDTHS) {
    test(`[3, ${n}] with and without offset`, () => {
      const x = randomArray(3 * n, n)
      const weight = randomArray(n, n + 1)
      for (const offset of [0, 1]) {
        const out = rmsNorm(
          Tensor.from(backend, x, [3, n]),
          Tensor.from(backend, weight),
          1e-5,
          offset,
        )
        expectClose(out.toFloat32Array(), reference.rmsNorm(x, weight, 1e-5, offset), 2e-6)
      }
    })
  }

  test("without a weight", () => {
    for (const n of WIDTHS) {
      const x = randomArray(3 * n, n)
      const got = rmsNorm(Tensor.from(backend, x, [3, n]), null, 1e-5)
      expectClose(
        got.toFloat32Array(),
        reference.rmsNorm(x, new Float32Array(n).fill(1), 1e-5),
        2e-6,
      )
    }
  })

  test("addRmsNorm adds into the residual first", () => {
    const n = 50
    const a = randomArray(2 * n, 1)
    const b = randomArray(2 * n, 2)
    const weight = randomArray(n, 3)
    const residual = Tensor.from(backend, a, [2, n])
    const out = addRmsNorm(
      residual,
      Tensor.from(backend, b, [2, n]),
      Tensor.from(backend, weight),
      1e-6,
    )
    const sum = a.map((v, i) => v + (b[i] as number))
    expectClose(residual.toFloat32Array(), sum, 1e-7)
    expectClose(out.toFloat32Array(), reference.rmsNorm(sum, weight, 1e-6), 2e-6)
  })

  test("strided rows are read where they lie", () => {
    const x = randomArray(4 * 32, 5)
    const weight = randomArray(16, 6)
    const half = Tensor.from(backend, x, [4, 32]).narrow(1, 16, 16)
    const rows = Float32Array.from(
      { length: 64 },
      (_, i) => x[Math.floor(i / 16) * 32 + 16 + (i % 16)] as number,
    )
    expectClose(
      rmsNorm(half, Tensor.from(backend, weight), 1e-5).toFloat32Array(),
      reference.rmsNorm(rows, weight, 1e-5),
      2e-6,
    )
  })

  test("wrong shapes are refused by name", () => {
    const x = Tensor.from(backend, randomArray(8, 1), [2, 4])
    expect(() => rmsNorm(x, Tensor.from(backend, randomArray(3, 1)), 1e-5)).toThrow(
      "weight has shape [3], expected [4]",
    )
    expect(() =>
      rmsNorm(
        x,
        Tensor.from(backend, randomArray(4, 1)),
        1e-5,
        0,
        Tensor.from(backend, randomArray(4, 1), [1, 4]),
      ),
    ).toThrow("out dimension 0 is 1, expected 2")
  })
})
