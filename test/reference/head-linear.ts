/** Sizes of test/ops/head-linear.test.ts. */
export interface HeadLinearCase {
  readonly heads: number
  readonly rows: number
  readonly cols: number
  readonly transposed: boolean
}

/** x [tokens, heads, cols] times each head's w [rows, cols] (or [cols, rows]) in float64: [tokens, heads, rows]. */
export function headLinear(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  { heads, rows, cols, transposed }: HeadLinearCase,
): Float64Array {
  const tokens = x.length / (heads * cols)
  const out = new Float64Array(tokens * heads * rows)
  for (let t = 0; t < tokens; t++)
    for (let h = 0; h < heads; h++)
      for (let r = 0; r < rows; r++) {
        let sum = 0
        for (let i = 0; i < cols; i++) {
          const at = h * rows * cols + (transposed ? i * rows + r : r * cols + i)
          sum += (x[(t * heads + h) * cols + i] as number) * (w[at] as number)
        }
        out[(t * heads + h) * rows + r] = sum
      }
  return out
}
