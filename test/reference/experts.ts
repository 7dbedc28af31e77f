/** silu(gate) * up. */
function siluMul(gate: number, up: number): number {
  return (gate / (1 + Math.exp(-gate))) * up
}

export interface ExpertStacks {
  /** [experts, inter, hidden] */
  readonly gate: ArrayLike<number>
  readonly up: ArrayLike<number>
  /** [experts, hidden, inter] */
  readonly down: ArrayLike<number>
  readonly hidden: number
  readonly inter: number
}

/** Sum over a token's experts of weight * down(silu(gate x) * (up x)), in float64; `round` is what int8 activations do to a row. */
export function fusedExperts(
  x: ArrayLike<number>,
  ids: ArrayLike<number>,
  weights: ArrayLike<number>,
  k: number,
  { gate, up, down, hidden, inter }: ExpertStacks,
  round: (row: Float32Array) => ArrayLike<number>,
): Float64Array {
  const tokens = x.length / hidden
  const out = new Float64Array(tokens * hidden)
  const dot = (w: ArrayLike<number>, start: number, v: ArrayLike<number>, n: number): number => {
    let sum = 0
    for (let i = 0; i < n; i++) sum += (w[start + i] as number) * (v[i] as number)
    return sum
  }
  for (let t = 0; t < tokens; t++) {
    const row = round(Float32Array.from({ length: hidden }, (_, i) => x[t * hidden + i] as number))
    for (let j = 0; j < k; j++) {
      const e = ids[t * k + j] as number
      const middle = new Float32Array(inter)
      for (let r = 0; r < inter; r++) {
        const at = (e * inter + r) * hidden
        middle[r] = siluMul(dot(gate, at, row, hidden), dot(up, at, row, hidden))
      }
      const rounded = round(middle)
      for (let r = 0; r < hidden; r++) {
        const index = t * hidden + r
        out[index] =
          (out[index] as number) +
          (weights[t * k + j] as number) * dot(down, (e * hidden + r) * inter, rounded, inter)
      }
    }
  }
  return out
}
