import { z } from "@hono/zod-openapi"

import { chatRequestSchema } from "../openai/schema.ts"
import {
  accepted,
  extraSamplingFields,
  MAX_CHOICES,
  MAX_TOP_LOGPROBS,
  refused,
  samplersSchema,
  seedSchema,
  stopSchema,
} from "../schema.ts"

/** llama.cpp's router has it too. */
const model = z.string().nullish().openapi({ description: "Default: the default model" })
const tokenId = z.int().min(0)
/** Text, tokens, or both in turns. */
const mixed = z.union([z.string(), z.array(z.union([z.string(), tokenId])).min(1)])

/** Several of them, or one in an object. */
const oneObject = z.looseObject({ prompt_string: z.string() })
const prompts = z.union([
  mixed,
  oneObject,
  z
    .array(z.union([mixed, oneObject]))
    .min(1)
    .max(MAX_CHOICES),
])

export const tokenizeRequestSchema = z
  .looseObject({
    model,
    content: mixed,
    add_special: z.boolean().nullish(),
    parse_special: z.boolean().nullish(),
    with_pieces: z.boolean().nullish(),
  })
  .openapi("TokenizeRequest")

export const tokenizeResponseSchema = z
  .object({
    tokens: z.union([
      z.array(z.int()),
      z.array(z.object({ id: z.int(), piece: z.union([z.string(), z.array(z.int())]) })),
    ]),
  })
  .openapi("TokenizeResponse")

export const detokenizeRequestSchema = z
  .looseObject({ model, tokens: z.array(tokenId) })
  .openapi("DetokenizeRequest")

export const detokenizeResponseSchema = z
  .object({ content: z.string() })
  .openapi("DetokenizeResponse")

export const templateRequestSchema = z
  .looseObject(
    chatRequestSchema.pick({ model: true, messages: true, tools: true, chat_template_kwargs: true })
      .shape,
  )
  .openapi("ApplyTemplateRequest")

export const templateResponseSchema = z
  .object({ prompt: z.string() })
  .openapi("ApplyTemplateResponse")

export const completionRequestSchema = z
  .looseObject({
    model,
    prompt: prompts,
    n_predict: z
      .int()
      .min(-1)
      .nullish()
      .openapi({ description: "-1: up to the end of the context" }),
    temperature: z.number().min(0).nullish(),
    top_k: z.int().min(-1).nullish(),
    top_p: z.number().gt(0).max(1).nullish(),
    min_p: z.number().min(0).max(1).nullish(),
    repeat_penalty: z.number().gt(0).max(10).nullish(),
    presence_penalty: z.number().min(-2).max(2).nullish(),
    frequency_penalty: z.number().min(-2).max(2).nullish(),
    seed: seedSchema,
    stop: stopSchema,
    stream: z.boolean().nullish(),
    n_probs: z.int().min(0).max(MAX_TOP_LOGPROBS).nullish(),
    grammar: z.string().nullish(),
    json_schema: z.union([z.boolean(), z.record(z.string(), z.unknown())]).nullish(),
    logit_bias: z
      .union([
        z.record(z.string(), z.union([z.number(), z.literal(false)])),
        z.array(z.tuple([z.union([tokenId, z.string()]), z.union([z.number(), z.literal(false)])])),
      ])
      .nullish(),
    ignore_eos: z.boolean().nullish(),
    return_tokens: z.boolean().nullish(),
    response_fields: z
      .array(z.string().min(1).max(100))
      .max(64)
      .nullish()
      .openapi({ description: "Only these fields of the answer; a/b is a part of one" }),
    timings_per_token: z
      .boolean()
      .nullish()
      .openapi({ description: "Pieces of a stream tell the timings so far" }),
    return_progress: z
      .boolean()
      .nullish()
      .openapi({ description: "A stream tells how far its prompt is computed" }),
    post_sampling_probs: refused(
      "probabilities are the model's own, before samplers",
      (v) => v === false,
    ),
    cache_prompt: accepted("prefix reuse is the server's setting"),
    id_slot: z
      .int()
      .min(-1)
      .nullish()
      .openapi({ description: "The slot that can be saved then; -1 takes the idlest" }),
    ...extraSamplingFields,
    samplers: samplersSchema,
    n_indent: refused("not supported", (v) => v === 0),
    lora: refused("adapters are not supported", (v) => Array.isArray(v) && v.length === 0),
  })
  .openapi("LlamaCompletionRequest")

export const infillRequestSchema = completionRequestSchema
  .omit({ prompt: true })
  .extend({
    input_prefix: z.string(),
    input_suffix: z.string(),
    input_extra: z
      .array(z.looseObject({ filename: z.string().nullish(), text: z.string() }))
      .nullish()
      .openapi({ description: "Other files, the nearest last" }),
    prompt: z.string().nullish().openapi({ description: "What the hole begins with" }),
  })
  .openapi("InfillRequest")

export type LlamaCompletionRequest = z.infer<typeof completionRequestSchema>

export const completionResponseSchema = z
  .looseObject({
    index: z.int(),
    content: z.string(),
    tokens: z.array(z.int()),
    stop: z.boolean(),
    model: z.string(),
    stop_type: z.enum(["eos", "limit", "word"]),
    stopping_word: z.string(),
    tokens_predicted: z.int(),
    tokens_evaluated: z.int(),
    tokens_cached: z.int(),
    generation_settings: z.record(z.string(), z.unknown()),
    has_new_line: z.boolean(),
    truncated: z.literal(false),
    timings: z.record(z.string(), z.number()),
  })
  .openapi("LlamaCompletionResponse")

export const propsSchema = z
  .object({
    default_generation_settings: z.object({
      n_ctx: z.int(),
      params: z.record(z.string(), z.unknown()),
    }),
    total_slots: z.int().openapi({ description: "Sequences that run at once" }),
    model_alias: z.string(),
    chat_template: z.string(),
    modalities: z.object({ vision: z.literal(false), audio: z.literal(false) }),
    is_sleeping: z.literal(false),
  })
  .openapi("LlamaProps")
