/** Float64 definitions of the rotary embedding. */

/** positions [tokens], invFreq [n] or [tokens · n]; the angle is the f32 product, the rest exact. */
export function ropeTable(
  positions: ArrayLike<number>,
  invFreq: ArrayLike<number>,
  n: number,
  scale = 1,
): Float64Array {
  const out = new Float64Array(positions.length * 2 * n)
  for (let t = 0; t < positions.length; t++) {
    for (let i = 0; i < n; i++) {
      const frequency = invFreq[invFreq.length === n ? i : t * n + i] as number
      const angle = Math.fround(Math.fround(positions[t] as number) * frequency)
      out[t * 2 * n + i] = Math.cos(angle) * scale
      out[t * 2 * n + n + i] = Math.sin(angle) * scale
    }
  }
  return out
}

/** x [tokens, heads, dim], table [tokens, 2n]. */
export function rope(
  x: ArrayLike<number>,
  table: ArrayLike<number>,
  heads: number,
  dim: number,
  n: number,
  interleaved: boolean,
): Float64Array {
  const out = Float64Array.from(x)
  for (let row = 0; row < x.length / dim; row++) {
    const cosines = Math.floor(row / heads) * 2 * n
    for (let i = 0; i < n; i++) {
      const first = row * dim + (interleaved ? 2 * i : i)
      const second = interleaved ? first + 1 : first + n
      const [a, b] = [x[first] as number, x[second] as number]
      const [c, s] = [table[cosines + i] as number, table[cosines + n + i] as number]
      out[first] = a * c - b * s
      out[second] = b * c + a * s
    }
  }
  return out
}
