/** Float64 definition of attention of one sequence. */
export interface AttentionCase {
  readonly heads: number
  readonly kvHeads: number
  readonly kDim: number
  readonly vDim: number
  readonly scale: number
  readonly softCap?: number
  readonly slidingWindow?: number
  readonly chunkSize?: number
  readonly temperature?: { readonly scale: number; readonly floor: number }
  readonly sinks?: ArrayLike<number>
  /** Every query sees every key; otherwise those up to its own position. */
  readonly bidirectional?: boolean
}

/** Llama 4's growth of the scores with the query's position. */
function temperature({ temperature: t }: AttentionCase, position: number): number {
  return t === undefined ? 1 : 1 + t.scale * Math.log(1 + Math.floor((position + 1) / t.floor))
}

/** q [queries, heads, kDim], k [length, kvHeads, kDim], v [length, kvHeads, vDim]; the queries are the last positions. */
export function attention(
  q: ArrayLike<number>,
  k: ArrayLike<number>,
  v: ArrayLike<number>,
  spec: AttentionCase,
): Float64Array {
  const { heads, kvHeads, kDim, vDim } = spec
  const queries = q.length / (heads * kDim)
  const length = k.length / (kvHeads * kDim)
  const window = spec.slidingWindow ?? 0
  const chunk = spec.chunkSize ?? 0
  const cap = spec.softCap ?? 0
  const out = new Float64Array(queries * heads * vDim)
  for (let t = 0; t < queries; t++) {
    const position = length - queries + t
    const chunkStart = chunk > 0 ? position - (position % chunk) : 0
    const first = Math.max(chunkStart, window > 0 ? position - window + 1 : 0)
    const last = spec.bidirectional ? length - 1 : position
    const scale = spec.scale * temperature(spec, position)
    for (let h = 0; h < heads; h++) {
      const kv = Math.floor(h / (heads / kvHeads))
      const scores: number[] = []
      for (let j = first; j <= last; j++) {
        let dot = 0
        for (let d = 0; d < kDim; d++)
          dot +=
            (q[(t * heads + h) * kDim + d] as number) * (k[(j * kvHeads + kv) * kDim + d] as number)
        scores.push(cap > 0 ? cap * Math.tanh((dot * scale) / cap) : dot * scale)
      }
      const sink = spec.sinks?.[h]
      const top = Math.max(...scores, sink ?? -Infinity)
      const weights = scores.map((score) => Math.exp(score - top))
      const sum = weights.reduce((a, b) => a + b, sink === undefined ? 0 : Math.exp(sink - top))
      for (let j = first; j <= last; j++) {
        const weight = (weights[j - first] as number) / sum
        for (let d = 0; d < vDim; d++) {
          const at = (t * heads + h) * vDim + d
          out[at] = (out[at] as number) + weight * (v[(j * kvHeads + kv) * vDim + d] as number)
        }
      }
    }
  }
  return out
}
