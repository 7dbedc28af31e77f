import type { SamplingParams } from "../../src/worker/protocol.ts"

/** The definition of the sampler, in float64 but for the logits: bias and penalties give f32 logits, as in the kernel. */

const f32 = Math.fround

export const OFF: SamplingParams = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
}

/** Logits after bias and penalties. */
export function penalised(
  logits: Float32Array,
  params: SamplingParams,
  prompt: readonly number[] = [],
  output: readonly number[] = [],
): Float32Array {
  const out = logits.slice()
  for (const [token, bias] of params.logitBias ?? [])
    out[token] = (out[token] as number) + f32(bias)
  const repetition = f32(params.repetitionPenalty)
  for (const token of new Set([...prompt, ...output])) {
    const x = out[token] as number
    out[token] = x > 0 ? x / repetition : x * repetition
    const times = output.filter((t) => t === token).length
    if (times === 0) continue
    const penalty = f32(f32(params.presencePenalty) + f32(times * f32(params.frequencyPenalty)))
    out[token] = (out[token] as number) - penalty
  }
  return out
}

export interface Survivor {
  readonly id: number
  readonly probability: number
}

/** Token ids, best first, ties by id; NaN comes last. */
export function ranked(logits: Float32Array): Uint32Array {
  const order = Uint32Array.from(logits, (_, i) => i)
  return order.sort((a, b) => {
    const [x, y] = [logits[a] as number, logits[b] as number]
    if (Number.isNaN(x) || Number.isNaN(y))
      return Number(Number.isNaN(x)) - Number(Number.isNaN(y)) || a - b
    return x === y ? a - b : y > x ? 1 : -1
  })
}

/** What temperature and filters leave, most probable first. `slack` scales the bounds of top-p and min-p. */
export function survivors(
  logits: Float32Array,
  params: SamplingParams,
  slack = 0,
  order = ranked(logits),
): Survivor[] {
  const first = order[0] as number
  const max = logits[first] as number
  if (params.temperature === 0 || !(max > -Infinity)) return [{ id: first, probability: 1 }]
  const temperature = f32(params.temperature)
  const weightOf = (id: number): number => {
    const x = logits[id] as number
    if (Number.isNaN(x)) return 0
    return x === max ? 1 : Math.exp((x - max) / temperature)
  }
  let kept = Array.from(params.topK > 0 ? order.slice(0, params.topK) : order, (id) => ({
    id,
    probability: weightOf(id),
  }))
  if (params.topP < 1) {
    const total = kept.reduce((sum, s) => sum + s.probability, 0)
    const enough = f32(params.topP) * total * (1 + slack)
    let sum = 0
    const cut = kept.findIndex((s) => (sum += s.probability) >= enough)
    if (cut >= 0) kept = kept.slice(0, cut + 1)
  }
  const least = f32(params.minP) * (1 - slack)
  kept = kept.filter((s, i) => i === 0 || s.probability >= least)
  const total = kept.reduce((sum, s) => sum + s.probability, 0)
  return kept.map((s) => ({ id: s.id, probability: s.probability / total }))
}

/** Whether `token` may be drawn at `uniform`, allowing f32 rounding of weights at every boundary. */
export function mayDraw(
  logits: Float32Array,
  params: SamplingParams,
  uniform: number,
  token: number,
  order = ranked(logits),
): boolean {
  const tolerance = 2e-5
  return [0, tolerance, -tolerance].some((slack) => {
    let before = 0
    for (const { id, probability } of survivors(logits, params, slack, order)) {
      if (before > uniform + tolerance) return false
      const after = before + probability
      if (id === token) return probability > 0 && uniform <= after + tolerance
      before = after
    }
    return false
  })
}

/** Log-probabilities of softmax(logits). */
export function logprobs(logits: Float32Array): Float64Array {
  const max = logits.reduce((a, b) => (b > a ? b : a), -Infinity)
  let sum = 0
  for (const x of logits) if (!Number.isNaN(x)) sum += x === max ? 1 : Math.exp(x - max)
  return Float64Array.from(logits, (x) => {
    if (Number.isNaN(x)) return -Infinity
    return (x === max ? 0 : x - max) - Math.log(sum)
  })
}
