import { expect, test } from "bun:test"

import fc from "fast-check"

import { columnsOf, transposeStack } from "../../src/weights/transposed.ts"

const size = fc.integer({ min: 1, max: 70 })

/** Both arrangements of gate and up in one stack, and a stack that holds nothing else. */
const part = (rows: number, which: number): { start: number; step: number; width: number } =>
  [
    { start: 0, step: 1, width: rows },
    { start: rows, step: 1, width: 2 * rows },
    { start: 1, step: 2, width: 2 * rows },
  ][which] as { start: number; step: number; width: number }

test("row r of an expert is column start + step * r of its stored matrix", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 3 }),
      size,
      size,
      fc.constantFrom(0, 1, 2),
      fc.constantFrom(2, 4),
      fc.integer({ min: 0, max: 3 }),
      (experts, rows, cols, which, bytes, offset) => {
        const { start, step, width } = part(rows, which)
        const Values = bytes === 2 ? Uint16Array : Uint32Array
        const stored = new Values(experts * cols * width)
        for (let i = 0; i < stored.length; i++) stored[i] = i
        // stored tensors lie at any byte of a file
        const file = new Uint8Array(offset + stored.byteLength)
        file.set(new Uint8Array(stored.buffer), offset)
        const out = new Values(experts * rows * cols)
        const to = new Uint8Array(out.buffer)
        transposeStack(file.subarray(offset), to, [experts, rows, cols], {
          name: "",
          start,
          step,
          width,
        })
        for (let i = 0; i < out.length; i++) {
          const [e, r, c] = [Math.floor(i / cols / rows), Math.floor(i / cols) % rows, i % cols]
          expect(out[i]).toBe((e * cols + c) * width + start + step * r)
        }
      },
    ),
    { numRuns: 60 },
  )
})

test("biases of gate and up are taken apart", () => {
  const stored = Float32Array.from({ length: 12 }, (_, i) => i)
  const halves = { name: "", start: 3, step: 1, width: 6 }
  expect([...columnsOf(stored, [2, 3], halves)]).toEqual([3, 4, 5, 9, 10, 11])
  const alternating = { name: "", start: 1, step: 2, width: 6 }
  expect([...columnsOf(stored, [2, 3], alternating)]).toEqual([1, 3, 5, 7, 9, 11])
  expect([...columnsOf(stored, [2, 6], { name: "", start: 0, step: 1 })]).toEqual([...stored])
})
