import type { SamplingDefaults, ServerConfig } from "../types.ts"
import type { ModelParameters } from "./library.ts"

/** Ollama's names of what a created model may set, as the server's defaults have them. */
const DEFAULTS: Readonly<Record<string, keyof SamplingDefaults>> = {
  temperature: "temperature",
  top_k: "topK",
  top_p: "topP",
  min_p: "minP",
  typical_p: "typicalP",
  top_n_sigma: "topNSigma",
  repeat_penalty: "repetitionPenalty",
  repeat_last_n: "penaltyLastN",
  presence_penalty: "presencePenalty",
  frequency_penalty: "frequencyPenalty",
  mirostat: "mirostat",
  mirostat_tau: "mirostatTau",
  mirostat_eta: "mirostatEta",
  num_predict: "maxTokens",
}

/** The server's settings with a created model's own in place of its defaults. */
export function withParameters(
  config: ServerConfig,
  parameters: ModelParameters | undefined,
): ServerConfig {
  if (parameters === undefined) return config
  return { ...config, defaults: { ...config.defaults, ...ownDefaults(parameters) } }
}

/** What a created model's parameters say of sampling. */
export function ownDefaults(parameters: ModelParameters | undefined): Partial<SamplingDefaults> {
  if (parameters === undefined) return {}
  const own: Record<string, number> = {}
  for (const [name, key] of Object.entries(DEFAULTS)) {
    const value = parameters[name]
    if (typeof value !== "number") continue
    // no limit
    if (key === "maxTokens" && value < 0) continue
    own[key] = value
  }
  return own
}

/** Strings that end an answer where the request names none. */
export function stopParameter(parameters: ModelParameters | undefined): readonly string[] {
  const stop = parameters?.["stop"]
  if (typeof stop === "string") return [stop]
  return Array.isArray(stop) ? stop.filter((one) => typeof one === "string") : []
}
