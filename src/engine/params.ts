import { ConfigError } from "../errors.ts"
import { isSamplerName } from "../ops/index.ts"
import type { ExtraSampling, GenerateParams } from "../worker/protocol.ts"

/** Log-probabilities that one token event may carry: what the largest of the served APIs asks for, with room. */
export const MAX_LOGPROBS = 128

/** Biases of one request: OpenAI's bound is 1024. */
export const MAX_LOGIT_BIAS = 1024

/** Always the likeliest token, nothing changed by samplers or penalties. */
export const GREEDY = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  stopTokens: [],
} as const satisfies Partial<GenerateParams>

/** @throws ConfigError naming the first parameter that is out of range */
export function checkParams(params: GenerateParams, vocabSize: number): void {
  within("maxTokens", params.maxTokens, 1, Number.MAX_SAFE_INTEGER, true)
  within("temperature", params.temperature, 0, Number.MAX_VALUE)
  within("topK", params.topK, 0, 2 ** 31 - 1, true)
  within("topP", params.topP, 0, 1)
  within("minP", params.minP, 0, 1)
  if (!(params.repetitionPenalty > 0 && params.repetitionPenalty < Infinity))
    throw new ConfigError(`repetitionPenalty ${params.repetitionPenalty}: expected more than 0`)
  within("presencePenalty", params.presencePenalty, -1e6, 1e6)
  within("frequencyPenalty", params.frequencyPenalty, -1e6, 1e6)
  checkExtra(params, vocabSize)
  if (params.seed !== undefined)
    within("seed", params.seed, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, true)
  if (params.logprobs !== undefined)
    within("logprobs", params.logprobs, 0, Math.min(MAX_LOGPROBS, vocabSize), true)
  if (params.promptLogprobs !== undefined)
    within("promptLogprobs", params.promptLogprobs, 0, Math.min(MAX_LOGPROBS, vocabSize), true)
  if (params.thinking !== undefined) {
    within("thinking.budget", params.thinking.budget, 0, Number.MAX_SAFE_INTEGER, true)
    for (const token of params.thinking.closing)
      within("thinking.closing token", token, 0, vocabSize - 1, true)
  }
  const bias = params.logitBias ?? []
  if (bias.length > MAX_LOGIT_BIAS)
    throw new ConfigError(`logitBias has ${bias.length} entries: at most ${MAX_LOGIT_BIAS}`)
  for (const [token, value] of bias) {
    within("logitBias token", token, 0, vocabSize - 1, true)
    if (Number.isNaN(value)) throw new ConfigError(`logitBias of token ${token} is not a number`)
  }
}

/** Tokens of all sequence breakers of dry; many tokens of a vocabulary hold a line break. */
const MAX_DRY_BREAKERS = 1 << 20

type Numbers = {
  [
    K in keyof ExtraSampling as ExtraSampling[K] extends number | undefined ? K : never
  ]-?: readonly [min: number, max: number, integer?: boolean]
}

const EXTRA_RANGES: Numbers = {
  typicalP: [0, 1],
  topNSigma: [0, 1e6],
  xtcProbability: [0, 1],
  xtcThreshold: [0, 1],
  dynatempRange: [0, 1e6],
  dynatempExponent: [0, 1e6],
  dryMultiplier: [0, 1e6],
  dryBase: [0, 1e6],
  dryAllowedLength: [0, 2 ** 31 - 1, true],
  dryPenaltyLastN: [-1, 2 ** 31 - 1, true],
  mirostat: [0, 2, true],
  mirostatTau: [0, 1e6],
  mirostatEta: [0, 1e6],
  penaltyLastN: [-1, 2 ** 31 - 1, true],
}

function checkExtra(params: GenerateParams, vocabSize: number): void {
  for (const [name, [min, max, integer]] of Object.entries(EXTRA_RANGES)) {
    const value = params[name as keyof Numbers]
    if (value !== undefined) within(name, value, min, max, integer)
  }
  const { samplers, dryBreakers = [] } = params
  for (const [i, name] of (samplers ?? []).entries()) {
    if (!isSamplerName(name)) throw new ConfigError(`samplers[${i}] "${name}": not a known sampler`)
    if ((samplers ?? []).indexOf(name) < i)
      throw new ConfigError(`samplers[${i}] "${name}": named twice`)
  }
  if (samplers?.length === 0) throw new ConfigError("samplers is empty: expected at least one name")
  if (dryBreakers.length > MAX_DRY_BREAKERS)
    throw new ConfigError(
      `dryBreakers has ${dryBreakers.length} entries: at most ${MAX_DRY_BREAKERS}`,
    )
  for (const tokens of dryBreakers)
    for (const token of tokens) within("dryBreakers token", token, 0, vocabSize - 1, true)
}

/** @throws ConfigError naming the first token that the model does not have */
export function checkTokens(ids: Int32Array, vocabSize: number): void {
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i] as number
    if (id < 0 || id >= vocabSize)
      throw new ConfigError(
        `prompt token ${i} is ${id}: the model's vocabulary is 0..${vocabSize - 1}`,
      )
  }
}

function within(name: string, value: number, min: number, max: number, integer = false): void {
  if (value >= min && value <= max && (!integer || Number.isInteger(value))) return
  const kind = integer ? "an integer" : "a number"
  throw new ConfigError(`${name} ${value}: expected ${kind} in ${min}..${max}`)
}
