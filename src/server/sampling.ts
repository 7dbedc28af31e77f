import type { z } from "@hono/zod-openapi"

import { type ExtraSampling, type GenerateParams, SAMPLER_NAMES } from "../worker/protocol.ts"
import { breakerTokens, DRY_BREAKERS, readSamplers } from "./samplers.ts"
import type { extraSamplingFields } from "./schema.ts"
import { checkIds } from "./token-ids.ts"
import type { SamplingDefaults, ServerTokenizer } from "./types.ts"

/**
 * Sampling as a request gives it, in the engine's names; null and undefined mean the server's
 * default.
 */
export interface SamplingRequest {
  readonly extra?: ExtraRequest
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
  readonly promptLogprobs?: number | undefined
  readonly tellsProgress?: boolean | undefined
}

type ExtraRequest = Partial<
  Pick<SamplingDefaults, keyof Omit<ExtraSampling, "dryBreakers"> | "drySequenceBreakers">
>

type ExtraFields = {
  readonly [K in keyof typeof extraSamplingFields]?:
    z.output<(typeof extraSamplingFields)[K]> | undefined
} & {
  readonly samplers?: string | readonly string[] | null | undefined
  readonly typ_p?: number | null | undefined
}

/** What acts, by llama.cpp's names. */
export function samplingFields(params: SamplingDefaults | GenerateParams): Record<string, unknown> {
  return {
    temperature: params.temperature,
    top_k: params.topK,
    top_p: params.topP,
    min_p: params.minP,
    repeat_penalty: params.repetitionPenalty,
    presence_penalty: params.presencePenalty,
    frequency_penalty: params.frequencyPenalty,
    typical_p: params.typicalP ?? 1,
    top_n_sigma: params.topNSigma ?? 0,
    xtc_probability: params.xtcProbability ?? 0,
    dynatemp_range: params.dynatempRange ?? 0,
    dry_multiplier: params.dryMultiplier ?? 0,
    mirostat: params.mirostat ?? 0,
    samplers: params.samplers ?? SAMPLER_NAMES,
  }
}

/** llama.cpp's fields in the engine's names; what is null or absent is left out. */
export function extraSampling(body: ExtraFields): ExtraRequest {
  const samplers = body.samplers ? readSamplers(body.samplers) : undefined
  const named = {
    typicalP: body.typical_p ?? body.typ_p,
    topNSigma: body.top_n_sigma && Math.max(0, body.top_n_sigma),
    xtcProbability: body.xtc_probability,
    xtcThreshold: body.xtc_threshold,
    dynatempRange: body.dynatemp_range,
    dynatempExponent: body.dynatemp_exponent,
    dryMultiplier: body.dry_multiplier,
    dryBase: body.dry_base,
    dryAllowedLength: body.dry_allowed_length,
    dryPenaltyLastN: body.dry_penalty_last_n,
    drySequenceBreakers: body.dry_sequence_breakers,
    mirostat: body.mirostat,
    mirostatTau: body.mirostat_tau,
    mirostatEta: body.mirostat_eta,
    penaltyLastN: body.repeat_last_n,
    samplers: typeof samplers === "string" ? undefined : samplers,
  }
  return Object.fromEntries(
    Object.entries(named).filter(([, value]) => value !== undefined && value !== null),
  )
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
  const seed = request.seed ?? defaults.seed ?? -1
  const bias = Object.entries(request.logitBias ?? {})
  return {
    ...params,
    ...extraParams(request.extra, defaults, tokenizer),
    ...(bias.length === 0
      ? {}
      : {
          logitBias: bias.map(([id, value]) => [inVocab(Number(id), "logit_bias"), value] as const),
        }),
    ...(request.ignoreEos === true ? { ignoreEos: true } : {}),
    ...(request.logprobs === undefined ? {} : { logprobs: request.logprobs }),
    ...(request.promptLogprobs === undefined ? {} : { promptLogprobs: request.promptLogprobs }),
    ...(request.tellsProgress === true ? { tellsProgress: true } : {}),
    ...(seed === -1 ? {} : { seed: uint32(seed) }),
  }
}

function extraParams(
  request: ExtraRequest | undefined,
  defaults: SamplingDefaults,
  tokenizer: ServerTokenizer,
): ExtraSampling {
  const all = { ...defaults, ...request }
  const kept: Record<string, unknown> = {}
  for (const key of EXTRA_KEYS) if (all[key] !== undefined) kept[key] = all[key]
  if ((all.dryMultiplier ?? 0) > 0)
    kept["dryBreakers"] = breakerTokens(tokenizer, all.drySequenceBreakers ?? DRY_BREAKERS)
  return kept
}

const EXTRA_KEYS = [
  "typicalP",
  "topNSigma",
  "xtcProbability",
  "xtcThreshold",
  "dynatempRange",
  "dynatempExponent",
  "dryMultiplier",
  "dryBase",
  "dryAllowedLength",
  "dryPenaltyLastN",
  "mirostat",
  "mirostatTau",
  "mirostatEta",
  "penaltyLastN",
  "samplers",
] as const satisfies readonly (keyof ExtraSampling)[]

/** Choices of one request draw differently, and still the same for the same seed. */
export function forChoice(params: GenerateParams, choice: number): GenerateParams {
  if (choice === 0 || params.seed === undefined) return params
  return { ...params, seed: uint32(params.seed + choice) }
}

function uint32(value: number): number {
  const range = 2 ** 32
  return ((value % range) + range) % range
}
