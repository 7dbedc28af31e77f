/** x [tokens, n] times w [rows, n] transposed, plus bias, in float64. */
export function linear(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  n: number,
  bias?: ArrayLike<number>,
): Float64Array {
  const tokens = x.length / n
  const rows = w.length / n
  const out = new Float64Array(tokens * rows)
  for (let t = 0; t < tokens; t++) {
    for (let r = 0; r < rows; r++) {
      let sum = bias === undefined ? 0 : (bias[r] as number)
      for (let i = 0; i < n; i++) sum += (x[t * n + i] as number) * (w[r * n + i] as number)
      out[t * rows + r] = sum
    }
  }
  return out
}

/** What int8 activations leave of x: each block of 32 rounded to max|x| / 127. */
export function roundToInt8(x: Float32Array): Float64Array {
  const out = new Float64Array(x.length)
  for (let block = 0; block < x.length; block += 32) {
    let max = 0
    for (let i = block; i < block + 32; i++) max = Math.max(max, Math.abs(x[i] as number))
    const d = Math.fround(max / 127)
    for (let i = block; i < block + 32; i++)
      out[i] = d === 0 ? 0 : d * roundHalfEven(Math.fround((x[i] as number) * Math.fround(1 / d)))
  }
  return out
}

function roundHalfEven(value: number): number {
  const floor = Math.floor(value)
  const rest = value - floor
  if (rest !== 0.5) return Math.round(value)
  return floor % 2 === 0 ? floor : floor + 1
}
