import { expect, test } from "bun:test"

import type { Backend } from "../../src/native/backend.ts"
import { causalConv1d, gatedDeltaRule, type StateSegments } from "../../src/ops/delta-rule.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/delta-rule.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"

/** [tokens, source slot, target slot] of each segment. */
type Plan = readonly (readonly [tokens: number, source: number, target: number])[]

function segmentsOf(backend: Backend, plan: Plan): StateSegments {
  const start = [0]
  for (const [tokens] of plan) start.push((start.at(-1) as number) + tokens)
  const ints = (values: readonly number[]): Tensor =>
    Tensor.from(backend, Int32Array.from(values), [values.length])
  return {
    start: ints(start),
    source: ints(plan.map(([, source]) => source)),
    target: ints(plan.map(([, , target]) => target)),
  }
}

/** Slots that hold garbage until something is written to them. */
function dirty(backend: Backend, shape: readonly number[]): Tensor {
  const length = shape.reduce((a, b) => a * b, 1)
  return Tensor.from(backend, randomArray(length, 99, 50), shape)
}

function rows(values: ArrayLike<number>, width: number, from: number, to: number): number[] {
  return Array.from(values).slice(from * width, to * width)
}

describeBackends({ name: "causalConv1d", needs: ["kt_causal_conv1d"] }, (backend) => {
  for (const n of [1, 3, 4, 5, 8, 15, 16, 17, 300]) {
    for (const kernel of [2, 4, 5]) {
      test(`${n} channels, kernel ${kernel}: at once, in pieces, in a batch`, () => {
        const x = randomArray(11 * n, n + kernel)
        const weight = randomArray(kernel * n, n)
        const want = reference.causalConv1d(x, weight, n)
        const taps = Tensor.from(backend, weight, [kernel, n])
        const state = dirty(backend, [4, kernel - 1, n])
        const run = (from: number, to: number, plan: Plan): Float32Array => {
          const part = Tensor.from(backend, x.slice(from * n, to * n), [to - from, 1, n])
          return causalConv1d(part, taps, segmentsOf(backend, plan), state).toFloat32Array()
        }
        const whole = run(0, 11, [[11, -1, 0]])
        expectClose(whole, want, 2e-6)
        // a state begun, kept, read from another slot, then cut in two within a step
        expect(run(0, 2, [[2, -1, 1]])).toEqual(whole.slice(0, 2 * n))
        expect(run(2, 3, [[1, 1, 1]])).toEqual(whole.slice(2 * n, 3 * n))
        expect(run(3, 6, [[3, 1, 2]])).toEqual(whole.slice(3 * n, 6 * n))
        const cut = run(6, 11, [
          [4, 2, 3],
          [1, 3, 2],
        ])
        expect(cut).toEqual(whole.slice(6 * n))
        expect([...state.select(2).toFloat32Array()]).toEqual([...state.select(0).toFloat32Array()])
      })
    }
  }

  test("grouped and strided channels; sequences beside each other", () => {
    const [groups, n, kernel] = [2, 20, 4]
    const wide = randomArray(9 * groups * 30, 5)
    const weight = randomArray(kernel * groups * n, 6)
    const x = Tensor.from(backend, wide, [9, groups, 30]).narrow(2, 0, n)
    const state = dirty(backend, [2, kernel - 1, groups * n])
    const plan: Plan = [
      [5, -1, 1],
      [4, -1, 0],
    ]
    const taps = Tensor.from(backend, weight, [kernel, groups * n])
    const got = causalConv1d(x, taps, segmentsOf(backend, plan), state).toFloat32Array()
    const dense = Float32Array.from(
      { length: 9 * groups * n },
      (_, i) => wide[Math.floor(i / n) * 30 + (i % n)] as number,
    )
    const width = groups * n
    const first = reference.causalConv1d(dense.slice(0, 5 * width), weight, width)
    const second = reference.causalConv1d(dense.slice(5 * width), weight, width)
    expectClose(got, [...first, ...second], 2e-6)
  })

  // those of a device are not seen by the host
  test.skipIf(!backend.isHost)("segments that do not fit are refused", () => {
    const x = Tensor.from(backend, randomArray(8, 1), [2, 1, 4])
    const weight = Tensor.from(backend, randomArray(16, 1), [4, 4])
    const state = Tensor.empty(backend, F32, [2, 3, 4])
    const run = (plan: Plan) => () => causalConv1d(x, weight, segmentsOf(backend, plan), state)
    expect(run([[1, -1, 0]])).toThrow("segments.start runs from 0 to 1, expected 0 to 2")
    expect(run([[2, -2, 0]])).toThrow("segments.source[0] is -2, there are 2 slots")
    expect(run([[2, 2, 0]])).toThrow("segments.source[0] is 2, there are 2 slots")
    expect(run([[2, 0, 2]])).toThrow("segments.target[0] is 2, there are 2 slots")
    expect(
      run([
        [2, -1, 0],
        [0, 0, 1],
      ]),
    ).toThrow("segments.start[2] is 2 after 2")
  })
})

interface Case {
  readonly kHeads: number
  readonly group: number
  readonly kDim: number
  readonly vDim: number
}

const CASES: readonly Case[] = [
  { kHeads: 1, group: 1, kDim: 1, vDim: 1 },
  { kHeads: 2, group: 2, kDim: 16, vDim: 16 },
  { kHeads: 1, group: 3, kDim: 7, vDim: 5 },
  { kHeads: 2, group: 1, kDim: 15, vDim: 17 },
  { kHeads: 1, group: 2, kDim: 33, vDim: 63 },
  { kHeads: 1, group: 1, kDim: 32, vDim: 65 },
  { kHeads: 2, group: 2, kDim: 128, vDim: 128 },
]

describeBackends({ name: "gatedDeltaRule", needs: ["kt_gated_delta_rule"] }, (backend) => {
  const TOKENS = 13

  function inputs({ kHeads, group, kDim, vDim }: Case, seed: number): reference.DeltaRule {
    const heads = kHeads * group
    return {
      q: randomArray(TOKENS * kHeads * kDim, seed, 2),
      k: randomArray(TOKENS * kHeads * kDim, seed + 1, 2),
      v: randomArray(TOKENS * heads * vDim, seed + 2),
      b: randomArray(TOKENS * heads, seed + 3, 2),
      a: randomArray(TOKENS * heads, seed + 4, 3),
      decay: randomArray(heads, seed + 5).map((x) => -Math.exp(x)),
      dtBias: randomArray(heads, seed + 6),
      ...{ kHeads, group, kDim, vDim },
      scale: kDim ** -0.5,
      eps: 1e-6,
    }
  }

  function run(
    o: reference.DeltaRule,
    state: Tensor,
    from: number,
    to: number,
    plan: Plan,
  ): Float32Array {
    const { kHeads, group, kDim, vDim } = o
    const part = (values: ArrayLike<number>, ...shape: number[]): Tensor => {
      const width = shape.reduce((x, y) => x * y, 1)
      return Tensor.from(backend, Float32Array.from(rows(values, width, from, to)), [
        to - from,
        ...shape,
      ])
    }
    const operands = {
      q: part(o.q, kHeads, kDim),
      k: part(o.k, kHeads, kDim),
      v: part(o.v, kHeads, group, vDim),
      b: part(o.b, kHeads, group),
      a: part(o.a, kHeads, group),
      decay: Tensor.from(backend, Float32Array.from(o.decay)),
      dtBias: Tensor.from(backend, Float32Array.from(o.dtBias)),
      scale: o.scale,
      eps: o.eps,
    }
    return gatedDeltaRule(operands, segmentsOf(backend, plan), state).toFloat32Array()
  }

  for (const sizes of CASES) {
    const { kHeads, group, kDim, vDim } = sizes
    test(`${kHeads} x ${group} heads of ${kDim} x ${vDim}: at once, in pieces, in a batch`, () => {
      const o = inputs(sizes, kDim + vDim)
      const heads = kHeads * group
      const width = heads * vDim
      const want = reference.gatedDeltaRule(o)
      const state = dirty(backend, [4, heads, kDim, vDim])
      const whole = run(o, state, 0, TOKENS, [[TOKENS, -1, 0]])
      expectClose(whole, want.out, 5e-6)
      expectClose(state.select(0).toFloat32Array(), want.state, 5e-6)
      // pieces give the very same numbers: one token, several, from another slot, cut within a step
      expect(run(o, state, 0, 1, [[1, -1, 1]])).toEqual(whole.slice(0, width))
      expect(run(o, state, 1, 2, [[1, 1, 1]])).toEqual(whole.slice(width, 2 * width))
      expect(run(o, state, 2, 7, [[5, 1, 2]])).toEqual(whole.slice(2 * width, 7 * width))
      const cut = run(o, state, 7, TOKENS, [
        [2, 2, 1],
        [3, 1, 3],
        [1, 3, 2],
      ])
      expect(cut).toEqual(whole.slice(7 * width))
      expect([...state.select(2).toFloat32Array()]).toEqual([...state.select(0).toFloat32Array()])
      // the first 5 tokens as a sequence of their own beside the rest, which begins anew
      const beside = run(o, state, 0, TOKENS, [
        [5, -1, 3],
        [TOKENS - 5, -1, 1],
      ])
      expect(beside.slice(0, 5 * width)).toEqual(whole.slice(0, 5 * width))
      const own = run(o, state, 5, TOKENS, [[TOKENS - 5, -1, 0]])
      expect([...beside.slice(5 * width)]).toEqual([...own])
    })
  }

  test("gates at their ends: nothing written, everything forgotten", () => {
    const sizes = { kHeads: 1, group: 1, kDim: 8, vDim: 8 }
    const o = { ...inputs(sizes, 3), b: new Float32Array(TOKENS).fill(-200) }
    const state = Tensor.empty(backend, F32, [1, 1, 8, 8])
    for (const value of run(o, state, 0, TOKENS, [[TOKENS, -1, 0]]))
      expect(Math.abs(value)).toBeLessThan(1e-30)
    const forgetful = { ...inputs(sizes, 4), a: new Float32Array(TOKENS).fill(1000) }
    const want = reference.gatedDeltaRule(forgetful).out
    expectClose(run(forgetful, state, 0, TOKENS, [[TOKENS, -1, 0]]), want, 5e-6)
  })

  test("wrong shapes are refused by name", () => {
    const o = inputs({ kHeads: 1, group: 2, kDim: 4, vDim: 4 }, 1)
    const state = Tensor.empty(backend, F32, [1, 3, 4, 4])
    expect(() => run(o, state, 0, TOKENS, [[TOKENS, -1, 0]])).toThrow(
      "state has shape [1, 3, 4, 4], expected [1, 2, 4, 4]",
    )
    const wide = inputs({ kHeads: 1, group: 1, kDim: 300, vDim: 4 }, 1)
    const large = Tensor.empty(backend, F32, [1, 1, 300, 4])
    expect(() => run(wide, large, 0, TOKENS, [[TOKENS, -1, 0]])).toThrow(
      "k has heads of 300, at most 256",
    )
  })
})
