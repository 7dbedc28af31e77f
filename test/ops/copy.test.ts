import { expect, test } from "bun:test"

import type { Backend } from "../../src/native/backend.ts"
import { cast, copy, dequantize } from "../../src/ops/elementwise.ts"
import { embedding } from "../../src/ops/embedding.ts"
import * as dtypes from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { readGoldenTensors } from "../fixtures/golden-tensors.ts"
import { golden } from "../setup.ts"
import { describeBackends, randomArray } from "./harness.ts"
import { QUANTIZED as ALL_QUANTIZED } from "./weights.ts"

/** Types of files; what only the loader makes (numbers from 1000) has no reference vectors. */
const QUANTIZED = ALL_QUANTIZED.filter(({ id }) => id < 1000)

function tensorOfBytes(
  backend: Backend,
  dtype: dtypes.DTypeInfo,
  shape: readonly number[],
  bytes: Uint8Array,
): Tensor {
  const tensor = Tensor.empty(backend, dtype, shape)
  tensor.write(bytes)
  return tensor
}

/** Equal bit for bit; with `nanByClass` any NaN equals any other. */
function expectSameBits(got: Tensor, want: Float32Array, nanByClass = false): void {
  const values = got.toFloat32Array()
  const bits = new Uint32Array(values.buffer)
  const wanted = new Uint32Array(want.buffer, want.byteOffset, want.length)
  expect(bits.length).toBe(wanted.length)
  for (let i = 0; i < bits.length; i++) {
    if (bits[i] === wanted[i]) continue
    if (nanByClass && Number.isNaN(values[i]) && Number.isNaN(want[i])) continue
    throw new Error(`value ${i} is ${values[i]}, expected ${want[i]}`)
  }
}

function goldenOf(name: string) {
  const tensors = readGoldenTensors(golden("quant", `${name.toLowerCase()}.safetensors`))
  return (key: string) => {
    const tensor = tensors.get(key)
    if (tensor === undefined) throw new Error(`${name}: no tensor ${key}`)
    return tensor
  }
}

describeBackends("copy and embedding", (backend) => {
  for (const dtype of QUANTIZED) {
    test(`${dtype.name} dequantises to the reference's bits`, () => {
      const tensors = goldenOf(dtype.name)
      for (const [prefix, rows] of [
        ["", 6],
        ["random.", 4],
      ] as const) {
        const table = tensorOfBytes(backend, dtype, [rows, 512], tensors(`${prefix}quant`).bytes)
        expectSameBits(dequantize(table), tensors(`${prefix}dequant`).f32())
      }
    })
  }

  for (const dtype of QUANTIZED.filter(({ name }) => /^IQ[123]/.test(name))) {
    test(`${dtype.name} knows every entry of its code book`, () => {
      const tensors = goldenOf(dtype.name)
      const want = tensors("codes.dot").f64()
      const x = tensors("random.x").f32()
      const { bytes } = tensors("codes.quant")
      const values = dequantize(
        tensorOfBytes(backend, dtype, [want.length, 512], bytes),
      ).toFloat32Array()
      for (let row = 0; row < want.length; row++) {
        let sum = 0
        for (let i = 0; i < 512; i++) sum += (values[row * 512 + i] as number) * (x[i] as number)
        expect(Math.abs(sum - (want[row] as number))).toBeLessThanOrEqual(
          1e-12 + 1e-12 * Math.abs(want[row] as number),
        )
      }
    })
  }

  for (const dtype of [dtypes.F16, dtypes.BF16]) {
    test(`${dtype.name} widens every class of bit pattern, and narrows back`, () => {
      const tensors = goldenOf(dtype.name)
      for (const [prefix, rows] of [
        ["", 6],
        ["all.", 8],
      ] as const) {
        const { bytes } = tensors(`${prefix}quant`)
        const want = tensors(`${prefix}dequant`).f32()
        const wide = cast(tensorOfBytes(backend, dtype, [rows, 512], bytes), dtypes.F32)
        expectSameBits(wide, want, true)
        expectSameBits(cast(cast(wide, dtype), dtypes.F32), want, true)
      }
    })
  }

  test("narrowing rounds to the nearest, ties to even, and saturates to infinity", () => {
    const random = randomArray(4096, 3)
    for (let i = 0; i < random.length; i++) random[i] = (random[i] as number) * 2 ** ((i % 60) - 40)
    const edges = [
      0,
      -0,
      65504,
      65519.996,
      65520,
      -65520,
      2 ** -24,
      2 ** -25,
      2 ** -25 * 1.0001,
      1e-8,
    ]
    edges.push(
      2 ** -14,
      2 ** -14 - 2 ** -25,
      1 + 2 ** -11,
      1 + 3 * 2 ** -11,
      1 + 2 ** -11 + 2 ** -20,
    )
    edges.push(Infinity, -Infinity, NaN, 3.4e38, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1e-45)
    const values = Float32Array.from([...edges, ...random])
    const src = Tensor.from(backend, values)
    expectSameBits(
      cast(cast(src, dtypes.F16), dtypes.F32),
      Float32Array.from(new Float16Array(values)),
      true,
    )
    const bits = new Uint32Array(values.buffer)
    const nearest = Uint32Array.from(bits, (word) => {
      const low = word % 65536
      const high = Math.floor(word / 65536)
      const up = low > 32768 || (low === 32768 && high % 2 === 1)
      return (high + (up ? 1 : 0)) * 65536
    })
    expectSameBits(cast(cast(src, dtypes.BF16), dtypes.F32), new Float32Array(nearest.buffer), true)
  })

  test("I32 converts both ways: toward zero, saturating, NaN to 0", () => {
    const values = Float32Array.of(
      1.9,
      -1.9,
      3e9,
      -3e9,
      NaN,
      0.5,
      2147483520,
      -2147483648,
      Infinity,
    )
    const ints = cast(Tensor.from(backend, values), dtypes.I32)
    expect([...ints.toInt32Array()]).toEqual([
      1, -1, 2147483647, -2147483648, 0, 0, 2147483520, -2147483648, 2147483647,
    ])
    const back = cast(Tensor.from(backend, Int32Array.of(1, -2, 16777217)), dtypes.F32)
    expect([...back.toFloat32Array()]).toEqual([1, -2, 16777216])
    const halves = cast(Tensor.from(backend, Int32Array.of(1, -2, 70000)), dtypes.F16)
    expect([...halves.toFloat32Array()]).toEqual([1, -2, Infinity])
  })

  for (const n of [1, 7, 15, 16, 17, 255, 257, 16383, 16384, 16385, 40000]) {
    test(`copies rows of ${n} values between types and strides`, () => {
      const rows = n > 1000 ? 3 : 50
      const x = randomArray(rows * 2 * n, n)
      const src = Tensor.from(backend, x, [rows, 2, n])
      const out = Tensor.empty(backend, dtypes.F32, [rows, 2, n])
      for (let half = 0; half < 2; half++) copy(src.narrow(1, half, 1), out.narrow(1, 1 - half, 1))
      const want = Float32Array.from(
        x,
        (_, i) => x[i + (Math.floor(i / n) % 2 === 0 ? n : -n)] as number,
      )
      expectSameBits(out, want)
      const half = copy(src.narrow(1, 1, 1), Tensor.empty(backend, dtypes.F16, [rows, 1, n]))
      expectSameBits(
        cast(cast(half, dtypes.BF16), dtypes.F32),
        cast(cast(cast(out.narrow(1, 0, 1), dtypes.F16), dtypes.BF16), dtypes.F32).toFloat32Array(),
      )
      expect([...half.toFloat32Array()]).toEqual([
        ...new Float16Array(x.filter((_, i) => Math.floor(i / n) % 2 === 1)),
      ])
    })
  }

  test("embedding gathers dequantised rows times the scale", () => {
    for (const dtype of [...QUANTIZED, dtypes.F16, dtypes.BF16]) {
      const tensors = goldenOf(dtype.name)
      const table = tensorOfBytes(backend, dtype, [6, 512], tensors("quant").bytes)
      const want = tensors("dequant").f32()
      for (const ids of [Int32Array.of(5), Int32Array.of(3, 0, 5, 5, 1, 2, 4, 0)]) {
        for (const scale of [1, 22.627416610717773]) {
          const rows = new Float32Array(ids.length * 512)
          for (let i = 0; i < rows.length; i++)
            rows[i] =
              (want[(ids[Math.floor(i / 512)] as number) * 512 + (i % 512)] as number) * scale
          expectSameBits(embedding(table, Tensor.from(backend, ids), scale), rows)
        }
      }
    }
  })

  test("embedding reads a table of one row and a strided table", () => {
    const x = randomArray(4 * 32, 5)
    const strided = Tensor.from(backend, x, [4, 32]).narrow(1, 8, 16)
    const got = embedding(strided, Tensor.from(backend, Int32Array.of(3, 1)))
    expectSameBits(got, Float32Array.from([...x.slice(104, 120), ...x.slice(40, 56)]))
    const one = embedding(
      Tensor.from(backend, x, [1, 128]),
      Tensor.from(backend, new Int32Array(9)),
    )
    expectSameBits(
      one,
      Float32Array.from({ length: 9 * 128 }, (_, i) => x[i % 128] as number),
    )
  })

  test.skipIf(!backend.isHost)("bad ids, shapes and conversions are refused by name", () => {
    const table = Tensor.from(backend, randomArray(8, 1), [4, 2])
    for (const id of [4, -1, 2147483647]) {
      expect(() => embedding(table, Tensor.from(backend, Int32Array.of(0, id)))).toThrow(
        `ids[1] is ${id}, the table has rows 0 to 3`,
      )
    }
    expect(() => embedding(table, Tensor.from(backend, Float32Array.of(1)))).toThrow("ids is F32")
    expect(() => copy(table, Tensor.empty(backend, dtypes.F32, [2, 4]))).toThrow(
      "out has shape [2, 4], expected [4, 2]",
    )
    const quantized = tensorOfBytes(backend, dtypes.Q8_0, [1, 32], new Uint8Array(34))
    expect(() => cast(quantized, dtypes.F16)).toThrow("no conversion from type 8 to type 1")
    expect(() => copy(Tensor.empty(backend, dtypes.F32, [1, 32]), quantized)).toThrow(
      "no conversion",
    )
    expect(() => dequantize(quantized, Tensor.empty(backend, dtypes.F16, [1, 32]))).toThrow(
      "out is F16",
    )
  })
})
