import { expect, test } from "bun:test"

import fc from "fast-check"

import { SamplingBatch, SamplingState } from "../../src/ops/sampling.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import type { SamplerName, SamplingParams } from "../../src/worker/protocol.ts"
import * as reference from "../reference/sampler-chain.ts"
import { OFF } from "../reference/sampling.ts"
import { describeBackends, randomArray } from "./harness.ts"

type Filter = Partial<SamplingParams>

/** Every sampler alone, in unusual orders, and together. */
const FILTERS: readonly Filter[] = [
  { typicalP: 0.2 },
  { typicalP: 0.9 },
  { typicalP: 0.999, temperature: 2 },
  { typicalP: 0 },
  { typicalP: 0.7, topK: 12 },
  { topNSigma: 0.5 },
  { topNSigma: 1, temperature: 3 },
  { topNSigma: 3, topP: 0.9 },
  { topNSigma: 1e3 },
  { xtcProbability: 1, xtcThreshold: 0.01 },
  { xtcProbability: 1, xtcThreshold: 0.2, temperature: 0.5 },
  { xtcProbability: 1, xtcThreshold: 0.02, topK: 20 },
  { xtcProbability: 0.5 },
  { xtcProbability: 1, xtcThreshold: 0.6 },
  { dynatempRange: 0.5 },
  { dynatempRange: 2, dynatempExponent: 0.3 },
  { dynatempRange: 1, temperature: 0, topK: 30 },
  { dynatempRange: 0.7, topK: 9, samplers: ["top_k", "temperature"] },
  { samplers: ["top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"], topK: 40, topP: 0.95 },
  { samplers: ["min_p", "temperature"], minP: 0.1, temperature: 3 },
  { samplers: ["top_p", "temperature"], topP: 0.8, temperature: 2 },
  { samplers: ["top_p", "top_k", "top_n_sigma"], topP: 0.97, topK: 15, topNSigma: 1.2 },
  { samplers: ["temperature"], temperature: 0, topK: 3 },
  { samplers: ["xtc", "temperature"], xtcProbability: 1, xtcThreshold: 0.01, temperature: 0 },
  { samplers: ["top_k"], topK: 5, temperature: 0 },
  { samplers: ["top_k", "penalties"], topK: 8, repetitionPenalty: 1.7, presencePenalty: 1 },
  { samplers: ["temperature", "penalties"], temperature: 2, presencePenalty: 2 },
  { samplers: ["top_k", "dry"], topK: 20, dryMultiplier: 2, dryAllowedLength: 1 },
  { samplers: ["temperature", "dry"], temperature: 2, dryMultiplier: 3, dryAllowedLength: 1 },
  { dryMultiplier: 4, dryAllowedLength: 1, dryPenaltyLastN: -1 },
  { dryMultiplier: 4, dryAllowedLength: 1, typicalP: 0.9 },
  { penaltyLastN: 5, repetitionPenalty: 2, typicalP: 0.95 },
  { penaltyLastN: 3, presencePenalty: 3 },
  { penaltyLastN: 0, presencePenalty: 3, typicalP: 0.95 },
  { mirostat: 1 },
  { mirostat: 1, mirostatTau: 2, temperature: 0.7 },
  { mirostat: 2 },
  { mirostat: 2, mirostatTau: 1, topK: 1, topP: 0.1 },
  { mirostat: 2, mirostatTau: 0.1, temperature: 0 },
  { mirostat: 2, presencePenalty: 2, dryMultiplier: 1 },
]
const UNIFORMS = [0, 0.3, 0.77, 0.95, 1 - 2 ** -24]

describeBackends({ name: "samplers in any order", needs: ["kt_sample"] }, (backend) => {
  const batch = new SamplingBatch(backend)

  function draw(
    state: SamplingState,
    logits: Float32Array,
    uniforms: readonly number[],
    xtc: number,
  ): Int32Array {
    backend.resetStep()
    const rows = new Float32Array(logits.length * uniforms.length)
    for (let row = 0; row < uniforms.length; row++) rows.set(logits, row * logits.length)
    const tensor = Tensor.from(backend, rows, [uniforms.length, logits.length])
    const draws = uniforms.map((uniform) => ({ uniform, xtc }))
    const ids = batch.sample(
      tensor,
      uniforms.map(() => state),
      draws,
    )
    // bias and penalties are taken back
    expect(Buffer.compare(new Uint8Array(rows.buffer), tensor.bytes())).toBe(0)
    return ids.toInt32Array()
  }

  function check(
    logits: Float32Array,
    filter: Filter,
    uniforms = UNIFORMS,
    prompt: readonly number[] = [],
    output: readonly number[] = [],
    xtc = 0.4,
  ): void {
    const params = { ...OFF, ...filter }
    using state = new SamplingState(backend, params, prompt)
    for (const token of output) state.push(token)
    const ids = draw(state, logits, uniforms, xtc)
    const input = { logits, params, prompt, output, xtc }
    for (const [row, uniform] of uniforms.entries()) {
      if (reference.mayDraw(input, uniform, ids[row] as number)) continue
      throw new Error(
        `token ${ids[row]} at ${uniform} with ${JSON.stringify(filter)} of ${logits.length} logits: ${JSON.stringify(reference.chain(input).slice(0, 5))}`,
      )
    }
  }

  for (const vocabulary of [1, 2, 31, 1000, 5000]) {
    test(`every sampler on ${vocabulary} random logits`, () => {
      const prompt = Array.from({ length: 40 }, (_, i) => (i * 7) % Math.min(vocabulary, 13))
      const output = Array.from({ length: 30 }, (_, i) => (i * i) % Math.min(vocabulary, 17))
      for (const spread of [0.3, 5])
        for (const filter of FILTERS)
          check(randomArray(vocabulary, vocabulary, spread), filter, UNIFORMS, prompt, output)
    }, 60_000)
  }

  test("ties, equal logits, infinities and NaN", () => {
    const cases = [
      new Float32Array(300),
      Float32Array.from({ length: 300 }, (_, i) => i % 2),
      Float32Array.from({ length: 300 }, (_, i) => (i % 3 === 0 ? -Infinity : (i % 7) / 3)),
      Float32Array.from({ length: 300 }, (_, i) => (i % 5 === 0 ? Number.NaN : -(i % 7))),
      Float32Array.from({ length: 300 }, (_, i) => (i === 201 ? 2 : -Infinity)),
    ]
    // typical takes equal scores in any order, so ties are left to the others
    const filters = FILTERS.filter(({ typicalP }) => typicalP === undefined)
    for (const logits of cases) for (const filter of filters) check(logits, filter)
    for (const filter of FILTERS) {
      using state = new SamplingState(backend, { ...OFF, ...filter }, [])
      expect([...draw(state, new Float32Array(9).fill(Number.NaN), [0.5], 0)]).toEqual([0])
      expect([...draw(state, new Float32Array(9).fill(-Infinity), [0.5], 0)]).toEqual([0])
      const infinite = Float32Array.from({ length: 50 }, (_, i) => (i === 7 ? Infinity : i))
      expect([...draw(state, infinite, [0.5], 0)]).toEqual([7])
    }
  })

  test("a grid of uniforms draws every token as often as it is probable", () => {
    const grid = Array.from({ length: 4096 }, (_, i) => (i + 0.5) / 4096)
    const [prompt, output] = [
      [1, 2, 3, 1, 2],
      [3, 3, 4, 1, 2],
    ]
    for (const filter of FILTERS.filter(({ mirostat }) => mirostat === undefined)) {
      const params = { ...OFF, ...filter }
      const logits = randomArray(31, 77, 2)
      using state = new SamplingState(backend, params, prompt)
      for (const token of output) state.push(token)
      const ids = draw(state, logits, grid, 0.4)
      const wanted = reference.chain({ logits, params, prompt, output, xtc: 0.4 })
      for (const { id, probability } of wanted) {
        const count = ids.filter((token) => token === id).length
        expect(Math.abs(count - 4096 * probability)).toBeLessThanOrEqual(1.5)
      }
      const known = new Set(wanted.map(({ id }) => id))
      expect([...ids].every((id) => known.has(id))).toBeTrue()
    }
  })

  test("mirostat learns from what it drew", () => {
    for (const filter of FILTERS.filter(({ mirostat }) => mirostat !== undefined)) {
      const params = { ...OFF, mirostatEta: 0.4, ...filter }
      using state = new SamplingState(backend, params, [])
      const output: number[] = []
      let mu = 2 * (params.mirostatTau ?? 5)
      for (let step = 0; step < 30; step++) {
        const logits = randomArray(500, step + 1, 3)
        const uniform = (step * 0.618) % 1
        const token = draw(state, logits, [uniform], 0)[0] as number
        const input = { logits, params, prompt: [], output, xtc: 0, mu }
        expect(reference.mayDraw(input, uniform, token)).toBeTrue()
        mu = reference.mirostatStep(input, token)
        expect(Number.isFinite(mu)).toBeTrue()
        output.push(token)
        state.push(token)
      }
    }
  })

  test("xtc acts as often as its probability says", () => {
    const logits = Float32Array.of(3, 2.9, 0, -1)
    using state = new SamplingState(
      backend,
      { ...OFF, topK: 2, xtcProbability: 0.3, xtcThreshold: 0.1 },
      [],
    )
    for (const [xtc, token] of [
      [0, 1],
      [0.29, 1],
      [0.31, 0],
      [0.99, 0],
    ] as const)
      expect(draw(state, logits, [0.1], xtc)[0]).toBe(token)
  })

  test("dry goes by the longest repetition, and not across breakers", () => {
    const cases: [Filter, number[]][] = [
      [{ dryAllowedLength: 2 }, [1, 2, 3, 9, 1, 2]],
      [{ dryAllowedLength: 2 }, [1, 2, 3, 1, 2, 4, 5, 1, 2, 3, 9, 1, 2]],
      [{ dryAllowedLength: 1, dryBreakers: [[9]] }, [9, 3, 4, 9, 3]],
      [{ dryAllowedLength: 2, dryBreakers: [[1]] }, [7, 1, 2, 3, 9, 7, 1, 2]],
      [{ dryAllowedLength: 2, dryBreakers: [[9, 1]] }, [9, 1, 2, 3, 4, 9, 1, 2]],
      [{ dryAllowedLength: 1, dryBreakers: [[3]] }, [1, 2, 3, 4, 1, 2]],
      [{ dryAllowedLength: 1, dryPenaltyLastN: 4 }, [1, 2, 3, 9, 1, 2]],
      [{ dryAllowedLength: 1, dryPenaltyLastN: -1 }, Array.from({ length: 300 }, () => 5)],
      [{ dryAllowedLength: 0 }, [1, 2, 3, 4]],
      [{ dryAllowedLength: 1, dryBase: 1 }, [1, 2, 1]],
    ]
    for (const [filter, history] of cases) {
      const logits = randomArray(12, 3, 1)
      for (const samplers of [undefined, ["top_k", "dry"] as const])
        check(
          logits,
          { dryMultiplier: 1.5, topK: 10, ...filter, ...(samplers ? { samplers } : {}) },
          UNIFORMS,
          history.slice(0, 3),
          history.slice(3),
        )
    }
  })

  test("any order and combination draws what the definition allows", () => {
    const names = fc.shuffledSubarray([...reference.DEFAULT_ORDER] as SamplerName[], {
      minLength: 1,
    })
    const logit = fc.oneof(
      // coarse, so that rounding makes no two of them alike
      { weight: 8, arbitrary: fc.integer({ min: -1280, max: 1280 }).map((x) => x / 64) },
      { weight: 1, arbitrary: fc.constantFrom(-Infinity, Number.NaN) },
    )
    const cases = fc.array(logit, { minLength: 1, maxLength: 60 }).chain((logits) => {
      const token = fc.nat(logits.length - 1)
      return fc.record({
        logits: fc.constant(logits),
        prompt: fc.array(token, { maxLength: 12 }),
        output: fc.array(token, { maxLength: 12 }),
        uniform: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        xtc: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        params: fc.record(
          {
            temperature: fc.constantFrom(0, 0.2, 1, 1.7),
            topK: fc.constantFrom(0, 1, 3, 20, 1000),
            topP: fc.constantFrom(1, 0.95, 0.5),
            minP: fc.constantFrom(0, 0.02, 0.3),
            typicalP: fc.constantFrom(1, 0.95, 0.4),
            topNSigma: fc.constantFrom(0, 0.8, 2),
            xtcProbability: fc.constantFrom(0, 0.5, 1),
            xtcThreshold: fc.constantFrom(1e-3, 0.05, 0.3, 0.7),
            dynatempRange: fc.constantFrom(0, 0.6),
            dynatempExponent: fc.constantFrom(1, 0.5),
            repetitionPenalty: fc.constantFrom(1, 1.37),
            presencePenalty: fc.constantFrom(0, 0.7),
            penaltyLastN: fc.constantFrom(-1, 0, 4),
            dryMultiplier: fc.constantFrom(0, 0.8),
            dryAllowedLength: fc.constantFrom(1, 2),
            dryBreakers: fc.array(fc.array(token, { minLength: 1, maxLength: 2 }), {
              maxLength: 2,
            }),
            mirostat: fc.constantFrom(0, 0, 0, 1, 2),
            mirostatTau: fc.constantFrom(1, 4),
            logitBias: fc.array(
              fc.tuple(token, fc.constantFrom(-Infinity, -3.0078125, 4.00390625)),
              {
                maxLength: 3,
              },
            ),
            samplers: names,
          },
          { requiredKeys: ["temperature", "topK", "topP", "minP"] },
        ),
      })
    })
    fc.assert(
      fc.property(cases, ({ logits: values, params, prompt, output, uniform, xtc }) => {
        const logits = Float32Array.from(values)
        using state = new SamplingState(backend, { ...OFF, ...params }, prompt)
        for (const token of output) state.push(token)
        const token = draw(state, logits, [uniform], xtc)[0] as number
        const input = { logits, params: { ...OFF, ...params }, prompt, output, xtc }
        const excluded = (params.logitBias ?? []).some(
          ([id, value]) => id === token && value === -Infinity,
        )
        if (reference.chain(input).length === 0) return
        // equal scores of typical are taken in any order: only that the token is not excluded holds then
        const bounds = reference.mayDraw(input, uniform, token)
        if (!bounds && new Set(logits).size === logits.length)
          throw new Error(`token ${token}: ${JSON.stringify(reference.chain(input))}`)
        expect(excluded || !((logits[token] as number) > -Infinity)).toBeFalse()
      }),
      { numRuns: 1500 },
    )
  }, 60_000)

  test("bad parameters are refused by row and field", () => {
    const logits = Tensor.from(backend, randomArray(4, 1), [1, 4])
    const refuse = (filter: Filter, message: string, xtc = 0): void => {
      using state = new SamplingState(backend, { ...OFF, ...filter }, [])
      expect(() => batch.sample(logits, [state], [{ uniform: 0.5, xtc }])).toThrow(message)
    }
    refuse({ typicalP: 1.5 }, "rows[0].typical_p is 1.5")
    refuse({ topNSigma: -1 }, "rows[0].top_n_sigma is -1")
    refuse({ xtcProbability: 2 }, "rows[0].xtc_probability is 2")
    refuse({ xtcThreshold: Number.NaN }, "rows[0].xtc_threshold is nan")
    refuse({}, "rows[0].xtc_uniform is 1", 1)
    refuse({ dynatempRange: -1 }, "rows[0].dynatemp_range is -1")
    refuse({ dynatempExponent: -1 }, "rows[0].dynatemp_exponent is -1")
    refuse({ mirostat: 3 }, "rows[0].mirostat is 3")
    refuse({ mirostat: 2, mirostatTau: Infinity }, "rows[0].mirostat_tau is inf")
  })

  test("a large vocabulary, sharp and flat, with every sampler alike on any number of threads", () => {
    const vocabulary = 151_936
    for (const spread of [0.01, 8]) {
      const logits = randomArray(vocabulary, 9, spread)
      for (const filter of FILTERS.filter((_, i) => i % 3 === 0)) {
        const params = { ...OFF, ...filter }
        const input = { logits, params, prompt: [1, 2, 1], output: [2, 1, 2], xtc: 0.4 }
        using state = new SamplingState(backend, params, input.prompt)
        for (const token of input.output) state.push(token)
        const token = draw(state, logits, [0.6], 0.4)[0] as number
        expect(reference.mayDraw(input, 0.6, token)).toBeTrue()
      }
    }
  }, 120_000)
})
