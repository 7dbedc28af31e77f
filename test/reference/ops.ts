/** Float64 definitions of the ops: the DEFINITION comments of the kernels, executable. Plain arrays, row-major. */

/** x [rows, n], weight [n] */
export function rmsNorm(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  eps: number,
  offset = 0,
): Float64Array {
  const n = weight.length
  const out = new Float64Array(x.length)
  for (let row = 0; row < x.length; row += n) {
    let sum = 0
    for (let i = 0; i < n; i++) sum += (x[row + i] as number) ** 2
    const scale = 1 / Math.sqrt(sum / n + eps)
    for (let i = 0; i < n; i++)
      out[row + i] = (x[row + i] as number) * scale * ((weight[i] as number) + offset)
  }
  return out
}
