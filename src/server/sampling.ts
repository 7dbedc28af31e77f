import type { GenerateParams } from "../worker/protocol.ts"
import { checkIds } from "./token-ids.ts"
import type { SamplingDefaults, ServerTokenizer } from "./types.ts"

/**
 * Sampling as a request gives it, in the engine's names; null and undefined mean the server's
 * default.
 */
export interface SamplingRequest {
  readonly temperature?: number | null | undefined
  readonly topK?: number | null | undefined
  readonly topP?: number | null | undefined
  readonly minP?: number | null | undefined
  readonly repetitionPenalty?: number | null | undefined
  readonly presencePenalty?: number | null | undefined
  readonly frequencyPenalty?: number | null | undefined
  readonly logitBias?: Readonly<Record<string, number>> | null | undefined
  readonly seed?: number | null | undefined
  readonly stopTokens?: readonly number[] | null | undefined
  readonly ignoreEos?: boolean | null | undefined
  readonly logprobs?: number | undefined
}

/** The engine's parameters, for choice 0; `forChoice` derives the others'. */
export function generateParams(
  request: SamplingRequest,
  maxTokens: number,
  defaults: SamplingDefaults,
  tokenizer: ServerTokenizer,
): GenerateParams {
  const inVocab = (token: number, param: string): number => {
    checkIds(tokenizer, [token], param)
    return token
  }
  const stopTokens = (request.stopTokens ?? []).map((id) => inVocab(id, "stop_token_ids"))
  const params: GenerateParams = {
    temperature: request.temperature ?? defaults.temperature,
    topK: Math.max(0, request.topK ?? defaults.topK),
    topP: request.topP ?? defaults.topP,
    minP: request.minP ?? defaults.minP,
    repetitionPenalty: request.repetitionPenalty ?? defaults.repetitionPenalty,
    presencePenalty: request.presencePenalty ?? defaults.presencePenalty,
    frequencyPenalty: request.frequencyPenalty ?? defaults.frequencyPenalty,
    maxTokens,
    stopTokens: [...new Set([...tokenizer.eogIds, ...stopTokens])],
  }
  const bias = Object.entries(request.logitBias ?? {})
  return {
    ...params,
    ...(bias.length === 0
      ? {}
      : {
          logitBias: bias.map(([id, value]) => [inVocab(Number(id), "logit_bias"), value] as const),
        }),
    ...(request.ignoreEos === true ? { ignoreEos: true } : {}),
    ...(request.logprobs === undefined ? {} : { logprobs: request.logprobs }),
    ...(typeof request.seed === "number" && request.seed !== -1
      ? { seed: uint32(request.seed) }
      : {}),
  }
}

/** Choices of one request draw differently, and still the same for the same seed. */
export function forChoice(params: GenerateParams, choice: number): GenerateParams {
  if (choice === 0 || params.seed === undefined) return params
  return { ...params, seed: uint32(params.seed + choice) }
}

function uint32(value: number): number {
  const range = 2 ** 32
  return ((value % range) + range) % range
}
