import { expect, test } from "bun:test"

import { actMul, add } from "../../src/ops/elementwise.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/elementwise.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"

const WIDTHS = [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 48, 1536, 8192, 8193, 20000]

describeBackends("add and actMul", (backend) => {
  for (const n of WIDTHS) {
    test(`add of [3, ${n}]`, () => {
      const a = randomArray(3 * n, n)
      const b = randomArray(3 * n, n + 1)
      const out = add(Tensor.from(backend, a, [3, n]), Tensor.from(backend, b, [3, n]))
      expect(out.toFloat32Array()).toEqual(a.map((x, i) => x + (b[i] as number)))
    })

    for (const act of reference.ACTIVATION_NAMES) {
      test(`${act} of [3, ${n}] times up`, () => {
        const gate = randomArray(3 * n, n + 2, 4)
        const up = randomArray(3 * n, n + 3)
        const out = actMul(
          Tensor.from(backend, gate, [3, n]),
          Tensor.from(backend, up, [3, n]),
          act,
        ).toFloat32Array()
        const want = reference.actMul(gate, up, act)
        expectClose(out, want, 5e-7)
        for (let i = 0; i < want.length; i++) {
          const factor = (up[i] as number) + (act === "swiglu_oai" ? 1 : 0)
          const allowed = 1e-6 * Math.abs((gate[i] as number) * factor) + 1e-38
          if (!(Math.abs((out[i] as number) - (want[i] as number)) <= allowed))
            throw new Error(`${act}(${gate[i]}) * ${up[i]} = ${out[i]}, expected ${want[i]}`)
        }
      })
    }
  }

  test("silu keeps its relative precision over the whole range", () => {
    const gate = Float32Array.from({ length: 2001 }, (_, i) => (i - 1000) * 0.08)
    const up = new Float32Array(2001).fill(1)
    const out = actMul(
      Tensor.from(backend, gate, [1, 2001]),
      Tensor.from(backend, up, [1, 2001]),
      "silu",
    ).toFloat32Array()
    const want = reference.actMul(gate, up, "silu")
    for (let i = 0; i < want.length; i++) {
      const allowed = 1e-6 * Math.abs(want[i] as number)
      if (!(Math.abs((out[i] as number) - (want[i] as number)) <= allowed))
        throw new Error(`silu(${gate[i]}) = ${out[i]}, expected ${want[i]}`)
    }
  })

  test("swiglu_oai clamps both operands, large ones too, and keeps NaN", () => {
    const ends = [-1000, -90, -7.01, -7, -0, 0, 6.99, 7, 7.01, 1000]
    const gate = Float32Array.from(ends.flatMap((g) => ends.map(() => g)))
    const up = Float32Array.from(ends.flatMap(() => ends))
    const run = (g: Float32Array, u: Float32Array): Float32Array =>
      actMul(
        Tensor.from(backend, g, [1, g.length]),
        Tensor.from(backend, u, [1, u.length]),
        "swiglu_oai",
      ).toFloat32Array()
    expectClose(run(gate, up), reference.actMul(gate, up, "swiglu_oai"), 5e-7)
    expect([...run(Float32Array.of(NaN, 1), Float32Array.of(1, NaN))]).toEqual([NaN, NaN])
  })

  test("activations at their ends: large arguments, zero, NaN", () => {
    const gate = Float32Array.of(-1000, -90, -20, -0, 0, 20, 90, 1000, NaN)
    for (const act of reference.ACTIVATION_NAMES.filter((name) => name !== "swiglu_oai")) {
      const out = actMul(
        Tensor.from(backend, gate, [1, 9]),
        Tensor.from(backend, new Float32Array(9).fill(1), [1, 9]),
        act,
      ).toFloat32Array()
      for (const i of [0, 1, 3, 4]) expect(Math.abs(out[i] as number)).toBeLessThan(1e-35)
      expect(Math.abs(out[2] as number)).toBeLessThan(5e-8)
      expect([...out.slice(5, 8)]).toEqual([20, 90, 1000])
      expect(out[8]).toBeNaN()
    }
  })

  test("rows may be strided and the result may replace an operand", () => {
    const both = randomArray(4 * 40, 9)
    const pair = Tensor.from(backend, both, [4, 40])
    const gate = pair.narrow(1, 0, 20)
    const up = pair.narrow(1, 20, 20)
    const part = (start: number): Float32Array =>
      Float32Array.from(
        { length: 80 },
        (_, i) => both[Math.floor(i / 20) * 40 + start + (i % 20)] as number,
      )
    const want = reference.actMul(part(0), part(20), "silu")
    expectClose(actMul(gate, up, "silu").toFloat32Array(), want, 5e-7)
    actMul(gate, up, "silu", gate)
    const after = pair.toFloat32Array()
    for (let row = 0; row < 4; row++) {
      expectClose(after.slice(row * 40, row * 40 + 20), want.slice(row * 20, row * 20 + 20), 5e-7)
      expect(after.slice(row * 40 + 20, row * 40 + 40)).toEqual(
        part(20).slice(row * 20, row * 20 + 20),
      )
    }
    const a = Tensor.from(backend, part(0), [4, 20])
    add(a, up, a)
    expect(a.toFloat32Array()).toEqual(part(0).map((x, i) => x + (part(20)[i] as number)))
  })

  test("wrong shapes are refused by name", () => {
    const a = Tensor.from(backend, randomArray(8, 1), [2, 4])
    const b = Tensor.from(backend, randomArray(8, 1), [4, 2])
    expect(() => add(a, b)).toThrow("b has shape [4, 2], expected [2, 4]")
    expect(() => actMul(a, b, "silu")).toThrow("up has shape [4, 2], expected [2, 4]")
    expect(() => add(Tensor.from(backend, new Int32Array(8), [2, 4]), a)).toThrow(
      "a has type 26, expected 0",
    )
  })
})
