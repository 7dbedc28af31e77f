import { z } from "@hono/zod-openapi"

import {
  accepted,
  extraSamplingFields,
  MAX_TOP_LOGPROBS,
  refused,
  samplersSchema,
  seedSchema,
  stopSchema,
} from "../schema.ts"

const off =
  (value: number | boolean) =>
  (v: unknown): boolean =>
    v === value

export const optionsSchema = z
  .strictObject({
    temperature: z.number().min(0).max(2).nullish(),
    top_k: z.int().min(-1).nullish(),
    top_p: z.number().gt(0).max(1).nullish(),
    min_p: z.number().min(0).max(1).nullish(),
    num_predict: z
      .int()
      .min(-2)
      .nullish()
      .openapi({ description: "-1 and -2: up to the end of the context" }),
    stop: stopSchema,
    seed: seedSchema,
    repeat_penalty: z.number().gt(0).max(10).nullish(),
    presence_penalty: z.number().min(-2).max(2).nullish(),
    frequency_penalty: z.number().min(-2).max(2).nullish(),
    num_ctx: accepted("the context is set when the server starts"),
    num_keep: accepted("prompts are never cut"),
    num_batch: accepted("set when the server starts"),
    num_gpu: accepted("set when the server starts"),
    main_gpu: accepted("set when the server starts"),
    num_thread: accepted("set when the server starts"),
    use_mmap: accepted("set when the server starts"),
    use_mlock: accepted("set when the server starts"),
    numa: accepted("set when the server starts"),
    low_vram: accepted("set when the server starts"),
    num_gqa: accepted("the model's files say it"),
    rope_frequency_base: accepted("the model's files say it"),
    rope_frequency_scale: accepted("the model's files say it"),
    f16_kv: accepted("set when the server starts"),
    logits_all: accepted("logprobs are asked for by their own field"),
    vocab_only: refused("weights are loaded too", off(false)),
    embedding_only: refused("ask /api/embed", off(false)),
    ...extraSamplingFields,
    samplers: samplersSchema,
    tfs_z: refused("this sampler is not supported", off(1)),
    penalize_newline: refused("all tokens are penalised alike", (v) => v === true),
  })
  .openapi("OllamaOptions")

export type OllamaOptions = z.infer<typeof optionsSchema>

const noImages = refused("the model reads text only", (v) => Array.isArray(v) && v.length === 0)

const common = {
  model: z.string().min(1).openapi({ description: 'A known model, or "default"' }),
  stream: z.boolean().nullish().openapi({ description: "Default true: one JSON object a line" }),
  options: optionsSchema.nullish(),
  format: z
    .union([z.enum(["", "json"]), z.record(z.string(), z.unknown())])
    .nullish()
    .openapi({ description: '"json" or a JSON schema that the answer must match' }),
  keep_alive: z.union([z.string(), z.number()]).nullish().openapi({
    description:
      'How long the model stays loaded after this: seconds, or a duration such as "5m"; 0 unloads it, -1 keeps it',
  }),
  think: z
    .union([z.boolean(), z.enum(["low", "medium", "high"])])
    .nullish()
    .openapi({
      description: "false asks the model not to; by default it thinks if its template lets it",
    }),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(MAX_TOP_LOGPROBS).nullish(),
  truncate: refused("prompts are never cut", (v) => v === false),
  shift: refused("the context is never shifted", (v) => v === false),
}

const toolCall = z.looseObject({
  function: z.looseObject({ name: z.string(), arguments: z.unknown() }),
})

const messageSchema = z.looseObject({
  role: z.enum(["system", "user", "assistant", "tool"]),
  content: z.string().nullish(),
  images: noImages,
  thinking: z.string().nullish(),
  tool_calls: z.array(toolCall).nullish(),
  tool_name: z.string().nullish(),
  tool_call_id: z.string().nullish(),
})

export type OllamaMessage = z.infer<typeof messageSchema>

export const chatRequestSchema = z
  .strictObject({
    ...common,
    messages: z.array(messageSchema).nullish().openapi({ description: "Empty: loads the model" }),
    num_predict: optionsSchema.shape.num_predict.openapi({
      description: "Extension; as in options, which wins",
    }),
    system: z.string().nullish().openapi({
      description: "Extension; as a first message, where the first is no system message",
    }),
    template: refused("the model's own template is used", (v) => v === ""),
    tools: z
      .array(z.looseObject({ type: z.string(), function: z.looseObject({ name: z.string() }) }))
      .nullish()
      .openapi({ description: "Rendered by the model's chat template" }),
  })
  .openapi("OllamaChatRequest")

export const generateRequestSchema = z
  .strictObject({
    ...common,
    prompt: z.string().nullish().openapi({ description: "Empty: loads the model" }),
    system: z.string().nullish(),
    raw: z
      .boolean()
      .nullish()
      .openapi({ description: "The prompt is used as it is, without a template" }),
    images: noImages,
    suffix: z
      .string()
      .nullish()
      .openapi({ description: "What comes after the answer; for models that can fill in" }),
    template: refused(
      "the model's own template is used",
      (v) => v === "" || (typeof v === "string" && isPlainTemplate(v)),
    ).openapi({ description: "{{ .Prompt }}, and nothing else, means raw" }),
    context: refused(
      "send the conversation to /api/chat",
      (v) => Array.isArray(v) && v.length === 0,
    ),
  })
  .openapi("OllamaGenerateRequest")

export type GenerateRequest = z.infer<typeof generateRequestSchema>

/** Ollama's template that is the prompt and nothing else, with which clients ask for a raw one. */
export function isPlainTemplate(template: unknown): boolean {
  return typeof template === "string" && /^\s*\{\{-?\s*\.Prompt\s*-?\}\}\s*$/.test(template)
}

const { model, keep_alive } = common

export const embedRequestSchema = z
  .strictObject({
    model,
    input: z
      .union([z.string(), z.array(z.string())])
      .nullish()
      .openapi({ description: "Empty: loads the model" }),
    truncate: z
      .boolean()
      .nullish()
      .openapi({ description: "Default true: texts are cut to the context; false refuses them" }),
    dimensions: z.int().min(1).nullish(),
    options: optionsSchema.nullish(),
    keep_alive,
  })
  .openapi("OllamaEmbedRequest")

export const embeddingsRequestSchema = z
  .strictObject({
    model,
    prompt: z.string().nullish().openapi({ description: "Empty: loads the model" }),
    options: optionsSchema.nullish(),
    keep_alive,
  })
  .openapi("OllamaEmbeddingsRequest")

export const showRequestSchema = z
  .strictObject({
    model: z.string().nullish(),
    name: z.string().nullish().openapi({ description: "Older name of model" }),
    verbose: z.boolean().nullish(),
    system: accepted("shown as it is"),
    template: accepted("shown as it is"),
    options: accepted("shown as it is"),
  })
  .openapi("OllamaShowRequest")

const logprob = z.object({ token: z.string(), logprob: z.number(), bytes: z.array(z.int()) })
const answer = {
  model: z.string(),
  created_at: z.string().openapi({ format: "date-time" }),
  done: z.boolean(),
  done_reason: z.enum(["stop", "length", "load", "unload"]).optional(),
  logprobs: z.array(logprob.extend({ top_logprobs: z.array(logprob).optional() })).optional(),
  total_duration: z.int().optional().openapi({ description: "Nanoseconds, as all durations" }),
  load_duration: z.int().optional(),
  prompt_eval_count: z.int().optional(),
  prompt_eval_duration: z.int().optional(),
  eval_count: z.int().optional(),
  eval_duration: z.int().optional(),
}

export const chatResponseSchema = z
  .object({
    ...answer,
    message: z.object({
      role: z.literal("assistant"),
      content: z.string(),
      thinking: z.string().optional(),
      tool_calls: z
        .array(
          z.object({
            function: z.object({ index: z.int(), name: z.string(), arguments: z.unknown() }),
          }),
        )
        .optional(),
    }),
  })
  .openapi("OllamaChatResponse")

export const generateResponseSchema = z
  .object({ ...answer, response: z.string(), thinking: z.string().optional() })
  .openapi("OllamaGenerateResponse")

export const errorSchema = z.object({ error: z.string() }).openapi("OllamaError")
