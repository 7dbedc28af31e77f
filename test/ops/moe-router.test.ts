import { expect, test } from "bun:test"

import { topkSoftmax } from "../../src/ops/moe.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/router.ts"
import { describeBackends, randomArray } from "./harness.ts"

describeBackends("topkSoftmax", (backend) => {
  function compare(logits: Float32Array, experts: number, k: number): void {
    for (const normalize of [false, true]) {
      const tokens = logits.length / experts
      const got = topkSoftmax(Tensor.from(backend, logits, [tokens, experts]), k, normalize)
      const want = reference.topkSoftmax(logits, experts, k, normalize)
      expect([...got.ids.toInt32Array()]).toEqual(want.ids)
      const weights = got.weights.toFloat32Array()
      for (let i = 0; i < weights.length; i++) {
        const expected = want.weights[i] as number
        if (!(Math.abs((weights[i] as number) - expected) <= 1e-6 * expected + 1e-37))
          throw new Error(`weight ${i} is ${weights[i]}, expected ${expected}`)
      }
    }
  }

  for (const experts of [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 60, 64, 65, 128, 257, 1024]) {
    test(`${experts} experts, every kind of k`, () => {
      for (const k of new Set([1, 2, 8, experts - 1, experts])) {
        if (k < 1 || k > experts) continue
        compare(randomArray(5 * experts, experts + k, 4), experts, k)
      }
    })
  }

  test("many tokens over the pool", () => compare(randomArray(333 * 64, 1, 3), 64, 8))

  test("ties go to the lower id, also among rounded probabilities", () => {
    compare(new Float32Array(128), 128, 8)
    compare(
      Float32Array.from({ length: 128 }, (_, i) => i % 3),
      128,
      50,
    )
    compare(Float32Array.of(100, -20, -10, -30, -90, -80, 0, -0), 8, 8)
  })

  test("infinite and NaN logits", () => {
    compare(Float32Array.of(1, -Infinity, 3, NaN, 2, -Infinity), 6, 6)
    compare(Float32Array.of(1, Infinity, 3, Infinity, 2, -Infinity), 6, 4)
    compare(new Float32Array(6).fill(-Infinity), 6, 3)
  })

  test("bad k is refused", () => {
    const logits = Tensor.from(backend, randomArray(8, 1), [2, 4])
    expect(() => topkSoftmax(logits, 5, true)).toThrow("k is 5, there are 4 experts")
    expect(() => topkSoftmax(logits, 0, true)).toThrow("k is 0")
    const many = Tensor.from(backend, randomArray(1025, 1), [1, 1025])
    expect(() => topkSoftmax(many, 2, true)).toThrow("1025 experts, at most 1024")
  })
})
