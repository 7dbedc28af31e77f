import { expect, test } from "bun:test"

import { act } from "../../src/ops/elementwise.ts"
import { layerNorm } from "../../src/ops/layer-norm.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { actMul } from "../reference/elementwise.ts"
import { layerNorm as reference } from "../reference/layer-norm.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"

const WIDTHS = [2, 3, 7, 8, 9, 15, 16, 17, 31, 48, 384, 4096]

describeBackends("layerNorm and act", (backend) => {
  for (const n of WIDTHS) {
    test(`[rows, ${n}] with and without bias`, () => {
      const weight = randomArray(n, n + 1)
      const bias = randomArray(n, n + 2)
      for (const rows of [1, 3, 20]) {
        const x = randomArray(rows * n, n)
        const tensor = Tensor.from(backend, x, [rows, n])
        const [w, b] = [Tensor.from(backend, weight), Tensor.from(backend, bias)]
        const biased = layerNorm(tensor, w, b, 1e-5)
        expectClose(biased.toFloat32Array(), reference(x, weight, bias, 1e-5), 2e-6)
        const plain = layerNorm(tensor, w, null, 1e-12, tensor)
        expectClose(plain.toFloat32Array(), reference(x, weight, undefined, 1e-12), 2e-6)
      }
    })
  }

  test("a mean far above the spread does not hide it", () => {
    const n = 256
    const x = randomArray(n, 1).map((v) => v + 1000)
    const weight = new Float32Array(n).fill(1)
    const out = layerNorm(Tensor.from(backend, x, [1, n]), Tensor.from(backend, weight), null, 1e-5)
    // the mean of 1000 is rounded to 6e-5, against a spread of 0.6
    expectClose(out.toFloat32Array(), reference(x, weight, undefined, 1e-5), 2e-4)
  })

  test("rows of a wider tensor are read where they lie", () => {
    const x = randomArray(4 * 32, 5)
    const weight = randomArray(16, 6)
    const bias = randomArray(16, 7)
    const half = Tensor.from(backend, x, [4, 32]).narrow(1, 16, 16)
    const rows = Float32Array.from(
      { length: 64 },
      (_, i) => x[Math.floor(i / 16) * 32 + 16 + (i % 16)] as number,
    )
    const out = layerNorm(half, Tensor.from(backend, weight), Tensor.from(backend, bias), 1e-5)
    expectClose(out.toFloat32Array(), reference(rows, weight, bias, 1e-5), 2e-6)
  })

  test("wrong shapes are refused by name", () => {
    const x = Tensor.from(backend, randomArray(8, 1), [2, 4])
    const [three, four] = [3, 4].map((n) => Tensor.from(backend, randomArray(n, 1)))
    expect(() => layerNorm(x, three as Tensor, null, 1e-5)).toThrow(
      "weight has shape [3], expected [4]",
    )
    expect(() => layerNorm(x, four as Tensor, three as Tensor, 1e-5)).toThrow(
      "bias has shape [3], expected [4]",
    )
  })

  for (const name of ["silu", "gelu_pytorch_tanh", "gelu", "relu", "tanh"] as const) {
    test(`${name} alone`, () => {
      for (const n of [1, 7, 8, 9, 17, 3072]) {
        const x = randomArray(5 * n, n, 4)
        const want =
          name === "tanh"
            ? Float64Array.from(x, Math.tanh)
            : actMul(x, new Float32Array(x.length).fill(1), name)
        const tensor = Tensor.from(backend, x, [5, n])
        expectClose(act(tensor, name).toFloat32Array(), want, 5e-7)
        expectClose(act(tensor, name, tensor).toFloat32Array(), want, 5e-7)
      }
    })
  }
})
