/** Float64 definitions of the ops of linear attention. Plain arrays, row-major. */

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x))
const softplus = (x: number): number => (x > 30 ? x : Math.log1p(Math.exp(x)))

/** silu(conv) of one sequence from an empty state; x [tokens, channels], weight [kernel, channels]. */
export function causalConv1d(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  channels: number,
): Float64Array {
  const kernel = weight.length / channels
  const out = new Float64Array(x.length)
  for (let t = 0; t * channels < x.length; t++) {
    for (let c = 0; c < channels; c++) {
      let sum = 0
      for (let j = 0; j < kernel; j++) {
        const from = t - kernel + 1 + j
        if (from >= 0)
          sum += (weight[j * channels + c] as number) * (x[from * channels + c] as number)
      }
      out[t * channels + c] = sum * sigmoid(sum)
    }
  }
  return out
}

export interface DeltaRule {
  /** [tokens, kHeads, kDim] */
  readonly q: ArrayLike<number>
  readonly k: ArrayLike<number>
  /** [tokens, kHeads · group, vDim] */
  readonly v: ArrayLike<number>
  /** [tokens, kHeads · group] */
  readonly b: ArrayLike<number>
  readonly a: ArrayLike<number>
  readonly decay: ArrayLike<number>
  readonly dtBias: ArrayLike<number>
  readonly kHeads: number
  readonly group: number
  readonly kDim: number
  readonly vDim: number
  readonly scale: number
  readonly eps: number
}

/** One sequence from an empty state: outputs [tokens, heads, vDim] and the last state [heads, kDim, vDim]. */
export function gatedDeltaRule(o: DeltaRule): { out: Float64Array; state: Float64Array } {
  const { kHeads, group, kDim, vDim } = o
  const heads = kHeads * group
  const tokens = o.b.length / heads
  const out = new Float64Array(tokens * heads * vDim)
  const state = new Float64Array(heads * kDim * vDim)
  const unit = (x: ArrayLike<number>, start: number, scale: number): Float64Array => {
    let sum = 0
    for (let i = 0; i < kDim; i++) sum += (x[start + i] as number) ** 2
    const factor = scale / Math.sqrt(sum + o.eps)
    return Float64Array.from({ length: kDim }, (_, i) => (x[start + i] as number) * factor)
  }
  for (let t = 0; t < tokens; t++) {
    for (let h = 0; h < heads; h++) {
      const keyHead = (t * kHeads + Math.floor(h / group)) * kDim
      const q = unit(o.q, keyHead, o.scale)
      const k = unit(o.k, keyHead, 1)
      const at = t * heads + h
      const beta = sigmoid(o.b[at] as number)
      const rate = o.decay[h] as number
      const keep = Math.exp(rate * softplus((o.a[at] as number) + (o.dtBias[h] as number)))
      for (let j = 0; j < vDim; j++) {
        const column = h * kDim * vDim + j
        let memory = 0
        for (let i = 0; i < kDim; i++) {
          const value = (state[column + i * vDim] as number) * keep
          state[column + i * vDim] = value
          memory += value * (k[i] as number)
        }
        const delta = beta * ((o.v[at * vDim + j] as number) - memory)
        let sum = 0
        for (let i = 0; i < kDim; i++) {
          const value = (state[column + i * vDim] as number) + (k[i] as number) * delta
          state[column + i * vDim] = value
          sum += value * (q[i] as number)
        }
        out[at * vDim + j] = sum
      }
    }
  }
  return { out, state }
}

/** x, gate [rows, n], weight [n] */
export function gatedRmsNorm(
  x: ArrayLike<number>,
  gate: ArrayLike<number>,
  weight: ArrayLike<number>,
  eps: number,
): Float64Array {
  const n = weight.length
  const out = new Float64Array(x.length)
  for (let row = 0; row < x.length; row += n) {
    let sum = 0
    for (let i = 0; i < n; i++) sum += (x[row + i] as number) ** 2
    const scale = 1 / Math.sqrt(sum / n + eps)
    for (let i = row; i < row + n; i++) {
      const z = gate[i] as number
      out[i] = (x[i] as number) * scale * (weight[i - row] as number) * z * sigmoid(z)
    }
  }
  return out
}

/** gate has x's length, or one value a row of n */
export function sigmoidMul(x: ArrayLike<number>, gate: ArrayLike<number>, n: number): Float64Array {
  const step = gate.length === x.length ? 1 : n
  return Float64Array.from(
    { length: x.length },
    (_, i) => (x[i] as number) * sigmoid(gate[Math.floor(i / step)] as number),
  )
}
