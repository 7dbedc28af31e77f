import { z } from "@hono/zod-openapi"

import { accepted, MAX_TOP_LOGPROBS, refused } from "../schema.ts"
import { jsonSchema } from "./schema.ts"

const part = z
  .looseObject({ type: z.string(), text: z.string().optional(), refusal: z.string().optional() })
  .superRefine((value, ctx) => {
    const isText = ["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    if (isText.includes(value.type) && value.text !== undefined) return
    if (value.type === "refusal" && value.refusal !== undefined) return
    ctx.addIssue({
      code: "custom",
      path: ["type"],
      message: `the model reads text only, not "${value.type}" parts`,
      params: { code: "unsupported_value" },
    })
  })

const message = z.looseObject({
  type: z.literal("message").optional(),
  role: z.enum(["user", "assistant", "system", "developer"]),
  content: z.union([z.string(), z.array(part)]),
})
const functionCall = z.looseObject({
  type: z.literal("function_call"),
  call_id: z.string(),
  name: z.string().min(1),
  arguments: z.string(),
})
const functionOutput = z.looseObject({
  type: z.literal("function_call_output"),
  call_id: z.string(),
  output: z.union([z.string(), z.array(part)]),
})
const customCall = z.looseObject({
  type: z.literal("custom_tool_call"),
  call_id: z.string(),
  name: z.string().min(1),
  input: z.string(),
})
const customOutput = z.looseObject({
  type: z.literal("custom_tool_call_output"),
  call_id: z.string(),
  output: z.union([z.string(), z.array(part)]),
})
const reasoning = z.looseObject({
  type: z.literal("reasoning"),
  summary: z.array(part).nullish(),
  content: z.array(part).nullish(),
})

const itemReference = z.looseObject({ type: z.literal("item_reference"), id: z.string() })

export const inputItem = z
  .union([
    functionCall,
    functionOutput,
    customCall,
    customOutput,
    reasoning,
    itemReference,
    message,
  ])
  .openapi("ResponseInputItem")
export type InputItem = z.infer<typeof inputItem>

/** Tools that the client runs. */
export const CLIENT_TOOLS: ReadonlySet<string> = new Set(["function", "custom", "namespace"])

const tool = z
  .looseObject({
    type: z.string(),
    name: z.string().optional(),
    tools: z
      .array(z.looseObject({ type: z.enum(["function", "custom"]), name: z.string().min(1) }))
      .optional(),
  })
  .refine(({ type, name }) => !CLIENT_TOOLS.has(type) || (name !== undefined && name !== ""), {
    message: "this field is required",
    path: ["name"],
    params: { code: "invalid_value" },
  })
  .openapi({
    description:
      "Functions, custom tools and namespaces of both. Tools that OpenAI runs itself (web search, files, code) are left out.",
  })

const textFormat = z.discriminatedUnion("type", [
  z.looseObject({ type: z.literal("text") }),
  z.looseObject({ type: z.literal("json_object") }),
  z.looseObject({ type: z.literal("json_schema"), name: z.string().nullish(), schema: jsonSchema }),
])

export const metadataSchema = z.record(z.string(), z.string()).nullish()

export const responseRequestSchema = z
  .looseObject({
    model: z.string().nullish(),
    input: z.union([z.string(), z.array(inputItem).min(1)]),
    instructions: z.string().nullish(),
    previous_response_id: z.string().nullish(),
    store: z.boolean().nullish(),
    stream: z.boolean().nullish(),
    tools: z.array(tool).nullish(),
    tool_choice: z
      .union([
        z.enum(["auto", "none", "required"]),
        z.looseObject({ type: z.enum(["function", "custom"]), name: z.string().min(1) }),
      ])
      .nullish(),
    parallel_tool_calls: z.boolean().nullish(),
    max_output_tokens: z.int().min(1).nullish(),
    temperature: z.number().min(0).max(2).nullish(),
    top_p: z.number().gt(0).max(1).nullish(),
    top_logprobs: z.int().min(0).max(MAX_TOP_LOGPROBS).nullish(),
    text: z.looseObject({ format: textFormat.nullish() }).nullish(),
    reasoning: z.looseObject({ effort: z.string().nullish() }).nullish(),
    metadata: metadataSchema,
    include: accepted("what there is to include is included"),
    truncation: refused("prompts are never cut", (v) => v === "disabled"),
    background: z.boolean().nullish(),
    conversation: z.union([z.string(), z.looseObject({ id: z.string() })]).nullish(),
    prompt: refused("prompt templates are not stored here"),
  })
  .openapi("ResponseRequest")

export type ResponseRequest = z.infer<typeof responseRequestSchema>

export const responseSchema = z
  .looseObject({
    id: z.string(),
    object: z.literal("response"),
    created_at: z.int(),
    status: z.enum(["completed", "incomplete", "in_progress", "failed", "cancelled"]),
    model: z.string(),
    output: z.array(z.looseObject({ type: z.string(), id: z.string() })),
    usage: z
      .object({
        input_tokens: z.int(),
        input_tokens_details: z.object({ cached_tokens: z.int() }),
        output_tokens: z.int(),
        output_tokens_details: z.object({ reasoning_tokens: z.int() }),
        total_tokens: z.int(),
      })
      .nullable(),
  })
  .openapi("Response")

export const deletedSchema = z
  .object({ id: z.string(), object: z.literal("response"), deleted: z.literal(true) })
  .openapi("ResponseDeleted")
