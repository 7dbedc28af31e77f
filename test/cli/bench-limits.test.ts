import { describe, expect, test } from "bun:test"

import {
  arithmeticOf,
  leastSeconds,
  type Limits,
  type ModelWork,
} from "../../src/cli/bench-limits.ts"
import { BF16, F16, Q4_K, Q8_0 } from "../../src/tensor/dtype.ts"

const limits: Limits = {
  threads: 2,
  isa: "avx2",
  readBytes: 100,
  rates: { intDot: 1000, int4Dot: 2000, bf16Dot: 500, fma: 500 },
}
const work: ModelWork = {
  bytes: 1000,
  expertBytes: 8000,
  expertShare: 0.125,
  perToken: { intDot: 300, int4Dot: 400 },
  perLogits: { intDot: 50 },
  attention: { step: 2, prompt: 2 },
  windows: [0, 4],
}
const step = { sequences: 1, tokens: 1, depth: 0, kvBytes: 0 }

describe("limits of a step", () => {
  test("one token reads the weights, and of experts those that it goes to", () => {
    expect(leastSeconds(work, limits, step)).toBeCloseTo((1000 + 1000) / 100, 6)
  })

  test("tokens of several sequences share experts, and weights are read once", () => {
    const touched = 1 - 0.875 ** 8
    expect(leastSeconds(work, limits, { ...step, sequences: 8 })).toBeCloseTo(
      (1000 + 8000 * touched) / 100,
      6,
    )
  })

  test("keys and values are read once a sequence, of windows no more than they hold", () => {
    const seen = (10 + 4) / 2
    const deep = { ...step, depth: 9, sequences: 2, kvBytes: 100 }
    const touched = 1 - 0.875 ** 2
    expect(leastSeconds(work, limits, deep)).toBeCloseTo(
      (1000 + 8000 * touched + 2 * 100 * seen) / 100,
      6,
    )
  })

  test("a prompt is bounded by the arithmetic of its weights' types, its attention by half of itself", () => {
    const seen = (500.5 + 4) / 2
    const seconds = 1000 * (300 / 1000 + 400 / 2000) + 50 / 1000 + (1000 * 2 * seen) / 500
    expect(leastSeconds(work, limits, { ...step, tokens: 1000 })).toBeCloseTo(seconds, 6)
  })

  test("types are multiplied as bytes, narrow ones with short sums, floats as floats", () => {
    expect(arithmeticOf(Q4_K, "fast")).toBe("int4Dot")
    expect(arithmeticOf(Q8_0, "fast")).toBe("intDot")
    expect(arithmeticOf(BF16, "fast")).toBe("bf16Dot")
    expect(arithmeticOf(F16, "fast")).toBe("fma")
    expect(arithmeticOf(Q4_K, "f32")).toBe("fma")
  })
})
