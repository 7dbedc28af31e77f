import { expect, test } from "bun:test"

import { Backend } from "../../src/native/backend.ts"
import { add } from "../../src/ops/elementwise.ts"
import { packWeight } from "../../src/ops/linear.ts"
import { fusedExperts } from "../../src/ops/moe.ts"
import {
  type DTypeInfo,
  F32,
  IQ1_S,
  IQ2_XXS,
  MXFP4,
  Q4_1,
  Q4_K,
  Q6_K,
  Q8_0,
} from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import type { ActivationName } from "../reference/elementwise.ts"
import * as reference from "../reference/experts.ts"
import { roundToInt8 } from "../reference/linear.ts"
import { describeBackends, expectClose, int8Tolerance, randomArray } from "./harness.ts"
import { dequantized, randomWeight } from "./weights.ts"

interface ExpertsCase {
  readonly name: string
  readonly types: readonly [gate: DTypeInfo, down: DTypeInfo, up?: DTypeInfo]
  readonly experts: number
  readonly hidden: number
  readonly inter: number
  readonly k: number
  readonly act?: ActivationName
  readonly biased?: boolean
  readonly scaleInput?: boolean
}

const CASES: readonly ExpertsCase[] = [
  { name: "Q8_0", types: [Q8_0, Q8_0], experts: 6, hidden: 64, inter: 32, k: 3 },
  {
    name: "IQ1_S with IQ2_XXS down",
    types: [IQ1_S, IQ2_XXS],
    experts: 4,
    hidden: 256,
    inter: 256,
    k: 2,
  },
  {
    name: "three quantised types",
    types: [Q4_K, Q8_0, IQ2_XXS],
    experts: 4,
    hidden: 256,
    inter: 32,
    k: 2,
  },
  { name: "MXFP4", types: [MXFP4, MXFP4], experts: 4, hidden: 96, inter: 64, k: 2 },
  { name: "Q4_K with Q6_K down", types: [Q4_K, Q6_K], experts: 5, hidden: 256, inter: 256, k: 2 },
  {
    name: "Q4_1 gate and up, F32 down",
    types: [Q4_1, F32],
    experts: 4,
    hidden: 96,
    inter: 40,
    k: 4,
  },
  {
    name: "gpt-oss: Q8_0 with biases and its clamped SwiGLU",
    types: [Q8_0, Q8_0],
    experts: 6,
    hidden: 64,
    inter: 96,
    k: 3,
    act: "swiglu_oai",
    biased: true,
  },
  {
    name: "F32 with biases, rows that fill no block",
    types: [F32, F32],
    experts: 3,
    hidden: 40,
    inter: 24,
    k: 2,
    act: "relu",
    biased: true,
  },
  {
    name: "Llama 4: the weight scales the input",
    types: [Q4_K, Q6_K],
    experts: 4,
    hidden: 256,
    inter: 256,
    k: 1,
    scaleInput: true,
  },
]

/** Results for several numbers of tokens, as a backend with so many threads computes them. */
function resultsOf(isa: string, threads: number): Float32Array[] {
  using backend = new Backend({ isa, threads })
  const [experts, hidden, inter, k] = [6, 256, 256, 2]
  const w = {
    gate: randomWeight(backend, Q4_K, [experts, inter, hidden], 1),
    up: randomWeight(backend, Q6_K, [experts, inter, hidden], 2),
    down: randomWeight(backend, Q8_0, [experts, hidden, inter], 3),
  }
  return [1, 2, 3, 33, 300].flatMap((tokens) => {
    // one expert has half of the pairs, one has none
    const ids = Int32Array.from({ length: tokens * k }, (_, i) =>
      i % k === 0 ? 0 : 1 + ((i * 7) % 4),
    )
    const operands = {
      x: Tensor.from(backend, randomArray(tokens * hidden, 5), [tokens, hidden]),
      ids: Tensor.from(backend, ids, [tokens, k]),
      weights: Tensor.from(backend, randomArray(tokens * k, 6), [tokens, k]),
      ...w,
      act: "silu",
    } as const
    const results = [false, true].map((scaleInput) =>
      fusedExperts({ ...operands, scaleInput }).toFloat32Array(),
    )
    const residual = Tensor.from(backend, randomArray(tokens * hidden, 7), [tokens, hidden])
    const sum = add(residual, Tensor.from(backend, results[0] as Float32Array, [tokens, hidden]))
    fusedExperts({ ...operands, add: true }, residual)
    expect(residual.toFloat32Array()).toEqual(sum.toFloat32Array())
    return results
  })
}

/** Two products follow each other, so tiles round twice. */
function experts8(backend: Backend, tokens: number): number {
  return 1.5 * int8Tolerance(backend, tokens, 2e-3 / 1.5)
}

describeBackends("fusedExperts", (backend) => {
  test.skipIf(!backend.isHost)(
    "the number of threads changes no bit, and results can be added",
    () => {
      const want = resultsOf(backend.isa, 1)
      expect(want.flatMap((row) => Array.from(row)).every(Number.isFinite)).toBe(true)
      for (const threads of [2, 5]) expect(resultsOf(backend.isa, threads)).toEqual(want)
    },
    30_000,
  )

  test("a gate of blocks beside an up of floats", () => {
    const [experts, hidden, inter, k, tokens] = [3, 64, 64, 2, 7]
    const gate = randomWeight(backend, Q8_0, [experts, inter, hidden], 1)
    const up = randomWeight(backend, F32, [experts, inter, hidden], 2)
    const down = randomWeight(backend, F32, [experts, hidden, inter], 3)
    const x = randomArray(tokens * hidden, 5)
    const ids = Int32Array.from({ length: tokens * k }, (_, i) => i % experts)
    const weights = randomArray(tokens * k, 6)
    const stacks = { gate: dequantized(gate), up: dequantized(up), down: dequantized(down) }
    const want = reference.fusedExperts(
      x,
      ids,
      weights,
      k,
      { ...stacks, hidden, inter },
      (row) => row,
    )
    const got = fusedExperts({
      x: Tensor.from(backend, x, [tokens, hidden]),
      ids: Tensor.from(backend, ids, [tokens, k]),
      weights: Tensor.from(backend, weights, [tokens, k]),
      gate,
      up,
      down,
      act: "silu",
    })
    // the gate alone sees x in int8
    expectClose(got.toFloat32Array(), want, 1e-2)
  })

  for (const { name, types, experts, hidden, inter, k, ...how } of CASES) {
    test(name, () => {
      const { act = "silu", biased = false, scaleInput = false } = how
      const biases = [
        randomArray(experts * inter, 4),
        randomArray(experts * inter, 5),
        randomArray(experts * hidden, 6),
      ] as const
      const gate = randomWeight(backend, types[0], [experts, inter, hidden], 1)
      const up = randomWeight(backend, types[2] ?? types[0], [experts, inter, hidden], 2)
      const down = randomWeight(backend, types[1], [experts, hidden, inter], 3)
      const stacks = {
        gate: dequantized(gate),
        up: dequantized(up),
        down: dequantized(down),
        hidden,
        inter,
        act,
        scaleInput,
        ...(biased ? { biases } : {}),
      }
      for (const precision of ["fast", "f32"] as const) {
        backend.precision = precision
        for (const tokens of [1, 2, 5, 9, 40]) {
          const x = randomArray(tokens * hidden, tokens)
          const ids = Int32Array.from(
            { length: tokens * k },
            (_, i) => (Math.floor(i / k) * 7 + (i % k)) % experts,
          )
          const weights = randomArray(tokens * k, 9).map(Math.abs)
          const routing = {
            ids: Tensor.from(backend, ids, [tokens, k]),
            weights: Tensor.from(backend, weights, [tokens, k]),
          }
          const fast = precision === "fast"
          // float weights take float activations in either precision
          const round = (row: Float32Array): ArrayLike<number> =>
            fast && types[row.length === hidden ? 0 : 1] !== F32 ? roundToInt8(row) : row
          const want = reference.fusedExperts(x, ids, weights, k, stacks, round)
          const variants = [{ gate, up, down }]
          if (fast)
            variants.push({
              gate: packWeight(gate) ?? gate,
              up: packWeight(up) ?? up,
              down: packWeight(down) ?? down,
            })
          for (const w of variants) {
            const bias = (which: 0 | 1 | 2): Tensor | null =>
              biased
                ? Tensor.from(backend, biases[which], [experts, which === 2 ? hidden : inter])
                : null
            const got = fusedExperts({
              x: Tensor.from(backend, x, [tokens, hidden]),
              ...routing,
              ...w,
              act,
              gateBias: bias(0),
              upBias: bias(1),
              downBias: bias(2),
              scaleInput,
            }).toFloat32Array()
            // the middle row is rounded to int8 after f32 sums: a last-bit difference may round the other way
            expectClose(got, want, fast ? experts8(backend, tokens) : 1e-5)
          }
          backend.resetStep()
        }
      }
      backend.precision = "fast"
    })
  }

  test("a token's experts may repeat", () => {
    const [experts, hidden, inter] = [3, 64, 32]
    backend.precision = "f32"
    const weight = (rows: number, columns: number, seed: number): Tensor =>
      randomWeight(backend, F32, [experts, rows, columns], seed)
    const stacks = {
      gate: weight(inter, hidden, 1),
      up: weight(inter, hidden, 2),
      down: weight(hidden, inter, 3),
      act: "silu",
    } as const
    const x = Tensor.from(backend, randomArray(2 * hidden, 4), [2, hidden])
    const sum = (ids: number[], weights: number[]): Float32Array =>
      fusedExperts({
        x,
        ids: Tensor.from(backend, Int32Array.from(ids), [2, ids.length / 2]),
        weights: Tensor.from(backend, Float32Array.from(weights), [2, ids.length / 2]),
        ...stacks,
      }).toFloat32Array()
    expectClose(
      sum([1, 1, 0, 2], [0.25, 0.5, 0.125, 0.5]),
      sum([1, 0, 0, 2], [0.75, 0, 0.125, 0.5]),
      1e-5,
    )
    expectClose(sum([2, 0, 0, 0], [0.5, 0.5, 1, -0.5]), sum([2, 0, 0, 1], [0.5, 0.5, 0.5, 0]), 1e-5)
    backend.resetStep()
    backend.precision = "fast"
  })

  test.skipIf(!backend.isHost)("an expert that does not exist is refused", () => {
    const w = randomWeight(backend, F32, [2, 8, 8], 1)
    const routing = {
      ids: Tensor.from(backend, Int32Array.of(2), [1, 1]),
      weights: Tensor.from(backend, Float32Array.of(1), [1, 1]),
    }
    const x = Tensor.from(backend, randomArray(8, 1), [1, 8])
    const operands = { x, ...routing, gate: w, up: w, down: w, act: "silu" } as const
    expect(() => fusedExperts(operands)).toThrow("expert 2 of 2")
    const upBias = Tensor.from(backend, randomArray(8, 2), [1, 8])
    expect(() => fusedExperts({ ...operands, upBias })).toThrow(
      "up_bias dimension 0 is 1, expected 2",
    )
  })
})
