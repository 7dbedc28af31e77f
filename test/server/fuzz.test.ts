import { expect, test } from "bun:test"

import fc from "fast-check"

import { testServer } from "./fakes.ts"

/** Requests in all; KT_FUZZ_RUNS asks for more. */
const RUNS = Number(process.env["KT_FUZZ_RUNS"] ?? 2000)

const text = fc.oneof(
  fc.constantFrom(
    "",
    "hi",
    "fake",
    "user",
    "assistant",
    "tool",
    "system",
    "auto",
    "required",
    "none",
    "json",
    "text",
  ),
  fc.string({ maxLength: 12 }),
)
const scalar = fc.oneof(
  text,
  fc.integer({ min: -3, max: 300 }),
  fc.double(),
  fc.boolean(),
  fc.constant(null),
)
const type = fc.constantFrom(
  "text",
  "input_text",
  "output_text",
  "tool_use",
  "tool_result",
  "thinking",
  "image",
  "function",
  "function_call",
  "function_call_output",
  "message",
  "json_object",
  "json_schema",
  "any",
  "tool",
  "enabled",
)
const KEYS = [
  "model",
  "messages",
  "prompt",
  "input",
  "system",
  "role",
  "content",
  "text",
  "type",
  "tools",
  "tool_choice",
  "function",
  "name",
  "arguments",
  "parameters",
  "input_schema",
  "tool_calls",
  "tool_call_id",
  "tool_use_id",
  "call_id",
  "id",
  "output",
  "max_tokens",
  "n_predict",
  "max_output_tokens",
  "n",
  "temperature",
  "top_p",
  "top_k",
  "seed",
  "stop",
  "stop_sequences",
  "logprobs",
  "top_logprobs",
  "logit_bias",
  "stream",
  "stream_options",
  "include_usage",
  "response_format",
  "json_schema",
  "schema",
  "format",
  "grammar",
  "structured_outputs",
  "regex",
  "choice",
  "options",
  "num_predict",
  "think",
  "thinking",
  "raw",
  "echo",
  "tokens",
  "add_special",
  "with_pieces",
  "previous_response_id",
  "store",
  "instructions",
  "reasoning_effort",
  "chat_template_kwargs",
  "properties",
  "__proto__",
  "constructor",
]

const { value } = fc.letrec((tie) => ({
  value: fc.oneof({ maxDepth: 4, depthSize: "small" }, scalar, type, tie("list"), tie("object")),
  list: fc.array(tie("value"), { maxLength: 4 }),
  object: fc.dictionary(fc.constantFrom(...KEYS), tie("value"), { maxKeys: 5 }),
}))

const message = fc.record(
  {
    role: fc.constantFrom("user", "assistant", "system", "tool", "developer"),
    content: fc.oneof(
      text,
      fc.array(fc.record({ type, text, name: text, input: value }, { requiredKeys: ["type"] }), {
        maxLength: 3,
      }),
    ),
    tool_calls: fc.array(
      fc.record({ id: text, function: fc.record({ name: text, arguments: text }) }),
      { maxLength: 2 },
    ),
    tool_call_id: text,
  },
  { requiredKeys: ["role"] },
)
const tool = fc.oneof(
  fc.record({
    type: fc.constant("function"),
    function: fc.record({ name: text, parameters: value }),
  }),
  fc.record({ type: fc.constant("function"), name: text, parameters: value }),
  fc.record({ name: text, input_schema: value }),
)

/** What the routes need, right more often than not, and anything beside it. */
const body = fc
  .tuple(
    fc.record(
      {
        model: fc.constantFrom("fake", "default", "claude-x", "other"),
        messages: fc.array(message, { maxLength: 4 }),
        prompt: fc.oneof(text, fc.array(fc.oneof(text, fc.nat(300)), { maxLength: 3 })),
        input: fc.oneof(text, fc.array(message, { maxLength: 3 })),
        content: text,
        tokens: fc.array(fc.nat(300), { maxLength: 4 }),
        max_tokens: fc.integer({ min: -1, max: 20 }),
        tools: fc.array(tool, { maxLength: 2 }),
        stream: fc.boolean(),
      },
      { requiredKeys: [] },
    ),
    fc.dictionary(fc.constantFrom(...KEYS), value, { maxKeys: 3 }),
  )
  .map(([known, more]) => ({ ...known, ...more }))

const route = fc.constantFrom(
  "/v1/chat/completions",
  "/v1/completions",
  "/v1/responses",
  "/v1/messages",
  "/v1/messages/count_tokens",
  "/api/chat",
  "/api/generate",
  "/api/show",
  "/completion",
  "/tokenize",
  "/detokenize",
  "/apply-template",
)

test("no request makes the server fail, and every refusal says why in a sentence", async () => {
  const { post, failures, client } = testServer({
    answer: (call) =>
      ["Hello", '<tool_call>{"name": "x", "arguments": {}}</tool_call>', "{]"][call % 3] as string,
  })
  await fc.assert(
    fc.asyncProperty(route, fc.oneof(body, value), async (path, sent) => {
      const response = await post(path, JSON.stringify(sent) ?? "")
      const said = await response.text()
      expect(response.status).toBeLessThan(500)
      if (response.status < 400) return
      const { error } = JSON.parse(said) as { error: string | { message: string } }
      const sentence = typeof error === "string" ? error : error.message
      expect(sentence.length).toBeGreaterThan(8)
      expect(sentence).not.toContain("undefined")
      expect(sentence).not.toContain("[object")
    }),
    { numRuns: RUNS },
  )
  expect(failures).toEqual([])
  expect(client.running).toBe(0)
}, 600_000)
