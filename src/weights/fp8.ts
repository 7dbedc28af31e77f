import { type DTypeInfo, F8_E4M3, F32 } from "../tensor/dtype.ts"

/** Scales of a matrix: one for each `rows` x `columns` values, in rows of `stride`. */
export interface Scales {
  readonly values: Float32Array
  readonly rows: number
  readonly columns: number
  readonly stride: number
}

/** Whether blocks of 128 columns have one scale each; else the values are widened. */
export function fp8Type(columns: number, scales: Pick<Scales, "columns">): DTypeInfo {
  return columns % 128 === 0 && scales.columns % 128 === 0 ? F8_E4M3 : F32
}

/** Fills a matrix of `fp8Type` from E4M3 codes [rows, columns]: each value is code * scale in f32. */
export function buildFp8(
  codes: Uint8Array,
  shape: readonly [number, number],
  scales: Scales,
  dtype: DTypeInfo,
  to: Uint8Array,
): void {
  const [rows, columns] = shape
  const { values, stride } = scales
  if (dtype === F8_E4M3) {
    const scale = new Float32Array(1)
    const raw = new Uint8Array(scale.buffer)
    let out = 0
    for (let r = 0; r < rows; r++) {
      const line = Math.floor(r / scales.rows) * stride
      for (let c = 0; c < columns; c += 128) {
        scale[0] = values[line + Math.floor(c / scales.columns)] as number
        to.set(raw, out)
        const from = r * columns + c
        to.set(codes.subarray(from, from + 128), out + 4)
        out += F8_E4M3.blockBytes
      }
    }
    return
  }
  const table = e4m3Values()
  const wide = new Float32Array(columns)
  const raw = new Uint8Array(wide.buffer)
  for (let r = 0; r < rows; r++) {
    const line = Math.floor(r / scales.rows) * stride
    for (let c = 0; c < columns; c++) {
      const scale = values[line + Math.floor(c / scales.columns)] as number
      wide[c] = (table[codes[r * columns + c] as number] as number) * scale
    }
    to.set(raw, r * columns * 4)
  }
}

/** All values of E4M3 (OCP 8-bit Floating Point 1.0: no infinities, one NaN of each sign). */
export function e4m3Values(): Float32Array {
  return Float32Array.from({ length: 256 }, (_, code) => {
    const exponent = (code >> 3) & 15
    const mantissa = code & 7
    const size =
      (code & 127) === 127
        ? Number.NaN
        : exponent === 0
          ? mantissa * 2 ** -9
          : (1 + mantissa / 8) * 2 ** (exponent - 7)
    return code > 127 ? -size : size
  })
}
