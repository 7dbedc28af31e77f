import { ConfigError } from "../errors.ts"
import type { GenerateParams } from "../worker/protocol.ts"

/** Log-probabilities that one token event may carry: what the largest of the served APIs asks for, with room. */
export const MAX_LOGPROBS = 128

/** Biases of one request: OpenAI's bound is 1024. */
export const MAX_LOGIT_BIAS = 1024

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
  if (params.seed !== undefined)
    within("seed", params.seed, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, true)
  if (params.logprobs !== undefined)
    within("logprobs", params.logprobs, 0, Math.min(MAX_LOGPROBS, vocabSize), true)
  const bias = params.logitBias ?? []
  if (bias.length > MAX_LOGIT_BIAS)
    throw new ConfigError(`logitBias has ${bias.length} entries: at most ${MAX_LOGIT_BIAS}`)
  for (const [token, value] of bias) {
    within("logitBias token", token, 0, vocabSize - 1, true)
    if (Number.isNaN(value)) throw new ConfigError(`logitBias of token ${token} is not a number`)
  }
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
