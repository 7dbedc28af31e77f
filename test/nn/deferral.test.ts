import { expect, test } from "bun:test"

import { Backend } from "../../src/native/backend.ts"
import { requireLibrary } from "../../src/native/library.ts"
import { Deferral } from "../../src/nn/deferral.ts"
import { Experts } from "../../src/nn/moe.ts"
import { fusedExperts } from "../../src/ops/index.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { expectClose, randomArray } from "../ops/harness.ts"

const [E, H, I, T, K] = [6, 64, 32, 2, 4]

test("what a layer puts off is in the next layer's sum, and nothing is lost", () => {
  using host = new Backend({ threads: 1, precision: "f32" })
  using device = new Backend({ threads: 1, precision: "f32", logical: 1 }, requireLibrary("cpu"))
  const layers = [0, 1, 2].map((n) => {
    const experts = new Experts({ numExperts: E, hiddenSize: H, intermediateSize: I, act: "silu" })
    const stack = (rows: number, columns: number, seed: number): Tensor =>
      Tensor.from(host, randomArray(E * rows * columns, seed), [E, rows, columns], {
        persistent: true,
      })
    experts.gate_proj = stack(I, H, 3 * n + 1)
    experts.up_proj = stack(I, H, 3 * n + 2)
    experts.down_proj = stack(H, I, 3 * n + 3)
    return experts
  })
  const deferral = new Deferral()
  for (const [n, experts] of layers.entries()) {
    experts.deferral = deferral
    experts.maxDeferred = n < 2 ? n + 1 : 0
  }
  const ids = Int32Array.of(0, 3, 5, 1, 2, 4, 1, 0)
  const shares = Float32Array.of(0.4, 0.3, 0.2, 0.1, 0.5, 0.25, 0.15, 0.1)
  const part = (n: number, from: number, to: number): Float32Array => {
    const pick = <A extends Int32Array | Float32Array>(all: A): number[] =>
      Array.from({ length: T }, (_, t) => [...all.subarray(t * K + from, t * K + to)]).flat()
    const { gate_proj: gate, up_proj: up, down_proj: down } = layers[n] as Experts
    return fusedExperts({
      x: Tensor.from(host, randomArray(T * H, 20 + n), [T, H]),
      ids: Tensor.from(host, Int32Array.from(pick(ids)), [T, to - from]),
      weights: Tensor.from(host, Float32Array.from(pick(shares)), [T, to - from]),
      gate,
      up,
      down,
      act: "silu",
    }).toFloat32Array()
  }
  const sums = layers.map((experts, n) => {
    const on = (values: Float32Array | Int32Array, shape: number[]): Tensor =>
      Tensor.from(device, values, shape)
    const x = on(randomArray(T * H, 20 + n), [T, H])
    const sum = experts.forward(x, on(ids, [T, K]), on(shares, [T, K]), undefined as never)
    return sum.toFloat32Array()
  })
  const plus = (a: Float32Array, b: Float32Array): Float32Array =>
    a.map((v, i) => v + (b[i] as number))
  expectClose(sums[0] as Float32Array, part(0, 0, 3), 1e-5)
  expectClose(sums[1] as Float32Array, plus(part(1, 0, 2), part(0, 3, 4)), 1e-5)
  expectClose(sums[2] as Float32Array, plus(part(2, 0, 4), part(1, 2, 4)), 1e-5)
  expect(sums.flatMap((sum) => [...sum]).every(Number.isFinite)).toBe(true)
})
