/** Float64 definition of the router of a mixture of experts. logits [tokens, experts]; NaN counts as -inf. */
export function topkSoftmax(
  logits: ArrayLike<number>,
  experts: number,
  k: number,
  normalize: boolean,
): { ids: number[]; weights: number[] } {
  const ids: number[] = []
  const weights: number[] = []
  for (let start = 0; start < logits.length; start += experts) {
    const row = Array.from({ length: experts }, (_, i) => {
      const x = logits[start + i] as number
      return Number.isNaN(x) ? -Infinity : x
    })
    const max = Math.max(...row)
    const exps = row.map((x) => (x === max ? 1 : Math.exp(x - max)))
    const order = row.map((_, i) => i)
    order.sort((a, b) => {
      const [x, y] = [row[a] as number, row[b] as number]
      return x === y ? a - b : y > x ? 1 : -1
    })
    const best = order.slice(0, k)
    const total = (normalize ? best.map((i) => exps[i] as number) : exps).reduce((a, b) => a + b, 0)
    ids.push(...best)
    weights.push(...best.map((i) => (exps[i] as number) / total))
  }
  return { ids, weights }
}
