import { expect, test } from "bun:test"

import fc from "fast-check"

import { Backend } from "../../src/native/backend.ts"
import {
  argmax,
  type Draw,
  logprobs,
  maskLogits,
  SamplingBatch,
  SamplingState,
} from "../../src/ops/sampling.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import type { SamplingParams } from "../../src/worker/protocol.ts"
import * as reference from "../reference/sampling.ts"
import { describeBackends, randomArray } from "./harness.ts"

const VOCABULARIES = [1, 2, 31, 1000, 49152]
const { OFF } = reference

/** Every filter alone, and together. */
const FILTERS: readonly Partial<SamplingParams>[] = [
  {},
  { temperature: 0 },
  { temperature: 0.3 },
  { temperature: 2.5 },
  { temperature: 1e-6 },
  { topK: 1 },
  { topK: 5 },
  { topK: 700 },
  { topK: 5500, temperature: 2 },
  { topK: 5000, temperature: 4, topP: 0.97, minP: 1e-4 },
  { topP: 0.1 },
  { topP: 0.9 },
  { topP: 0.999 },
  { topP: 0 },
  { minP: 0.05 },
  { minP: 1 },
  { minP: 1e-5, temperature: 3 },
  { temperature: 1.3, topK: 40, topP: 0.8, minP: 0.1 },
  { temperature: 0.8, topP: 0.95, minP: 0.01 },
  { repetitionPenalty: 1.3 },
  { presencePenalty: 1.5 },
  { frequencyPenalty: -0.7 },
  { logitBias: [[0, 3]] },
  {
    temperature: 0,
    repetitionPenalty: 1.8,
    presencePenalty: 0.3,
    frequencyPenalty: 0.2,
    logitBias: [
      [0, -2],
      [0, 0.5],
    ],
  },
]
const UNIFORMS = [0, 0.2, 0.5, 0.77, 0.95, 0.9999, 1 - 2 ** -24]

describeBackends({ name: "sampling", needs: ["kt_sample", "kt_mask_logits"] }, (backend) => {
  const batch = new SamplingBatch(backend)

  /** Draws with the kernel at each uniform, checks every token against the definition, and that logits are unchanged. */
  function check(
    logits: Float32Array,
    params: SamplingParams,
    uniforms: readonly number[] = UNIFORMS,
    prompt: readonly number[] = [],
    output: readonly number[] = [],
  ): number[] {
    backend.resetStep()
    const rows = new Float32Array(logits.length * uniforms.length)
    for (let row = 0; row < uniforms.length; row++) rows.set(logits, row * logits.length)
    using state = new SamplingState(backend, params, prompt)
    for (const token of output) state.push(token)
    const tensor = Tensor.from(backend, rows, [uniforms.length, logits.length])
    const ids = [
      ...batch
        .sample(
          tensor,
          uniforms.map(() => state),
          uniforms.map((uniform) => ({ uniform, xtc: 0 })),
        )
        .toInt32Array(),
    ]
    expect(Buffer.compare(new Uint8Array(rows.buffer), tensor.bytes())).toBe(0)
    const changed = reference.penalised(logits, params, prompt, output)
    const order = reference.ranked(changed)
    uniforms.forEach((uniform, row) => {
      const id = ids[row] as number
      if (reference.mayDraw(changed, params, uniform, id, order)) return
      throw new Error(
        `token ${id} at ${uniform} with ${JSON.stringify(params)} of ${logits.length} logits`,
      )
    })
    return ids
  }

  for (const vocabulary of VOCABULARIES) {
    test(`every filter on ${vocabulary} random logits`, () => {
      const prompt = Array.from({ length: 50 }, (_, i) => (i * 7) % vocabulary)
      const output = Array.from({ length: 30 }, (_, i) => (i * i) % vocabulary)
      const logits = randomArray(vocabulary, vocabulary, 5)
      const uniforms = vocabulary > 1000 ? [0, 0.5, 0.95, 1 - 2 ** -24] : UNIFORMS
      for (const filter of FILTERS) check(logits, { ...OFF, ...filter }, uniforms, prompt, output)
    }, 30_000)
  }

  test("ties, equal logits, infinities and NaN", () => {
    const cases = [
      new Float32Array(1000),
      new Float32Array(1000).fill(-3.5),
      Float32Array.from({ length: 1000 }, (_, i) => i % 2),
      Float32Array.from({ length: 1000 }, (_, i) => (i % 3 === 0 ? -Infinity : i % 7)),
      Float32Array.from({ length: 1000 }, (_, i) => (i % 5 === 0 ? NaN : -(i % 7))),
      Float32Array.from({ length: 1000 }, (_, i) => (i === 701 || i === 44 ? Infinity : i)),
      Float32Array.from({ length: 1000 }, (_, i) => (i === 701 ? 2 : -Infinity)),
      new Float32Array(1000).fill(-Infinity),
      Float32Array.of(0, -0, 0, -0, -1),
    ]
    for (const logits of cases) for (const filter of FILTERS) check(logits, { ...OFF, ...filter })
    expect(check(new Float32Array(9).fill(NaN), OFF, [0.5])).toEqual([0])
    expect(check(new Float32Array(10), { ...OFF, topK: 4 }, [0, 0.26, 0.51, 0.99])).toEqual([
      0, 1, 2, 3,
    ])
    expect(check(Float32Array.of(1, 3, 3, NaN), { ...OFF, temperature: 0 }, [0.9])).toEqual([1])
  })

  test("many candidates: flat, tied, infinite and NaN logits of a large vocabulary", () => {
    const random = randomArray(6000, 8)
    const cases = [
      new Float32Array(6000).fill(2),
      random.map((x) => x * 1e-3),
      random.map((x) => Math.round(x * 2)),
      random.map((x, i) => (i % 3 === 0 ? NaN : i % 3 === 1 ? -Infinity : x)),
      random.map((x, i) => (i % 4 === 0 ? Infinity : x)),
      random.map((x, i) => (i === 2345 ? 60 : x)),
      random.map((x) => x * 1e30),
      random.map((x) => x * 1e-42),
    ]
    const filters = FILTERS.filter(({ temperature }) => temperature !== 0)
    for (const logits of cases)
      for (const filter of filters)
        check(logits, { ...OFF, ...filter }, [0, 0.3, 0.9, 1 - 2 ** -24])
  }, 60_000)

  test("a grid of uniforms draws every token as often as it is probable", () => {
    const grid = Array.from({ length: 4096 }, (_, i) => (i + 0.5) / 4096)
    for (const filter of FILTERS) {
      const params = { ...OFF, ...filter }
      const logits = randomArray(31, 77, 2)
      const ids = check(logits, params, grid, [1, 2, 3], [3, 3, 4])
      const changed = reference.penalised(logits, params, [1, 2, 3], [3, 3, 4])
      for (const { id, probability } of reference.survivors(changed, params)) {
        const count = ids.filter((token) => token === id).length
        expect(Math.abs(count - 4096 * probability)).toBeLessThanOrEqual(1.5)
      }
    }
  })

  test("random uniforms pass a chi-square test", () => {
    const draws = 20_000
    const uniforms = Array.from(randomArray(draws * 4, 5), (x) => x - Math.floor(x)).slice(0, draws)
    const params = { ...OFF, temperature: 0.9, topK: 20, topP: 0.97 }
    const logits = randomArray(200, 3, 1.5)
    const ids = check(logits, params, uniforms)
    const expected = reference.survivors(logits, params)
    let chi = 0
    for (const { id, probability } of expected) {
      const want = draws * probability
      chi += (ids.filter((token) => token === id).length - want) ** 2 / want
    }
    // mean df, deviation sqrt(2 df): six deviations
    const df = expected.length - 1
    expect(chi).toBeLessThan(df + 6 * Math.sqrt(2 * df))
    expect(expected.length).toBeGreaterThan(5)
  }, 60_000)

  test("any logits and parameters draw what the definition allows", () => {
    const logit = fc.oneof(
      { weight: 8, arbitrary: fc.float({ min: -30, max: 30, noNaN: true }) },
      { weight: 2, arbitrary: fc.constantFrom(0, -0, 1, 5, -5) },
      { weight: 1, arbitrary: fc.constantFrom(-Infinity, NaN, 3e38, -3e38) },
    )
    const cases = fc.array(logit, { minLength: 1, maxLength: 80 }).chain((logits) => {
      const token = fc.nat(logits.length - 1)
      return fc.record({
        logits: fc.constant(logits),
        prompt: fc.array(token, { maxLength: 10 }),
        output: fc.array(token, { maxLength: 10 }),
        uniforms: fc.array(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), {
          minLength: 1,
          maxLength: 4,
        }),
        params: fc.record({
          temperature: fc.constantFrom(0, 0.2, 0.7, 1, 1.7),
          topK: fc.constantFrom(0, 0, 1, 3, 20, 1000),
          topP: fc.constantFrom(1, 1, 0.95, 0.5, 0.01),
          minP: fc.constantFrom(0, 0, 0.02, 0.3),
          repetitionPenalty: fc.constantFrom(1, 1.1, 0.8),
          presencePenalty: fc.constantFrom(0, 0.4, -1),
          frequencyPenalty: fc.constantFrom(0, 0.3, -0.2),
          logitBias: fc.array(fc.tuple(token, fc.constantFrom(-100, -1, 0.5, 100)), {
            maxLength: 4,
          }),
        }),
      })
    })
    fc.assert(
      fc.property(cases, ({ logits, params, uniforms, prompt, output }) => {
        check(Float32Array.from(logits), params, uniforms, prompt, output)
      }),
      { numRuns: 400 },
    )
  }, 60_000)

  test.skipIf(!backend.isHost)(
    "a row is drawn alike alone, in a batch of unlike rows, and on any number of threads",
    () => {
      const vocabulary = 20_000
      const logits = randomArray(vocabulary * 8, 4, 4)
      const states = FILTERS.slice(0, 8).map(
        (filter, i) =>
          new SamplingState(backend, { ...OFF, presencePenalty: i % 2, ...filter }, [1, 2, 3]),
      )
      const draws = Array.from({ length: 8 }, (_, i) => ({ uniform: (i * 0.37) % 1, xtc: 0 }))
      const tensor = Tensor.from(backend, logits, [8, vocabulary])
      const together = [...batch.sample(tensor, states, draws).toInt32Array()]
      const alone = states.map((state, i) => {
        const row = Tensor.from(backend, logits.slice(i * vocabulary, (i + 1) * vocabulary), [
          1,
          vocabulary,
        ])
        return batch.sample(row, [state], [draws[i] as Draw]).toInt32Array()[0] as number
      })
      expect(together).toEqual(alone)
      using single = new Backend({ isa: backend.isa, threads: 1 })
      using singleBatch = new SamplingBatch(single)
      const onOne = singleBatch.sample(Tensor.from(single, logits, [8, vocabulary]), states, draws)
      expect([...onOne.toInt32Array()]).toEqual(together)
      for (const state of states) state[Symbol.dispose]()
    },
  )

  test("a long history grows, is counted, and only the output is penalised by frequency", () => {
    const params = { ...OFF, temperature: 0, frequencyPenalty: 0.001 }
    const output = Array.from({ length: 3000 }, (_, i) => (i < 2000 ? 7 : 3))
    const logits = Float32Array.from({ length: 16 }, (_, i) => (i === 7 ? 2 : i === 3 ? 0.5 : -1))
    expect(check(logits, params, [0.5], [7, 7, 7], [])).toEqual([7])
    expect(check(logits, params, [0.5], [], output.slice(0, 1499))).toEqual([7])
    expect(check(logits, params, [0.5], [], output.slice(0, 1501))).toEqual([3])
  })

  test("bad parameters are refused by row and field", () => {
    const logits = Tensor.from(backend, randomArray(8, 1), [2, 4])
    const refuse = (
      params: Partial<SamplingParams>,
      prompt: number[],
      uniform: number,
      message: string,
    ): void => {
      using good = new SamplingState(backend, OFF, [])
      using bad = new SamplingState(backend, { ...OFF, ...params }, prompt)
      expect(() =>
        batch.sample(
          logits,
          [good, bad],
          [
            { uniform: 0.5, xtc: 0 },
            { uniform, xtc: 0 },
          ],
        ),
      ).toThrow(message)
    }
    refuse({ temperature: -1 }, [], 0.5, "rows[1].temperature is -1")
    refuse({ temperature: NaN }, [], 0.5, "rows[1].temperature is nan")
    refuse({ topP: 1.5 }, [], 0.5, "rows[1].top_p is 1.5")
    refuse({ minP: -0.1 }, [], 0.5, "rows[1].min_p is -0.1")
    refuse({ topK: -2 }, [], 0.5, "rows[1].top_k is -2")
    refuse({ repetitionPenalty: 0 }, [], 0.5, "rows[1].repetition_penalty is 0")
    refuse({}, [], 1, "rows[1].uniform is 1")
    refuse(
      { presencePenalty: 1 },
      [0, 4],
      0.5,
      "rows[1].history[1] is 4, the vocabulary has ids 0 to 3",
    )
    refuse({ logitBias: [[-1, 2]] }, [], 0.5, "rows[1].bias_ids[0] is -1")
    expect(() => batch.sample(logits, [], [])).toThrow("0 states and 0 draws for 2 rows")
  })
})

describeBackends(
  { name: "argmax and logprobs", needs: ["kt_argmax", "kt_logprobs"] },
  (backend) => {
    for (const vocabulary of [
      1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 4095, 4096, 4097, 49152, 151_936,
    ]) {
      test(`argmax of [3, ${vocabulary}]`, () => {
        backend.resetStep()
        const logits = randomArray(3 * vocabulary, vocabulary)
        const want = [0, 1, 2].map((row) => {
          const part = logits.subarray(row * vocabulary, (row + 1) * vocabulary)
          return reference.ranked(part)[0]
        })
        const got = argmax(Tensor.from(backend, logits, [3, vocabulary]))
        expect([...got.toInt32Array()] as unknown[]).toEqual(want)
      })
    }

    for (const vocabulary of [1, 31, 32, 33, 257, 49152])
      test(`maskLogits of [2, ${vocabulary}]`, () => {
        backend.resetStep()
        const words = Math.ceil(vocabulary / 32)
        const logits = randomArray(2 * vocabulary, vocabulary)
        const draw = randomArray(2 * words, 7)
        // whole words of either kind too
        const bits = Int32Array.from(draw, (x) => (x > 0.8 ? -1 : x < -0.8 ? 0 : x * 2 ** 31))
        const tensor = Tensor.from(backend, logits, [2, vocabulary])
        maskLogits(tensor, Tensor.from(backend, bits, [2, words]))
        const want = logits.map((value, i) => {
          const [row, token] = [Math.floor(i / vocabulary), i % vocabulary]
          const word = bits[row * words + (token >> 5)] as number
          return (word >>> (token & 31)) & 1 ? value : -Infinity
        })
        expect(tensor.toFloat32Array()).toEqual(want)
        const wrong = Tensor.from(backend, new Int32Array(2 * (words + 1)), [2, words + 1])
        expect(() => maskLogits(tensor, wrong)).toThrow("bits dimension 1")
      })

    test("argmax takes the lowest of equals and never NaN", () => {
      const rows: [number[], number][] = [
        [[1, 5, 5, 2], 1],
        [[NaN, -1, NaN, -2], 1],
        [[NaN, NaN, NaN, NaN], 0],
        [[NaN, -Infinity, -Infinity, NaN], 1],
        [[-0, 0, 0, -0], 0],
        [[1, Infinity, NaN, Infinity], 1],
      ]
      const got = argmax(
        Tensor.from(backend, Float32Array.from(rows.flatMap(([row]) => row)), [6, 4]),
      )
      expect([...got.toInt32Array()]).toEqual(rows.map(([, want]) => want))
      const wide = new Float32Array(100_000).fill(NaN)
      wide[70_001] = -5
      wide[99_999] = -5
      expect(argmax(Tensor.from(backend, wide, [1, 100_000])).toInt32Array()[0]).toBe(70_001)
      expect(
        argmax(Tensor.from(backend, new Float32Array(100_000), [1, 100_000])).toInt32Array()[0],
      ).toBe(0)
    })

    for (const vocabulary of [1, 2, 31, 1000, 49152]) {
      test(`logprobs of [2, ${vocabulary}]`, () => {
        backend.resetStep()
        const logits = randomArray(2 * vocabulary, vocabulary, 6)
        const tokens = Int32Array.of(0, vocabulary - 1)
        for (const n of [0, 1, 5, 20, vocabulary]) {
          if (n > vocabulary) continue
          const tensor = Tensor.from(backend, logits, [2, vocabulary])
          const got = logprobs(tensor, Tensor.from(backend, tokens), n)
          for (let row = 0; row < 2; row++) {
            const part = logits.slice(row * vocabulary, (row + 1) * vocabulary)
            const want = reference.logprobs(part)
            const order = reference.ranked(part).slice(0, n)
            const of = got.token.toFloat32Array()[row] as number
            expect(Math.abs(of - (want[tokens[row] as number] as number))).toBeLessThan(
              5e-7 * Math.max(1, Math.abs(of)),
            )
            if (n === 0) {
              expect(got.topIds).toBeNull()
              continue
            }
            expect(got.topIds?.toInt32Array().slice(row * n, (row + 1) * n)).toEqual(
              Int32Array.from(order),
            )
            const values = got.topLogprobs?.toFloat32Array().slice(row * n, (row + 1) * n)
            order.forEach((id, i) => {
              const [value, expected] = [values?.[i] as number, want[id] as number]
              expect(Math.abs(value - expected)).toBeLessThan(5e-7 * Math.max(1, -expected))
            })
          }
        }
      }, 30_000)
    }

    test("logprobs of masked, tied and NaN logits", () => {
      const row = Float32Array.of(-Infinity, 2, NaN, 2, -200, NaN)
      const got = logprobs(
        Tensor.from(backend, row, [1, 6]),
        Tensor.from(backend, Int32Array.of(2)),
        6,
      )
      expect([...(got.topIds as Tensor).toInt32Array()]).toEqual([1, 3, 4, 0, 2, 5])
      expect(got.token.toFloat32Array()[0]).toBe(-Infinity)
      const values = (got.topLogprobs as Tensor).toFloat32Array()
      expect(values[0]).toBeCloseTo(-Math.LN2, 6)
      expect(values[2]).toBeCloseTo(-202 - Math.LN2, 4)
      expect([...values.slice(3)]).toEqual([-Infinity, -Infinity, -Infinity])
    })

    test.skipIf(!backend.isHost)("bad tokens and sizes are refused", () => {
      const logits = Tensor.from(backend, randomArray(8, 1), [2, 4])
      expect(() => logprobs(logits, Tensor.from(backend, Int32Array.of(0, 4)), 1)).toThrow(
        "tokens[1] is 4, the vocabulary has ids 0 to 3",
      )
      expect(() => logprobs(logits, Tensor.from(backend, Int32Array.of(0, 1)), 5)).toThrow("n is 5")
    })
  },
)
