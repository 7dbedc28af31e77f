import type { SamplerName, SamplingParams } from "../../src/worker/protocol.ts"

/** What is left of a row between two samplers: tokens with their logits, in any order. */
interface Candidate {
  readonly id: number
  readonly logit: number
}

export interface Probable {
  readonly id: number
  readonly probability: number
}

export interface ChainInput {
  readonly logits: Float32Array
  readonly params: SamplingParams
  readonly prompt: readonly number[]
  readonly output: readonly number[]
  /** The number that decides whether xtc acts. */
  readonly xtc: number
  /** Of mirostat. */
  readonly mu?: number
  /** Scales every bound, to see which tokens rounding may keep or drop. */
  readonly slack?: number
}

export const DEFAULT_ORDER: readonly SamplerName[] = [
  "penalties",
  "dry",
  "top_n_sigma",
  "temperature",
  "top_k",
  "typ_p",
  "top_p",
  "min_p",
  "xtc",
]

const f32 = Math.fround

function sorted(list: readonly Candidate[]): Candidate[] {
  return list.toSorted((a, b) => (a.logit === b.logit ? a.id - b.id : b.logit > a.logit ? 1 : -1))
}

function softmax(list: readonly Candidate[]): number[] {
  const max = list.reduce((most, { logit }) => Math.max(most, logit), -Infinity)
  const weights = list.map(({ logit }) => (logit === max ? 1 : Math.exp(logit - max)))
  const sum = weights.reduce((a, b) => a + b, 0)
  return weights.map((weight) => weight / sum)
}

function entropy(list: readonly Candidate[]): number {
  return softmax(list).reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0)
}

/** The penalty of each token, by the definition: every earlier place is compared with the end, token by token. */
export function dryPenalties(
  params: SamplingParams,
  history: readonly number[],
): Map<number, number> {
  const { dryMultiplier = 0, dryBase = 1.75, dryAllowedLength = 2, dryPenaltyLastN = 64 } = params
  const penalties = new Map<number, number>()
  if (dryMultiplier === 0 || dryBase < 1 || dryPenaltyLastN === 0) return penalties
  const seen = dryPenaltyLastN < 0 ? history : history.slice(-dryPenaltyLastN)
  if (seen.length <= dryAllowedLength) return penalties
  const breakers = params.dryBreakers ?? []
  // the last breaker that is complete: what comes after it may be a repetition
  let start = 0
  for (let at = seen.length - 1; at >= 0 && start === 0; at--) {
    const ends = breakers
      .filter((tokens) => tokens.every((token, i) => seen[at + i] === token))
      .map((tokens) => at + tokens.length)
    if (ends.length > 0) start = Math.max(...ends)
  }
  const longest = seen.length - start
  for (let at = 1; at < seen.length; at++) {
    let length = 0
    while (
      length < longest &&
      length < at &&
      seen[at - 1 - length] === seen[seen.length - 1 - length]
    )
      length++
    if (length < dryAllowedLength) continue
    const token = seen[at] as number
    if (breakers.some((tokens) => tokens.length === 1 && tokens[0] === token)) continue
    const penalty = dryMultiplier * dryBase ** (length - dryAllowedLength)
    penalties.set(token, Math.max(penalty, penalties.get(token) ?? 0))
  }
  return penalties
}

function apply(name: SamplerName, list: Candidate[], input: ChainInput): Candidate[] {
  const { params, slack = 0 } = input
  switch (name) {
    case "penalties": {
      const all = [...input.prompt, ...input.output]
      const lastN = params.penaltyLastN ?? -1
      const from = lastN < 0 ? 0 : Math.max(0, all.length - lastN)
      const seen = new Set(all.slice(from))
      const output = all.slice(Math.max(from, input.prompt.length))
      return list.map(({ id, logit }) => {
        if (!seen.has(id)) return { id, logit }
        const r = f32(params.repetitionPenalty)
        const times = output.filter((token) => token === id).length
        const less =
          times > 0 ? f32(params.presencePenalty) + times * f32(params.frequencyPenalty) : 0
        return { id, logit: (logit > 0 ? logit / r : logit * r) - less }
      })
    }
    case "dry": {
      const penalties = dryPenalties(params, [...input.prompt, ...input.output])
      return list.map(({ id, logit }) => ({ id, logit: logit - (penalties.get(id) ?? 0) }))
    }
    case "top_n_sigma": {
      const n = params.topNSigma ?? 0
      if (n <= 0 || list.length < 2) return list
      const mean = list.reduce((sum, { logit }) => sum + logit, 0) / list.length
      const variance = list.reduce((sum, { logit }) => sum + (logit - mean) ** 2, 0) / list.length
      const max = Math.max(...list.map(({ logit }) => logit))
      const bound = max - f32(n) * Math.sqrt(variance) * (1 + slack)
      return list.filter(({ logit }) => logit >= bound)
    }
    case "temperature": {
      let temperature = f32(params.temperature)
      const range = f32(params.dynatempRange ?? 0)
      if (range > 0) {
        if (list.length < 2) return list
        const low = Math.max(0, temperature - range)
        const evenness = entropy(list) / Math.log(list.length)
        temperature =
          low + (temperature + range - low) * evenness ** f32(params.dynatempExponent ?? 1)
      }
      if (temperature === 0) return sorted(list).slice(0, 1)
      return list.map(({ id, logit }) => ({ id, logit: logit / temperature }))
    }
    case "top_k":
      return params.topK > 0 ? sorted(list).slice(0, params.topK) : list
    case "typ_p": {
      const p = f32(params.typicalP ?? 1)
      if (p >= 1) return list
      const h = entropy(list)
      const probabilities = softmax(list)
      const order = list
        .map((candidate, i) => ({ candidate, p: probabilities[i] as number }))
        .filter((one) => one.p > 0)
        .toSorted((a, b) => Math.abs(-Math.log(a.p) - h) - Math.abs(-Math.log(b.p) - h))
      let sum = 0
      const end = order.findIndex((one) => (sum += one.p) > p * (1 + slack))
      return (end < 0 ? order : order.slice(0, end + 1)).map(({ candidate }) => candidate)
    }
    case "top_p": {
      if (params.topP >= 1) return list
      const order = sorted(list)
      const probabilities = softmax(order)
      let sum = 0
      const end = probabilities.findIndex((p) => (sum += p) >= f32(params.topP) * (1 + slack))
      return end < 0 ? order : order.slice(0, end + 1)
    }
    case "min_p": {
      if (params.minP <= 0) return list
      const order = sorted(list)
      const probabilities = softmax(order)
      const least = f32(params.minP) * (probabilities[0] as number) * (1 - slack)
      return order.filter((_, i) => i === 0 || (probabilities[i] as number) >= least)
    }
    case "xtc": {
      const threshold = f32(params.xtcThreshold ?? 0.1)
      if (input.xtc >= f32(params.xtcProbability ?? 0) || threshold > 0.5 || list.length < 2)
        return list
      const order = sorted(list)
      const above = softmax(order).filter((p) => p >= threshold * (1 - slack) && p > 0).length
      return above > 1 ? order.slice(above - 1) : order
    }
  }
}

/** The distribution that a chain of samplers leaves, best first. */
export function chain(input: ChainInput): Probable[] {
  const { params, slack = 0 } = input
  let list: Candidate[] = Array.from(input.logits, (logit, id) => ({ id, logit }))
  for (const [token, bias] of params.logitBias ?? [])
    list = list.map(({ id, logit }) => ({ id, logit: id === token ? logit + f32(bias) : logit }))
  list = list.filter(({ logit }) => logit > -Infinity)
  const version = params.mirostat ?? 0
  const order: readonly SamplerName[] =
    version > 0 ? ["penalties", "dry", "temperature"] : (params.samplers ?? DEFAULT_ORDER)
  for (const name of order) list = apply(name, list, input)
  list = sorted(list)
  if (version > 0) list = list.slice(0, mirostatCount(version, list, input, slack))
  const probabilities = softmax(list)
  return list
    .map(({ id }, i) => ({ id, probability: probabilities[i] as number }))
    .filter(({ probability }) => probability > 0)
}

function mirostatCount(
  version: number,
  list: readonly Candidate[],
  input: ChainInput,
  slack: number,
): number {
  const mu = input.mu ?? 2 * (input.params.mirostatTau ?? 5)
  const probabilities = softmax(list)
  if (version === 2) {
    const end = probabilities.findIndex((p) => -Math.log2(p) > mu * (1 + slack))
    return end < 0 ? list.length : Math.max(1, end)
  }
  let products = 0
  let squares = 0
  for (let i = 0; i < Math.min(99, list.length - 1); i++) {
    // such tokens cannot be drawn, so they say nothing of those that can
    if ((probabilities[i + 1] as number) < Math.exp(-87) * (probabilities[0] as number)) break
    const t = Math.log((i + 2) / (i + 1))
    products += t * Math.log((probabilities[i] as number) / (probabilities[i + 1] as number))
    squares += t * t
  }
  const exponent = products / squares
  const excess = exponent - 1
  const n = input.logits.length
  const k = ((excess * 2 ** mu) / (1 - n ** -excess)) ** (1 / exponent)
  return k * (1 + slack) >= 1 ? Math.floor(k * (1 + slack)) : 1
}

/** mu after a token was drawn. */
export function mirostatStep(input: ChainInput, token: number): number {
  const { params, mu = 2 * (params.mirostatTau ?? 5) } = input
  const found = chain(input).find(({ id }) => id === token)
  const surprise = -Math.log2(found?.probability ?? Number.NaN)
  return mu - f32(params.mirostatEta ?? 0.1) * (surprise - f32(params.mirostatTau ?? 5))
}

/** Whether `token` may be drawn at `uniform`, allowing f32 rounding at every bound. */
export function mayDraw(input: ChainInput, uniform: number, token: number): boolean {
  const tolerance = 3e-5
  return [0, tolerance, -tolerance].some((slack) => {
    let before = 0
    for (const { id, probability } of chain({ ...input, slack })) {
      if (before > uniform + tolerance) return false
      const after = before + probability
      if (id === token) return uniform <= after + tolerance
      before = after
    }
    return false
  })
}
