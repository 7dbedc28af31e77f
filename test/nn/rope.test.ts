import { describe, expect, test } from "bun:test"

import { inverseFrequencies, type RopeConfig } from "../../src/nn/rope.ts"

const BASE: RopeConfig = {
  type: "default",
  theta: 10_000,
  rotary_dim: 64,
  interleaved: false,
  factor: 1,
  original_max_position_embeddings: 4096,
  attention_factor: 1,
  beta_fast: 32,
  beta_slow: 1,
  truncate: true,
  low_freq_factor: 1,
  high_freq_factor: 4,
  short_factor: undefined,
  long_factor: undefined,
  freq_factors: undefined,
}

function frequencies(options: Partial<RopeConfig>, length = 0): number[] {
  return [...inverseFrequencies({ ...BASE, ...options }, length)]
}

function ratios(options: Partial<RopeConfig>, length = 0): number[] {
  const plain = frequencies({})
  return frequencies(options, length).map((f, i) => f / (plain[i] as number))
}

function expectAll(values: readonly number[], wanted: number): void {
  for (const value of values) expect(value).toBeCloseTo(wanted, 5)
}

describe("frequencies of rotary embeddings", () => {
  test("the plain ones fall from 1 to theta^(-(dim - 2) / dim)", () => {
    const f = frequencies({})
    expect(f).toHaveLength(32)
    expect(f[0]).toBe(1)
    expect(f[16]).toBeCloseTo(0.01, 8)
    expect(f[31]).toBeCloseTo(10_000 ** (-62 / 64), 9)
  })

  test("linear divides all", () => expectAll(ratios({ type: "linear", factor: 4 }), 1 / 4))

  test("divisors of a GGUF apply one by one", () => {
    const freq_factors = Array.from({ length: 32 }, (_, i) => i + 1)
    ratios({ freq_factors }).forEach((ratio, i) => expect(ratio).toBeCloseTo(1 / (i + 1), 5))
  })

  test("dynamic NTK is plain up to the original length, then stretches the base", () => {
    expectAll(ratios({ type: "dynamic", factor: 2 }, 4096), 1)
    const doubled = ratios({ type: "dynamic", factor: 2 }, 8192)
    // base · (factor · length / original - (factor - 1))^(dim / (dim - 2)): the slowest pair by exactly 3
    expect(doubled[0]).toBeCloseTo(1, 6)
    expect(doubled[31]).toBeCloseTo(1 / 3, 5)
  })

  test("YaRN keeps fast pairs, divides slow ones and ramps between", () => {
    const ratio = ratios({ type: "yarn", factor: 8 })
    // pairs that turn 32 and 1 times in 4096 tokens: dim · ln(4096 / (2π · turns)) / (2 · ln theta)
    const at = (turns: number): number =>
      (64 * Math.log(4096 / (2 * Math.PI * turns))) / (2 * Math.log(10_000))
    const low = Math.floor(at(32))
    const high = Math.ceil(at(1))
    expectAll(ratio.slice(0, low + 1), 1)
    expectAll(ratio.slice(high), 1 / 8)
    for (let i = low; i < high; i++) {
      const share = (i - low) / (high - low)
      expect(ratio[i]).toBeCloseTo(share / 8 + (1 - share), 5)
    }
  })

  test("llama3 keeps short wavelengths, divides long ones", () => {
    const ratio = ratios({ type: "llama3", factor: 8, original_max_position_embeddings: 8192 })
    const wavelength = frequencies({}).map((f) => (2 * Math.PI) / f)
    ratio.forEach((value, i) => {
      const length = wavelength[i] as number
      if (length < 8192 / 4) expect(value).toBeCloseTo(1, 5)
      else if (length > 8192) expect(value).toBeCloseTo(1 / 8, 5)
      else {
        expect(value).toBeLessThan(1)
        expect(value).toBeGreaterThan(1 / 8)
      }
    })
    expect(ratio.at(-1)).toBeCloseTo(1 / 8, 5)
  })

  test("longrope takes the long list beyond the original length", () => {
    const short_factor = new Array<number>(32).fill(2)
    const long_factor = new Array<number>(32).fill(5)
    const options = { type: "longrope", short_factor, long_factor } as const
    expectAll(ratios(options, 4096), 1 / 2)
    expectAll(ratios(options, 4097), 1 / 5)
  })
})
