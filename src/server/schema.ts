import { z } from "@hono/zod-openapi"

import { readSamplers } from "./samplers.ts"

/** Stop strings a request may have: each costs a comparison per token. */
export const MAX_STOP_STRINGS = 16
/** Entries of logit_bias: OpenAI's bound. */
export const MAX_LOGIT_BIAS = 1024
/** Choices one request may ask for (n, times prompts). */
export const MAX_CHOICES = 128
/** Top log-probabilities per token. */
export const MAX_TOP_LOGPROBS = 20

/**
 * A field that is known and refused: null and absent pass, anything else is a 400 that says why.
 */
export function refused(
  reason: string,
  accepts: (value: unknown) => boolean = () => false,
): z.ZodOptional<z.ZodUnknown> {
  return z
    .unknown()
    .optional()
    .refine((value) => value === undefined || value === null || accepts(value), {
      message: reason,
      params: { code: "unsupported_value" },
    })
    .openapi({ description: `Not supported: ${reason}` })
}

/** A field that is read by others and changes nothing here. */
export function accepted(why: string): z.ZodOptional<z.ZodUnknown> {
  return z
    .unknown()
    .optional()
    .openapi({ description: `Accepted without effect: ${why}` })
}

export const stopSchema = z
  .union([z.string().min(1), z.array(z.string().min(1)).max(MAX_STOP_STRINGS)])
  .nullish()
  .openapi({ description: `Up to ${MAX_STOP_STRINGS} strings that end the text; not part of it` })

export function stopStrings(stop: z.infer<typeof stopSchema>): readonly string[] {
  if (stop === undefined || stop === null) return []
  return typeof stop === "string" ? [stop] : stop
}

export const seedSchema = z
  .int()
  .nullish()
  .openapi({ description: "Same seed, same request: same answer. -1 draws one." })

/** Strings across which dry sees no repetition: each is looked for in all tokens. */
const MAX_BREAKERS = 64
/** Bytes of one; llama.cpp cuts longer ones. */
const MAX_BREAKER_LENGTH = 40

/** llama.cpp's names; Ollama's are among them. */
export const extraSamplingFields = {
  typical_p: z.number().min(0).max(1).nullish().openapi({ description: "1 is off" }),
  top_n_sigma: z.number().min(-1).nullish().openapi({ description: "0 and -1 are off" }),
  xtc_probability: z.number().min(0).max(1).nullish().openapi({ description: "0 is off" }),
  xtc_threshold: z.number().min(0).max(1).nullish().openapi({ description: "above 0.5 is off" }),
  dynatemp_range: z.number().min(0).nullish().openapi({ description: "0 is off" }),
  dynatemp_exponent: z.number().min(0).nullish(),
  dry_multiplier: z.number().min(0).nullish().openapi({ description: "0 is off" }),
  dry_base: z.number().min(0).nullish(),
  dry_allowed_length: z.int().min(0).nullish(),
  dry_penalty_last_n: z.int().min(-1).nullish().openapi({ description: "-1: the whole text" }),
  dry_sequence_breakers: z
    .array(z.string().min(1).max(MAX_BREAKER_LENGTH))
    .max(MAX_BREAKERS)
    .nullish(),
  mirostat: z.int().min(0).max(2).nullish().openapi({ description: "its version; 0 is off" }),
  mirostat_tau: z.number().min(0).nullish().openapi({ description: "surprise aimed at, in bits" }),
  mirostat_eta: z.number().min(0).nullish().openapi({ description: "learning rate" }),
  repeat_last_n: z
    .int()
    .min(-1)
    .nullish()
    .openapi({ description: "tokens that penalties look at; -1: the whole text" }),
}

export const samplersSchema = z
  .union([z.array(z.string()).min(1), z.string().min(1)])
  .nullish()
  .superRefine((value, ctx) => {
    if (value === undefined || value === null) return
    const read = readSamplers(value)
    if (typeof read === "string") ctx.addIssue({ code: "custom", message: read })
  })
  .openapi({ description: "The samplers that act, in order: names or a string of letters" })

/**
 * Sampling fields that OpenAI's two completion routes share, with the usual extensions of local
 * servers.
 */
export const samplingFields = {
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.int().min(-1).nullish().openapi({ description: "Extension; 0 and -1 are off" }),
  min_p: z.number().min(0).max(1).nullish().openapi({ description: "Extension" }),
  repetition_penalty: z
    .number()
    .gt(0)
    .max(10)
    .nullish()
    .openapi({ description: "Extension; 1 is off" }),
  repeat_penalty: z
    .number()
    .gt(0)
    .max(10)
    .nullish()
    .openapi({ description: "Extension; another name of repetition_penalty" }),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z
    .record(z.string().regex(/^\d+$/, "keys are token ids"), z.number().min(-100).max(100))
    .refine((bias) => Object.keys(bias).length <= MAX_LOGIT_BIAS, {
      message: `must have at most ${MAX_LOGIT_BIAS} entries`,
    })
    .nullish(),
  seed: seedSchema,
  stop: stopSchema,
  stop_token_ids: z
    .array(z.int().min(0))
    .max(MAX_STOP_STRINGS)
    .nullish()
    .openapi({ description: "Extension" }),
  ignore_eos: z.boolean().nullish().openapi({ description: "Extension, for benchmarks" }),
  ...extraSamplingFields,
  samplers: samplersSchema,
}
