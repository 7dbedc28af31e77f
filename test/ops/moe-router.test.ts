import { expect, test } from "bun:test"

import { linear } from "../../src/ops/linear.ts"
import { normRouter, routeExperts } from "../../src/ops/moe.ts"
import { rmsNorm } from "../../src/ops/rms-norm.ts"
import { BF16, F32, Q8_0 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/router.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"
import { randomWeight } from "./weights.ts"

const PLAIN: reference.RouterCase = {
  topK: 2,
  score: "softmax",
  normalize: false,
  bias: null,
  groups: 1,
  topkGroups: 1,
  groupScore: "max",
  scale: 1,
}
const SCORES = ["softmax", "sigmoid", "chosen-softmax"] as const

describeBackends("routeExperts", (backend) => {
  function compare(
    logits: Float32Array,
    experts: number,
    given: Partial<reference.RouterCase>,
  ): void {
    const options = { ...PLAIN, ...given }
    const { bias } = options
    const got = routeExperts(Tensor.from(backend, logits, [logits.length / experts, experts]), {
      ...options,
      bias: bias === null ? null : Tensor.from(backend, Float32Array.from(bias), [experts]),
    })
    const want = reference.routeExperts(logits, experts, options)
    expect([...got.ids.toInt32Array()]).toEqual(want.ids)
    const weights = got.weights.toFloat32Array()
    for (let i = 0; i < weights.length; i++) {
      const expected = want.weights[i] as number
      if (!(Math.abs((weights[i] as number) - expected) <= 1e-6 * Math.abs(expected) + 1e-37))
        throw new Error(`weight ${i} is ${weights[i]}, expected ${expected}`)
    }
  }

  for (const experts of [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 60, 64, 65, 128, 257, 384, 1024]) {
    test(`${experts} experts, every kind of k and score`, () => {
      for (const topK of new Set([1, 2, 8, experts - 1, experts])) {
        if (topK < 1 || topK > experts) continue
        const logits = randomArray(5 * experts, experts + topK, 4)
        for (const score of SCORES) {
          compare(logits, experts, { topK, score, normalize: false })
          compare(logits, experts, { topK, score, normalize: true, scale: 2.5 })
        }
      }
    })
  }

  test("a bias chooses and does not weigh", () => {
    for (const experts of [6, 16, 48, 384]) {
      const bias = [...randomArray(experts, 7, 1)]
      for (const score of SCORES)
        compare(randomArray(9 * experts, experts, 2), experts, {
          topK: 5,
          score,
          bias,
          normalize: true,
          scale: 1.5,
        })
    }
  })

  test("experts of the best groups only", () => {
    for (const [experts, groups, topkGroups, topK] of [
      [8, 4, 2, 3],
      [12, 4, 2, 4],
      [8, 8, 3, 3],
      [160, 8, 3, 6],
      [256, 8, 4, 8],
      [16, 1, 1, 4],
    ] as const) {
      const logits = randomArray(17 * experts, experts, 2)
      const bias = [...randomArray(experts, 3, 0.5)]
      for (const groupScore of ["max", "top2-sum"] as const)
        for (const score of ["softmax", "sigmoid"] as const)
          for (const chosen of [null, bias])
            compare(logits, experts, { topK, score, groups, topkGroups, groupScore, bias: chosen })
    }
  })

  test("a negative bias keeps experts of unchosen groups out", () => {
    const bias = [-3, -3, -3, -3, -9, -9, -9, -9]
    const logits = randomArray(8, 5, 1)
    compare(logits, 8, { topK: 4, score: "sigmoid", bias, groups: 2, groupScore: "top2-sum" })
  })

  test("many tokens over the pool", () => {
    compare(randomArray(333 * 64, 1, 3), 64, { topK: 8, normalize: true })
    compare(randomArray(333 * 64, 2, 3), 64, {
      topK: 8,
      score: "sigmoid",
      groups: 8,
      topkGroups: 4,
    })
  })

  test("ties go to the lower id, also among rounded scores", () => {
    compare(new Float32Array(128), 128, { topK: 8 })
    const cyclic = Float32Array.from({ length: 128 }, (_, i) => i % 3)
    compare(cyclic, 128, { topK: 50 })
    compare(cyclic, 128, { topK: 50, score: "sigmoid", groups: 4, topkGroups: 2 })
    for (const score of ["softmax", "sigmoid"] as const)
      compare(Float32Array.of(60, -20, -10, -30, -70, -60, 50, -0), 8, { topK: 8, score })
  })

  test("infinite and NaN logits", () => {
    compare(Float32Array.of(1, -Infinity, 3, NaN, 2, -Infinity), 6, { topK: 6 })
    compare(Float32Array.of(1, -Infinity, 3, NaN, 2, 7), 6, { topK: 4, score: "sigmoid" })
    compare(Float32Array.of(1, Infinity, 3, Infinity, 2, -Infinity), 6, { topK: 4 })
    compare(new Float32Array(6).fill(-Infinity), 6, { topK: 3 })
  })

  test("what cannot be chosen is refused", () => {
    const logits = Tensor.from(backend, randomArray(8, 1), [2, 4])
    const refuse = (given: Partial<reference.RouterCase>, message: string): void =>
      void expect(() => routeExperts(logits, { ...PLAIN, ...given, bias: null })).toThrow(message)
    refuse({ topK: 5 }, "topK is 5, there are 4 experts")
    refuse({ topK: 0 }, "topK is 0")
    refuse({ topK: 3, groups: 2, topkGroups: 1 }, "topK is 3, there are 2 experts")
    refuse({ groups: 3 }, "4 experts in 3 groups")
    refuse({ groups: 2, topkGroups: 3 }, "topkGroups is 3, there are 2 groups")
    const bias = Tensor.from(backend, randomArray(3, 1), [3])
    expect(() => routeExperts(logits, { ...PLAIN, bias })).toThrow("bias has shape [3]")
    const many = Tensor.from(backend, randomArray(1025, 1), [1, 1025])
    expect(() => routeExperts(many, { ...PLAIN, bias: null })).toThrow("1025 experts, at most 1024")
  })
})

describeBackends("normRouter", (backend) => {
  for (const [dtype, experts, biased] of [
    [F32, 128, false],
    [BF16, 6, true],
    [Q8_0, 60, true],
  ] as const) {
    test(`${dtype.name}, ${experts} experts: norm, product and choice one after the other`, () => {
      const hidden = 96
      const router = randomWeight(backend, dtype, [experts, hidden], 1)
      const normWeight = Tensor.from(backend, randomArray(hidden, 2), [hidden])
      const bias = biased ? Tensor.from(backend, randomArray(experts, 3), [experts]) : null
      const options = { topK: 4, score: "sigmoid", normalize: true, bias } as const
      for (const precision of ["fast", "f32"] as const) {
        backend.precision = precision
        for (const tokens of [1, 2, 3, 40]) {
          const x = Tensor.from(backend, randomArray(tokens * hidden, tokens), [tokens, hidden])
          const operands = { x, normWeight, eps: 1e-6, normOffset: 1, router, logitBias: bias }
          const got = normRouter(operands, options)
          const normed = rmsNorm(x, normWeight, 1e-6, 1)
          const want = routeExperts(linear(normed, router, bias), options)
          expect(got.normed.toFloat32Array()).toEqual(normed.toFloat32Array())
          expect(got.ids.toInt32Array()).toEqual(want.ids.toInt32Array())
          expectClose(got.weights.toFloat32Array(), want.weights.toFloat32Array(), 1e-6)
        }
        backend.precision = "fast"
      }
    })
  }

  test("operands that do not fit are refused", () => {
    const x = Tensor.from(backend, randomArray(16, 1), [2, 8])
    const router = randomWeight(backend, F32, [4, 8], 1)
    const normWeight = Tensor.from(backend, randomArray(8, 2), [8])
    const operands = { x, normWeight, eps: 1e-6, normOffset: 0, router }
    const options = { topK: 2, score: "softmax", normalize: true } as const
    expect(() => normRouter(operands, { ...options, topK: 5 })).toThrow("topK is 5, there are 4")
    expect(() => normRouter({ ...operands, logitBias: normWeight }, options)).toThrow("logitBias")
    expect(() => normRouter({ ...operands, normWeight: router }, options)).toThrow("normWeight")
  })
})
