import { z } from "@hono/zod-openapi"

import { accepted, MAX_STOP_STRINGS, refused } from "../schema.ts"

const cacheControl = accepted("prefixes are found by content")

const textBlock = z.looseObject({
  type: z.literal("text"),
  text: z.string(),
  cache_control: cacheControl,
})

/** Blocks that show pictures or files are refused with their type's name. */
const otherBlock = z
  .looseObject({ type: z.string() })
  .refine(({ type }) => IGNORED_BLOCKS.has(type), {
    message: "the model reads text only",
    params: { code: "unsupported_value" },
  })

/** Reasoning that only its writer can read. */
const IGNORED_BLOCKS = new Set(["redacted_thinking"])

const toolResult = z.looseObject({
  type: z.literal("tool_result"),
  tool_use_id: z.string(),
  content: z.union([z.string(), z.array(z.union([textBlock, otherBlock]))]).nullish(),
  is_error: z.boolean().nullish(),
  cache_control: cacheControl,
})

const toolUse = z.looseObject({
  type: z.literal("tool_use"),
  id: z.string(),
  name: z.string().min(1),
  input: z.record(z.string(), z.unknown()),
  cache_control: cacheControl,
})

const thinkingBlock = z.looseObject({ type: z.literal("thinking"), thinking: z.string() })

const block = z.union([textBlock, toolUse, toolResult, thinkingBlock, otherBlock])

export const messageSchema = z
  .looseObject({
    role: z.enum(["user", "assistant", "system"]),
    content: z.union([z.string(), z.array(block)]),
  })
  .openapi("AnthropicMessage")

export type AnthropicMessage = z.infer<typeof messageSchema>

const system = z.union([z.string(), z.array(textBlock)]).nullish()

const tool = z
  .looseObject({
    type: z.string().nullish(),
    name: z.string().min(1),
    description: z.string().nullish(),
    input_schema: z.record(z.string(), z.unknown()).nullish(),
    strict: z.boolean().nullish(),
    cache_control: cacheControl,
  })
  .refine(({ type, input_schema }) => input_schema || !(type && type !== "custom"), {
    message: "the server has no tools of its own",
    path: ["type"],
    params: { code: "unsupported_value" },
  })
  .openapi("AnthropicTool")

const toolChoice = z
  .discriminatedUnion("type", [
    z.looseObject({
      type: z.enum(["auto", "any"]),
      disable_parallel_tool_use: z.boolean().nullish(),
    }),
    z.looseObject({ type: z.literal("none") }),
    z.looseObject({
      type: z.literal("tool"),
      name: z.string().min(1),
      disable_parallel_tool_use: z.boolean().nullish(),
    }),
  ])
  .nullish()

const thinking = z
  .looseObject({
    type: z.enum(["enabled", "disabled", "adaptive"]),
    budget_tokens: z
      .int()
      .min(0)
      .nullish()
      .openapi({ description: "Reasoning ends after so many tokens" }),
  })
  .nullish()

const prompt = {
  model: z
    .string()
    .min(1)
    .openapi({ description: 'A known model, "default", or any name that begins with "claude"' }),
  messages: z.array(messageSchema).min(1),
  system,
  tools: z.array(tool).nullish(),
  tool_choice: toolChoice,
  thinking,
}

// clients send what their newest version knows: other fields are passed over
export const countRequestSchema = z.looseObject(prompt).openapi("AnthropicCountTokensRequest")

export const messagesRequestSchema = z
  .looseObject({
    ...prompt,
    max_tokens: z.int().min(1),
    temperature: z.number().min(0).max(2).nullish(),
    top_p: z.number().gt(0).max(1).nullish(),
    top_k: z.int().min(-1).nullish(),
    stop_sequences: z.array(z.string().min(1)).max(MAX_STOP_STRINGS).nullish(),
    stream: z.boolean().nullish(),
    output_format: z
      .looseObject({ type: z.literal("json_schema"), schema: z.record(z.string(), z.unknown()) })
      .nullish(),
    metadata: accepted("nothing is stored"),
    service_tier: accepted("there is one tier"),
    mcp_servers: refused("the server calls no others", (v) => Array.isArray(v) && v.length === 0),
    container: refused("there are no containers"),
  })
  .openapi("AnthropicMessagesRequest")

export type CountRequest = z.infer<typeof countRequestSchema>
export type MessagesRequest = z.infer<typeof messagesRequestSchema>

const content = z.union([
  z.object({ type: z.literal("text"), text: z.string() }),
  z.object({ type: z.literal("thinking"), thinking: z.string(), signature: z.string() }),
  z.object({
    type: z.literal("tool_use"),
    id: z.string(),
    name: z.string(),
    input: z.unknown(),
  }),
])

export const messagesResponseSchema = z
  .object({
    id: z.string(),
    type: z.literal("message"),
    role: z.literal("assistant"),
    model: z.string(),
    content: z.array(content),
    stop_reason: z.enum(["end_turn", "max_tokens", "stop_sequence", "tool_use"]),
    stop_sequence: z.string().nullable(),
    usage: z.object({
      input_tokens: z.int().openapi({ description: "Without those read from the cache" }),
      output_tokens: z.int(),
      cache_read_input_tokens: z.int(),
      cache_creation_input_tokens: z.int(),
    }),
  })
  .openapi("AnthropicMessageResponse")

export const countResponseSchema = z
  .object({ input_tokens: z.int() })
  .openapi("AnthropicCountTokensResponse")

export const errorSchema = z
  .object({
    type: z.literal("error"),
    error: z.object({ type: z.string(), message: z.string() }),
  })
  .openapi("AnthropicError")
