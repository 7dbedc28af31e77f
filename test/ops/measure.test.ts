import { expect, test } from "bun:test"

import { measure } from "../../src/ops/measure.ts"
import { describeBackends } from "./harness.ts"

describeBackends(
  "measure",
  (backend) => {
    test("rates are those of a computer", () => {
      const read = measure(backend, "read", { bytes: 64 * 1024 * 1024, seconds: 0.05 })
      expect(read).toBeGreaterThan(5e8)
      expect(read).toBeLessThan(2e13)
      const ops = measure(backend, "intDot", { seconds: 0.02 })
      const fma = measure(backend, "fma", { seconds: 0.02 })
      expect(ops).toBeGreaterThan(5e9)
      expect(fma).toBeGreaterThan(1e9)
      const four = measure(backend, "int4Dot", { seconds: 0.02 })
      const bf16 = measure(backend, "bf16Dot", { seconds: 0.02 })
      expect(four).toBeGreaterThan(ops * 0.05)
      expect(four).toBeLessThan(ops * 40)
      expect(bf16).toBeGreaterThan(fma * 0.05)
      expect(bf16).toBeLessThan(fma * 100)
      expect(ops).toBeLessThan(1e15)
    })

    test("what fits into a cache is read faster than memory", () => {
      const near = measure(backend, "read", { bytes: 2 * 128 * 1024, seconds: 0.03 })
      const far = measure(backend, "read", { bytes: 256 * 1024 * 1024, seconds: 0.05 })
      expect(near).toBeGreaterThan(far)
    })

    test("impossible requests are refused", () => {
      expect(() => measure(backend, "read", { bytes: 100 })).toThrow(
        "bytes is 100, expected at least 4096",
      )
      expect(() => measure(backend, "fma", { seconds: 0 })).toThrow("seconds is 0")
      expect(() => measure(backend, "fma", { seconds: NaN })).toThrow("seconds is nan")
    })
  },
  "cpu",
)
