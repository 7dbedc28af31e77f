/** Float64 definition of the layer norm; x [rows, n], weight [n], bias [n] or none. */
export function layerNorm(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  bias: ArrayLike<number> | undefined,
  eps: number,
): Float64Array {
  const n = weight.length
  const out = new Float64Array(x.length)
  for (let start = 0; start < x.length; start += n) {
    let mean = 0
    for (let i = 0; i < n; i++) mean += (x[start + i] as number) / n
    let variance = 0
    for (let i = 0; i < n; i++) variance += ((x[start + i] as number) - mean) ** 2 / n
    for (let i = 0; i < n; i++) {
      const unit = ((x[start + i] as number) - mean) / Math.sqrt(variance + eps)
      out[start + i] = unit * (weight[i] as number) + (bias?.[i] ?? 0)
    }
  }
  return out
}
