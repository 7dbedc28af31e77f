import { expect, test } from "bun:test"

import { rope, ropeTable } from "../../src/ops/rope.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/rope.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"

function frequencies(n: number, theta: number): Float32Array {
  return Float32Array.from({ length: n }, (_, i) => theta ** (-i / n))
}

function worst(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let error = 0
  for (let i = 0; i < want.length; i++)
    error = Math.max(error, Math.abs((got[i] as number) - (want[i] as number)))
  return error
}

describeBackends("rope", (backend) => {
  for (const n of [1, 4, 20, 32, 128]) {
    test(`table of ${n} frequencies up to position 1e6`, () => {
      const positions = Int32Array.of(0, 1, 2, 17, 1000, 8191, 131071, 999_983, 1_000_000)
      const invFreq = frequencies(n, 10000)
      const want = reference.ropeTable(positions, invFreq, n)
      const table = ropeTable(Tensor.from(backend, positions), Tensor.from(backend, invFreq))
      expect(table.shape).toEqual([positions.length, 2 * n])
      expect(worst(table.toFloat32Array(), want)).toBeLessThan(1e-7)
    })
  }

  test("table of many tokens, scaled, with frequencies of each token's own", () => {
    const [tokens, n] = [300, 12]
    const positions = Int32Array.from({ length: tokens }, (_, i) => 3 * i)
    const invFreq = randomArray(tokens * n, 3).map(Math.abs)
    const table = ropeTable(
      Tensor.from(backend, positions),
      Tensor.from(backend, invFreq, [tokens, n]),
      1.25,
    )
    const want = reference.ropeTable(positions, invFreq, n, 1.25)
    expect(worst(table.toFloat32Array(), want)).toBeLessThan(1.3e-7)
  })

  for (const interleaved of [false, true]) {
    for (const [tokens, heads, dim, n] of [
      [1, 1, 2, 1],
      [3, 2, 8, 4],
      [2, 3, 40, 20],
      [5, 9, 64, 32],
      [2, 2, 96, 16],
      [70, 4, 256, 128],
    ] as const) {
      test(`[${tokens}, ${heads}, ${dim}] n ${n} interleaved ${interleaved}`, () => {
        const x = randomArray(tokens * heads * dim, dim)
        const table = randomArray(tokens * 2 * n, n)
        const tensor = Tensor.from(backend, x, [tokens, heads, dim])
        rope(tensor, Tensor.from(backend, table, [tokens, 2 * n]), interleaved)
        const want = reference.rope(x, table, heads, dim, n, interleaved)
        expectClose(tensor.toFloat32Array(), want, 2e-7)
      })
    }
  }

  test("heads inside wider rows are rotated where they lie, and nothing else", () => {
    const x = randomArray(4 * 48, 1)
    const table = randomArray(4 * 8, 2)
    const rows = Tensor.from(backend, x, [4, 48])
    rope(rows.narrow(1, 16, 16).unflatten(1, [2, 8]), Tensor.from(backend, table, [4, 8]))
    const got = rows.toFloat32Array()
    for (let t = 0; t < 4; t++) {
      const part = x.slice(t * 48 + 16, t * 48 + 32)
      const want = reference.rope(part, table.slice(t * 8, t * 8 + 8), 2, 8, 4, false)
      expectClose(got.slice(t * 48 + 16, t * 48 + 32), want, 2e-7)
      expect(got.slice(t * 48, t * 48 + 16)).toEqual(x.slice(t * 48, t * 48 + 16))
      expect(got.slice(t * 48 + 32, t * 48 + 48)).toEqual(x.slice(t * 48 + 32, t * 48 + 48))
    }
  })

  test("tables that do not fit are refused", () => {
    const x = Tensor.from(backend, randomArray(16, 1), [2, 1, 8])
    const table = (tokens: number, width: number): Tensor =>
      Tensor.from(backend, randomArray(tokens * width, 1), [tokens, width])
    expect(() => rope(x, table(3, 8))).toThrow("table has shape [3, 8], expected [2, 8]")
    expect(() => rope(x, table(2, 10))).toThrow("table has rows of 10 values for heads of 8")
    expect(() => rope(x, table(2, 7))).toThrow("table has rows of 7 values")
    const positions = Tensor.from(backend, Int32Array.of(1, 2))
    expect(() => ropeTable(positions, table(3, 4))).toThrow("inv_freq dimension 0 is 3, expected 2")
  })
})
