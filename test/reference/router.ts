/** What test/ops/moe-router.test.ts asks of the op, with defaults filled in. */
export interface RouterCase {
  readonly topK: number
  readonly score: "softmax" | "sigmoid" | "chosen-softmax"
  readonly normalize: boolean
  readonly bias: readonly number[] | null
  readonly groups: number
  readonly topkGroups: number
  readonly groupScore: "max" | "top2-sum"
  readonly scale: number
}

/** Indices of the n greatest values, ties by the lower index. */
function best(values: readonly number[], n: number): number[] {
  const order = values.map((_, i) => i)
  order.sort((a, b) => {
    const [x, y] = [values[a] as number, values[b] as number]
    return x === y ? a - b : y > x ? 1 : -1
  })
  return order.slice(0, n)
}

function softmax(row: readonly number[]): number[] {
  const max = Math.max(...row)
  const exps = row.map((x) => (x === max ? 1 : Math.exp(x - max)))
  const sum = exps.reduce((a, b) => a + b, 0)
  return exps.map((x) => x / sum)
}

/** Float64 definition of the router of a mixture of experts. logits [tokens, experts]; NaN counts as -inf. */
export function routeExperts(
  logits: ArrayLike<number>,
  experts: number,
  options: RouterCase,
): { ids: number[]; weights: number[] } {
  const { topK, score, normalize, bias, groups, topkGroups, groupScore, scale } = options
  const ids: number[] = []
  const weights: number[] = []
  for (let start = 0; start < logits.length; start += experts) {
    const row = Array.from({ length: experts }, (_, i) => {
      const x = logits[start + i] as number
      return Number.isNaN(x) ? -Infinity : x
    })
    const scores =
      score === "softmax"
        ? softmax(row)
        : score === "sigmoid"
          ? row.map((x) => 1 / (1 + Math.exp(-x)))
          : row
    const biased = scores.map((x, i) => x + (bias?.[i] ?? 0))
    // both scores grow with the logit, so without a bias the logits decide
    const choice = bias === null ? row : biased
    const size = experts / groups
    const groupScores = Array.from({ length: groups }, (_, g) => {
      const members = best(biased.slice(g * size, (g + 1) * size), 2).map((i) => i + g * size)
      const first = members[0] as number
      if (groupScore === "max") return choice[first] as number
      return members.reduce((sum, i) => sum + (biased[i] as number), 0)
    })
    const allowed = new Set(best(groupScores, topkGroups))
    const candidates = row.map((_, i) => i).filter((i) => allowed.has(Math.floor(i / size)))
    const chosen = best(
      candidates.map((i) => choice[i] as number),
      topK,
    ).map((i) => candidates[i] as number)
    let own = chosen.map((i) => scores[i] as number)
    if (score === "chosen-softmax") own = softmax(own)
    const divisor = normalize ? own.reduce((a, b) => a + b, 0) + 1e-20 : 1
    ids.push(...chosen)
    weights.push(...own.map((w) => (w / divisor) * scale))
  }
  return { ids, weights }
}
