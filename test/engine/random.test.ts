import { expect, test } from "bun:test"

import { uniform } from "../../src/engine/random.ts"

test("numbers are even in [0, 1), exact in f32, and unrelated between neighbouring seeds and counters", () => {
  const buckets = new Int32Array(64)
  let previous = 0
  let product = 0
  const runs = 64_000
  for (let i = 0; i < runs; i++) {
    const value = uniform(i % 8, Math.floor(i / 8))
    expect(value >= 0 && value < 1 && Math.fround(value) === value).toBe(true)
    const bucket = Math.floor(value * 64)
    buckets[bucket] = (buckets[bucket] as number) + 1
    product += (value - 0.5) * (previous - 0.5)
    previous = value
  }
  // chi-squared with 63 degrees of freedom: 120 is far beyond the 0.9999 quantile
  const chi2 = buckets.reduce((sum, n) => sum + (n - runs / 64) ** 2 / (runs / 64), 0)
  expect(chi2).toBeLessThan(120)
  expect(Math.abs(product / runs) * 12).toBeLessThan(0.02)
})

test("every bit of a seed counts, negative seeds too", () => {
  const seen = new Set<number>()
  for (let bit = 0; bit < 53; bit++) seen.add(uniform(2 ** bit, 5))
  for (const seed of [0, -1, -(2 ** 40), Number.MIN_SAFE_INTEGER]) seen.add(uniform(seed, 5))
  expect(seen.size).toBe(57)
})
