import { existsSync, readFileSync, statSync } from "node:fs"
import { dirname, join } from "node:path"

import { ConfigError, FormatError } from "../errors.ts"
import type { ModelParameters } from "../server/models/library.ts"
import { ownDefaults } from "../server/models/parameters.ts"
import { readSamplers } from "../server/samplers.ts"
import { DEFAULT_SAMPLING, type SamplingDefaults } from "../server/types.ts"
import type { SamplerName } from "../worker/protocol.ts"
import type { SAMPLING_FLAGS } from "./args/common.ts"
import type { FlagValues } from "./args/spec.ts"

/** Fields of generation_config.json, and what they are here. */
const GENERATION_FIELDS: Readonly<Record<string, keyof SamplingDefaults>> = {
  temperature: "temperature",
  top_k: "topK",
  top_p: "topP",
  min_p: "minP",
  typical_p: "typicalP",
  top_n_sigma: "topNSigma",
  repetition_penalty: "repetitionPenalty",
}

/**
 * Defaults for requests and conversations: the program's, then those of a Hugging Face folder's generation_config.json,
 * then a created model's own, then what flags say.
 *
 * @param modelPath Of the weights; a file's folder is looked at
 */
export function samplingFrom(
  flags: FlagValues<typeof SAMPLING_FLAGS>,
  maxTokens?: number,
  modelPath?: string,
  parameters?: ModelParameters,
): SamplingDefaults {
  const given = {
    temperature: flags.temperature,
    topK: flags["top-k"],
    topP: flags["top-p"],
    minP: flags["min-p"],
    repetitionPenalty: flags["repetition-penalty"],
    presencePenalty: flags["presence-penalty"],
    frequencyPenalty: flags["frequency-penalty"],
    penaltyLastN: flags["repeat-last-n"],
    typicalP: flags["typical-p"],
    topNSigma: flags["top-n-sigma"] === undefined ? undefined : Math.max(0, flags["top-n-sigma"]),
    xtcProbability: flags["xtc-probability"],
    xtcThreshold: flags["xtc-threshold"],
    dynatempRange: flags["dynatemp-range"],
    dynatempExponent: flags["dynatemp-exp"],
    dryMultiplier: flags["dry-multiplier"],
    dryBase: flags["dry-base"],
    dryAllowedLength: flags["dry-allowed-length"],
    dryPenaltyLastN: flags["dry-penalty-last-n"],
    drySequenceBreakers:
      flags["dry-sequence-breaker"].length > 0 ? flags["dry-sequence-breaker"] : undefined,
    mirostat: flags.mirostat,
    mirostatTau: flags["mirostat-tau"],
    mirostatEta: flags["mirostat-eta"],
    samplers: flags.samplers === undefined ? undefined : samplerOrder(flags.samplers),
    maxTokens,
  }
  const said = Object.entries(given).filter(([, value]) => value !== undefined)
  return {
    ...DEFAULT_SAMPLING,
    ...generationConfig(modelPath),
    ...ownDefaults(parameters),
    ...Object.fromEntries(said),
  }
}

function samplerOrder(text: string): readonly SamplerName[] {
  const names = readSamplers(text.split(/[;,]/))
  const order = typeof names === "string" ? readSamplers(text) : names
  if (typeof order !== "string") return order
  const reason = /[;,_-]/.test(text) ? names : order
  throw new ConfigError(`--samplers ${text}: ${reason as string}`)
}

function generationConfig(modelPath: string | undefined): Partial<SamplingDefaults> {
  if (modelPath === undefined || !existsSync(modelPath)) return {}
  const folder = statSync(modelPath).isDirectory() ? modelPath : dirname(modelPath)
  const file = join(folder, "generation_config.json")
  if (!existsSync(file)) return {}
  let fields: Readonly<Record<string, unknown>>
  try {
    fields = JSON.parse(readFileSync(file, "utf8")) as Readonly<Record<string, unknown>>
  } catch (error) {
    throw new FormatError(file, `is not JSON: ${(error as Error).message}`)
  }
  const found = Object.entries(GENERATION_FIELDS).flatMap(([field, key]) => {
    const value = fields[field]
    return typeof value === "number" ? [[key, value] as const] : []
  })
  return {
    ...Object.fromEntries(found),
    ...(fields["do_sample"] === false ? { temperature: 0 } : {}),
  }
}
