import { expect, test } from "bun:test"

import { gatedRmsNorm, sigmoidMul } from "../../src/ops/gates.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/delta-rule.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"

const WIDTHS = [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 128, 4100]

describeBackends({ name: "gates", needs: ["kt_gated_rms_norm", "kt_sigmoid_mul"] }, (backend) => {
  for (const n of WIDTHS) {
    test(`gatedRmsNorm and sigmoidMul of [3, ${n}]`, () => {
      const x = randomArray(3 * n, n, 2)
      const gate = randomArray(3 * n, n + 1, 4)
      const weight = randomArray(n, n + 2)
      const own = Tensor.from(backend, x, [3, n])
      const gates = Tensor.from(backend, gate, [3, n])
      const normed = gatedRmsNorm(own, gates, Tensor.from(backend, weight), 1e-6)
      expectClose(normed.toFloat32Array(), reference.gatedRmsNorm(x, gate, weight, 1e-6), 2e-6)
      expectClose(sigmoidMul(own, gates).toFloat32Array(), reference.sigmoidMul(x, gate, n), 1e-6)
      const one = gate.slice(0, 3)
      const shared = sigmoidMul(own, Tensor.from(backend, one, [3, 1]), own)
      expectClose(shared.toFloat32Array(), reference.sigmoidMul(x, one, n), 1e-6)
    })
  }

  test("gates may lie apart in every outer dimension, and many rows are shared", () => {
    // [tokens, heads, gate and others]: the gate is the second half of each head
    const [tokens, heads, n] = [70, 3, 20]
    const both = randomArray(tokens * heads * 2 * n, 1, 3)
    const x = randomArray(tokens * heads * n, 2)
    const weight = randomArray(n, 3)
    const gate = Tensor.from(backend, both, [tokens, heads, 2 * n]).narrow(2, n, n)
    const values = Float32Array.from(
      { length: x.length },
      (_, i) => both[Math.floor(i / n) * 2 * n + n + (i % n)] as number,
    )
    const own = Tensor.from(backend, x, [tokens, heads, n])
    const grouped = gate.unflatten(-1, [4, n / 4])
    const shaped = Tensor.from(backend, x, [tokens, heads, 4, n / 4])
    expectClose(
      sigmoidMul(shaped, grouped).toFloat32Array(),
      reference.sigmoidMul(x, values, n),
      1e-6,
    )
    const part = weight.slice(0, n / 4)
    expectClose(
      gatedRmsNorm(shaped, grouped, Tensor.from(backend, part), 1e-6).toFloat32Array(),
      reference.gatedRmsNorm(x, values, part, 1e-6),
      2e-6,
    )
    expectClose(sigmoidMul(own, gate).toFloat32Array(), reference.sigmoidMul(x, values, n), 1e-6)
    expectClose(
      gatedRmsNorm(own, gate, Tensor.from(backend, weight), 1e-6).toFloat32Array(),
      reference.gatedRmsNorm(x, values, weight, 1e-6),
      2e-6,
    )
  })

  test("gates far from zero saturate", () => {
    const x = Tensor.from(backend, Float32Array.of(2, 2, 2, 2), [1, 4])
    const gate = Tensor.from(backend, Float32Array.of(-200, 200, -Infinity, Infinity), [1, 4])
    const out = sigmoidMul(x, gate).toFloat32Array()
    expect(Math.abs(out[0] as number)).toBeLessThan(1e-30)
    expect(out[1]).toBe(2)
    expect(Math.abs(out[2] as number)).toBeLessThan(1e-30)
    expect(out[3]).toBe(2)
  })

  test("wrong shapes are refused by name", () => {
    const x = Tensor.from(backend, randomArray(8, 1), [2, 4])
    const gate = Tensor.from(backend, randomArray(6, 1), [2, 3])
    expect(() => sigmoidMul(x, gate)).toThrow("gate has shape [2, 3], expected [2, 4]")
    expect(() => gatedRmsNorm(x, gate, Tensor.from(backend, randomArray(4, 1)), 1e-6)).toThrow(
      "gate has shape [2, 3], expected [2, 4]",
    )
    expect(() => gatedRmsNorm(x, x, Tensor.from(backend, randomArray(3, 1)), 1e-6)).toThrow(
      "weight has shape [3], expected [4]",
    )
  })
})
