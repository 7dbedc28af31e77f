import { type ActivationName, gated } from "./elementwise.ts"

export interface ExpertStacks {
  /** [experts, inter, hidden] */
  readonly gate: ArrayLike<number>
  readonly up: ArrayLike<number>
  /** [experts, hidden, inter] */
  readonly down: ArrayLike<number>
  readonly hidden: number
  readonly inter: number
  /** silu where absent */
  readonly act?: ActivationName
  /** [experts, inter] twice, [experts, hidden] */
  readonly biases?: readonly [
    gate: ArrayLike<number>,
    up: ArrayLike<number>,
    down: ArrayLike<number>,
  ]
  /** The weights multiply the input and not the output. */
  readonly scaleInput?: boolean
}

/**
 * Sum over a token's experts of weight * down(act(gate x + bias, up x + bias) + bias), in float64; `round` is what int8
 * activations do to a row.
 */
export function fusedExperts(
  x: ArrayLike<number>,
  ids: ArrayLike<number>,
  weights: ArrayLike<number>,
  k: number,
  stacks: ExpertStacks,
  round: (row: Float32Array) => ArrayLike<number>,
): Float64Array {
  const { gate, up, down, hidden, inter, act = "silu", biases, scaleInput = false } = stacks
  const bias = (which: 0 | 1 | 2, at: number): number => biases?.[which][at] ?? 0
  const tokens = x.length / hidden
  const out = new Float64Array(tokens * hidden)
  const dot = (w: ArrayLike<number>, start: number, v: ArrayLike<number>, n: number): number => {
    let sum = 0
    for (let i = 0; i < n; i++) sum += (w[start + i] as number) * (v[i] as number)
    return sum
  }
  for (let t = 0; t < tokens; t++) {
    for (let j = 0; j < k; j++) {
      const weight = weights[t * k + j] as number
      const inner = scaleInput ? weight : 1
      const row = round(
        Float32Array.from({ length: hidden }, (_, i) => (x[t * hidden + i] as number) * inner),
      )
      const e = ids[t * k + j] as number
      const middle = new Float32Array(inter)
      for (let r = 0; r < inter; r++) {
        const at = (e * inter + r) * hidden
        middle[r] = gated(
          dot(gate, at, row, hidden) + bias(0, e * inter + r),
          dot(up, at, row, hidden) + bias(1, e * inter + r),
          act,
        )
      }
      const rounded = round(middle)
      for (let r = 0; r < hidden; r++) {
        const index = t * hidden + r
        out[index] =
          (out[index] as number) +
          (scaleInput ? 1 : weight) *
            (dot(down, (e * hidden + r) * inter, rounded, inter) + bias(2, e * hidden + r))
      }
    }
  }
  return out
}
