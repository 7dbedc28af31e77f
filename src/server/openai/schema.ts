import { z } from "@hono/zod-openapi"

import { accepted, MAX_CHOICES, MAX_TOP_LOGPROBS, refused, samplingFields } from "../schema.ts"

/** -1 is llama.cpp's: up to the end of the context. */
const maxTokens = z
  .int()
  .refine((value) => value >= 1 || value === -1, { message: "must be at least 1, or -1" })
  .nullish()
const isFalse = (v: unknown): boolean => v === false
const isEmpty = (v: unknown): boolean => Array.isArray(v) && v.length === 0

const contentPart = z
  .looseObject({ type: z.string(), text: z.string().optional(), refusal: z.string().optional() })
  .superRefine((part, ctx) => {
    if (part.type === "text" && part.text !== undefined) return
    if (part.type === "refusal" && part.refusal !== undefined) return
    ctx.addIssue({
      code: "custom",
      path: [part.type === "text" ? "text" : "type"],
      message:
        part.type === "text"
          ? "this field is required"
          : `the model reads text only, not "${part.type}" parts`,
      params: { code: "unsupported_value" },
    })
  })
  .openapi("ContentPart")

const content = z.union([z.string(), z.array(contentPart).min(1)])

export const toolSchema = z
  .looseObject({
    type: z.literal("function"),
    function: z.looseObject({
      name: z.string().min(1),
      description: z.string().nullish(),
      parameters: z.record(z.string(), z.unknown()).nullish(),
    }),
  })
  .openapi("Tool")

const toolChoice = z
  .union([
    z.enum(["auto", "none", "required"]),
    z.looseObject({
      type: z.literal("function"),
      function: z.looseObject({ name: z.string().min(1) }),
    }),
  ])
  .nullish()
  .openapi({ description: "required and a function's name make the model call" })

export const jsonSchema = z.union([z.boolean(), z.record(z.string(), z.unknown())])

const responseFormat = z
  .discriminatedUnion("type", [
    z.looseObject({ type: z.literal("text") }),
    z.looseObject({
      type: z.literal("json_object"),
      schema: jsonSchema.nullish().openapi({ description: "Extension" }),
    }),
    z.looseObject({
      type: z.literal("json_schema"),
      json_schema: z.looseObject({
        name: z.string().nullish(),
        description: z.string().nullish(),
        schema: jsonSchema,
        strict: z.boolean().nullish(),
      }),
    }),
  ])
  .nullish()

/** llama.cpp's and vLLM's names for what the output must match; one at most. */
const constraints = {
  grammar: z
    .string()
    .min(1)
    .nullish()
    .openapi({ description: "Extension; EBNF as xgrammar and llama.cpp read it" }),
  json_schema: jsonSchema.nullish().openapi({ description: "Extension" }),
  structured_outputs: z
    .strictObject({
      json: jsonSchema.nullish(),
      regex: z.string().min(1).nullish(),
      choice: z.array(z.string().min(1)).min(1).nullish(),
      grammar: z.string().min(1).nullish(),
    })
    .nullish()
    .openapi({ description: "Extension" }),
}

const toolCall = z.looseObject({
  id: z.string().optional(),
  type: z.literal("function").optional(),
  function: z.looseObject({ name: z.string(), arguments: z.string() }),
})

export const messageSchema = z
  .looseObject({
    role: z.enum(["system", "developer", "user", "assistant", "tool"]),
    content: content.nullish(),
    name: z.string().nullish(),
    tool_calls: z.array(toolCall).nullish(),
    tool_call_id: z.string().nullish(),
    reasoning_content: z.string().nullish(),
    function_call: refused("use tool_calls"),
    audio: refused("the model reads text only"),
  })
  .superRefine((message, ctx) => {
    const missing = (field: string, reason: string): void =>
      ctx.addIssue({ code: "custom", path: [field], message: reason })
    const calls = message.role === "assistant" && (message.tool_calls?.length ?? 0) > 0
    if ((message.content === undefined || message.content === null) && !calls) {
      missing("content", `a message of role "${message.role}" needs content`)
    }
    if (message.role === "tool" && !message.tool_call_id) {
      missing("tool_call_id", "a tool's message must say which call it answers")
    }
  })
  .openapi("ChatMessage")

const common = {
  model: z
    .string()
    .nullish()
    .openapi({ description: 'A known model, or "default" (also when absent)' }),
  ...samplingFields,
  n: z.int().min(1).max(MAX_CHOICES).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z
    .strictObject({
      include_usage: z.boolean().nullish(),
      continuous_usage_stats: z
        .boolean()
        .nullish()
        .openapi({ description: "Extension; chats' chunks tell the tokens so far" }),
      include_obfuscation: refused("", isFalse),
    })
    .nullish(),
  user: accepted("callers are not told apart"),
  metadata: accepted("nothing is stored"),
  safety_identifier: accepted("callers are not told apart"),
  prompt_cache_key: accepted("prefixes are found by content"),
  prompt_cache_retention: accepted("prefixes are kept while memory lasts"),
  cache_prompt: accepted("prefix reuse is the server's setting"),
  service_tier: refused("there is one tier", (v) => v === "auto" || v === "default"),
  timings_per_token: z
    .boolean()
    .nullish()
    .openapi({ description: "Extension; chunks of a stream tell the timings so far" }),
  return_progress: z
    .boolean()
    .nullish()
    .openapi({ description: "Extension; a stream tells how far its prompt is computed" }),
  post_sampling_probs: refused("probabilities are the model's own, before samplers", isFalse),
  sse_ping_interval: accepted("comments keep streams open as the server is set"),
  backend_sampling: accepted("samplers always run on the native side"),
  typ_p: z.number().min(0).max(1).nullish().openapi({ description: "Another name of typical_p" }),
}

const promptLogprobs = z
  .int()
  .min(0)
  .max(MAX_TOP_LOGPROBS)
  .nullish()
  .openapi({ description: "Extension; log-probabilities of the prompt's tokens" })

/** vLLM's form: null for the first token, which follows nothing. */
const shownPrompt = z.array(z.record(z.string(), z.unknown()).nullable()).optional()

const thinkingBudget = z.int().min(-1).nullish().openapi({
  description:
    "Extension, by llama.cpp's names and vLLM's; reasoning ends after so many tokens, of models whose template marks it; -1: when the model ends it",
})

export const chatRequestSchema = z
  .strictObject({
    messages: z.array(messageSchema).min(1),
    ...common,
    max_tokens: maxTokens,
    max_completion_tokens: maxTokens,
    logprobs: z.boolean().nullish(),
    top_logprobs: z.int().min(0).max(MAX_TOP_LOGPROBS).nullish(),
    prompt_logprobs: promptLogprobs,
    tools: z
      .array(toolSchema)
      .nullish()
      .openapi({ description: "Rendered by the model's chat template" }),
    tool_choice: toolChoice,
    parallel_tool_calls: z
      .boolean()
      .nullish()
      .openapi({ description: "false: the answer ends after its first call" }),
    reasoning_format: z
      .enum(["auto", "deepseek", "none"])
      .nullish()
      .openapi({ description: "Extension; none leaves reasoning in the content" }),
    thinking_budget_tokens: thinkingBudget,
    reasoning_budget_tokens: thinkingBudget,
    thinking_token_budget: thinkingBudget,
    reasoning_budget_message: z
      .string()
      .nullish()
      .openapi({ description: "Extension; what the model is made to think last" }),
    reasoning_control: accepted("reasoning ends with the answer's own mark"),
    reasoning_effort: z.string().nullish().openapi({ description: "Passed to the chat template" }),
    chat_template_kwargs: z
      .record(z.string(), z.unknown())
      .nullish()
      .openapi({ description: "Extension; variables for the chat template" }),
    id_slot: z
      .int()
      .min(-1)
      .nullish()
      .openapi({ description: "Extension; llama.cpp's slot, which can be saved then" }),
    verbose: z
      .boolean()
      .nullish()
      .openapi({ description: "Extension; the answer has what the model was given, in __verbose" }),
    continue_final_message: z
      .boolean()
      .nullish()
      .openapi({ description: "Extension; the answer goes on where the last message ends" }),
    add_generation_prompt: z
      .boolean()
      .nullish()
      .openapi({ description: "Extension; false: the prompt ends with the last message" }),
    response_format: responseFormat,
    ...constraints,
    modalities: refused(
      "the model writes text only",
      (v) => Array.isArray(v) && v.every((m) => m === "text"),
    ),
    audio: refused("the model writes text only"),
    prediction: refused("predicted output is not supported"),
    functions: refused("use tools", isEmpty),
    function_call: refused("use tool_choice", (v) => v === "none" || v === "auto"),
    web_search_options: refused("the server does not search"),
    store: refused("answers are not stored", isFalse),
    verbosity: refused("the model has no such setting"),
  })
  .openapi("ChatCompletionRequest")

export type ChatRequest = z.infer<typeof chatRequestSchema>
export type ChatRequestMessage = z.infer<typeof messageSchema>

const tokenIds = z.array(z.int().min(0)).min(1)

export const completionRequestSchema = z
  .strictObject({
    prompt: z
      .union([z.string(), tokenIds, z.array(z.string()).min(1), z.array(tokenIds).min(1)])
      .openapi({ description: "Text, texts, token ids, or several lists of token ids" }),
    ...common,
    max_tokens: z.int().min(0).nullish(),
    echo: z.boolean().nullish(),
    logprobs: z.int().min(0).max(MAX_TOP_LOGPROBS).nullish(),
    prompt_logprobs: promptLogprobs,
    best_of: z
      .int()
      .min(1)
      .max(MAX_CHOICES)
      .nullish()
      .openapi({ description: "Answers drawn, of which the n likeliest are returned" }),
    suffix: z
      .string()
      .nullish()
      .openapi({ description: "What comes after the text; for models that can fill in" }),
    response_format: responseFormat,
    ...constraints,
  })
  .openapi("CompletionRequest")

export type CompletionRequest = z.infer<typeof completionRequestSchema>

const usage = z
  .object({
    prompt_tokens: z.int(),
    completion_tokens: z.int(),
    total_tokens: z.int(),
    prompt_tokens_details: z.object({ cached_tokens: z.int() }),
  })
  .openapi("Usage")

const timings = z
  .object({
    cache_n: z.int(),
    prompt_n: z.int(),
    prompt_ms: z.number(),
    prompt_per_token_ms: z.number(),
    prompt_per_second: z.number(),
    predicted_n: z.int(),
    predicted_ms: z.number(),
    predicted_per_token_ms: z.number(),
    predicted_per_second: z.number(),
    queue_ms: z.number(),
    ttft_ms: z.number(),
    draft_n: z.int().optional(),
    draft_n_accepted: z.int().optional(),
  })
  .openapi("Timings")

const finishReason = z.enum(["stop", "length", "tool_calls"])
const envelope = {
  id: z.string(),
  created: z.int(),
  model: z.string(),
  system_fingerprint: z.string(),
}

const chatLogprob = z.object({ token: z.string(), logprob: z.number(), bytes: z.array(z.int()) })
const chatLogprobs = z.object({
  content: z.array(chatLogprob.extend({ top_logprobs: z.array(chatLogprob) })),
  refusal: z.null(),
})

export const chatResponseSchema = z
  .object({
    ...envelope,
    object: z.literal("chat.completion"),
    choices: z.array(
      z.object({
        index: z.int(),
        message: z.object({
          role: z.literal("assistant"),
          content: z.string().nullable(),
          refusal: z.null(),
          reasoning_content: z.string().optional(),
          tool_calls: z
            .array(
              z.object({
                id: z.string(),
                type: z.literal("function"),
                function: z.object({ name: z.string(), arguments: z.string() }),
              }),
            )
            .optional(),
        }),
        logprobs: chatLogprobs.nullable(),
        finish_reason: finishReason,
      }),
    ),
    prompt_logprobs: shownPrompt,
    usage,
    timings,
  })
  .openapi("ChatCompletion")

export const inputTokensSchema = z
  .object({ object: z.literal("response.input_tokens"), input_tokens: z.int() })
  .openapi("InputTokens")

export const completionResponseSchema = z
  .object({
    ...envelope,
    object: z.literal("text_completion"),
    choices: z.array(
      z.object({
        index: z.int(),
        text: z.string(),
        logprobs: z
          .object({
            tokens: z.array(z.string()),
            token_logprobs: z.array(z.number().nullable()),
            top_logprobs: z.array(z.record(z.string(), z.number()).nullable()).nullable(),
            text_offset: z.array(z.int()),
          })
          .nullable(),
        finish_reason: finishReason,
        prompt_logprobs: shownPrompt,
      }),
    ),
    usage,
    timings,
  })
  .openapi("Completion")

export const modelSchema = z
  .object({
    id: z.string(),
    object: z.literal("model"),
    created: z.int(),
    owned_by: z.string(),
    max_model_len: z
      .int()
      .optional()
      .openapi({ description: "Tokens of the context, of a loaded model; vLLM's name" }),
    status: z.object({ value: z.enum(["loaded", "loading", "unloaded"]) }),
    meta: z.record(z.string(), z.unknown()),
  })
  .openapi("Model")

export const modelListSchema = z
  .object({ object: z.literal("list"), data: z.array(modelSchema) })
  .openapi("ModelList")

export const errorSchema = z
  .object({
    error: z.object({
      message: z.string(),
      type: z.string(),
      param: z.string().nullable(),
      code: z.string().nullable(),
    }),
  })
  .openapi("Error")
