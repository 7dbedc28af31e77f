import { DEFAULT_SAMPLING, type SamplingDefaults } from "../server/types.ts"
import type { SAMPLING_FLAGS } from "./args/common.ts"
import type { FlagValues } from "./args/spec.ts"

/** Defaults for requests and conversations, with what flags say in their place. */
export function samplingFrom(
  flags: FlagValues<typeof SAMPLING_FLAGS>,
  maxTokens?: number,
): SamplingDefaults {
  const base = DEFAULT_SAMPLING
  return {
    temperature: flags.temperature ?? base.temperature,
    topK: flags["top-k"] ?? base.topK,
    topP: flags["top-p"] ?? base.topP,
    minP: flags["min-p"] ?? base.minP,
    repetitionPenalty: flags["repetition-penalty"] ?? base.repetitionPenalty,
    presencePenalty: flags["presence-penalty"] ?? base.presencePenalty,
    frequencyPenalty: flags["frequency-penalty"] ?? base.frequencyPenalty,
    ...(maxTokens === undefined ? {} : { maxTokens }),
  }
}
