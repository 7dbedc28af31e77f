export interface Sample {
  name: string
  labels: Record<string, string>
  value: number
}

const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g

/** The samples of Prometheus' text format; comments and lines that are none are left out. */
export function parseMetrics(text: string): Sample[] {
  return text.split("\n").flatMap((line): Sample[] => {
    const match = LINE.exec(line)
    if (match?.[1] === undefined) return []
    const labels: Record<string, string> = {}
    for (const [, name = "", value = ""] of (match[2] ?? "").matchAll(LABEL))
      labels[name] = value.replace(/\\(.)/g, (_, c: string) => (c === "n" ? "\n" : c))
    const value = match[3] === "+Inf" ? Number.POSITIVE_INFINITY : Number(match[3])
    return [{ name: match[1], labels, value }]
  })
}

/**
 * The value below which `share` of a model's observations lie, between the bounds of its bucket as Prometheus'
 * histogram_quantile has it; `undefined` without observations.
 */
export function quantile(
  samples: readonly Sample[],
  histogram: string,
  model: string,
  share: number,
): number | undefined {
  const buckets = samples
    .filter(({ name, labels }) => name === `${histogram}_bucket` && labels["model_name"] === model)
    .map(({ labels, value }) => ({
      bound: labels["le"] === "+Inf" ? Number.POSITIVE_INFINITY : Number(labels["le"]),
      count: value,
    }))
    .sort((a, b) => a.bound - b.bound)
  const total = buckets.at(-1)?.count ?? 0
  if (total === 0) return undefined
  const rank = share * total
  let below = { bound: 0, count: 0 }
  for (const bucket of buckets) {
    if (bucket.count >= rank) {
      if (!Number.isFinite(bucket.bound)) return below.bound
      const inside = bucket.count - below.count
      const part = inside === 0 ? 1 : (rank - below.count) / inside
      return below.bound + (bucket.bound - below.bound) * part
    }
    below = bucket
  }
  return below.bound
}
