import { afterAll, expect, test } from "bun:test"
import { createHash } from "node:crypto"
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import fc from "fast-check"

import { Catalog } from "../../src/cli/library/catalog.ts"
import { Store } from "../../src/cli/library/store.ts"
import { engineConfig } from "../../src/config.ts"
import type { ServerDeps } from "../../src/server/types.ts"
import { golden } from "../setup.ts"
import { FakeClient, fillingTokenizer, testServer, until } from "./fakes.ts"

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
  "conversation",
  "background",
  "items",
  "metadata",
  "store",
  "instructions",
  "reasoning_effort",
  "chat_template_kwargs",
  "properties",
  "__proto__",
  "constructor",
  "from",
  "files",
  "source",
  "destination",
  "quantize",
  "template",
  "license",
  "keep_alive",
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

const good = fc.record({ role: fc.constantFrom("user", "assistant"), content: text })
const conversation = fc
  .array(good, { maxLength: 3 })
  .map((rest) => [{ role: "user", content: "hi" }, ...rest])
const functionTool = {
  type: "function",
  function: { name: "x", parameters: { type: "object", properties: { a: { type: "string" } } } },
}

/** A request that each route takes. */
const SOUND: Readonly<Record<string, fc.Arbitrary<Record<string, unknown>>>> = {
  "/v1/chat/completions": fc.record(
    {
      messages: conversation,
      tools: fc.constant([functionTool]),
      tool_choice: fc.constantFrom("auto", "required", "none"),
      stream: fc.boolean(),
      n: fc.integer({ min: 1, max: 3 }),
      logprobs: fc.boolean(),
      stop: text.filter((t) => t !== ""),
      response_format: fc.constant({ type: "json_object" }),
    },
    { requiredKeys: ["messages"] },
  ),
  "/v1/completions": fc.record(
    {
      prompt: fc.constantFrom("a", "b c"),
      stream: fc.boolean(),
      echo: fc.boolean(),
      max_tokens: fc.nat(9),
    },
    { requiredKeys: ["prompt"] },
  ),
  "/v1/responses": fc.record(
    {
      input: fc.oneof(fc.constant("hi"), conversation),
      stream: fc.boolean(),
      store: fc.boolean(),
      background: fc.boolean(),
      tools: fc.constant([{ type: "function", name: "x", parameters: { type: "object" } }]),
    },
    { requiredKeys: ["input"] },
  ),
  "/v1/conversations": fc.record(
    { items: conversation, metadata: fc.dictionary(text, text, { maxKeys: 2 }) },
    { requiredKeys: [] },
  ),
  "/v1/messages": fc.record(
    {
      model: fc.constant("fake"),
      max_tokens: fc.integer({ min: 1, max: 90 }),
      messages: conversation,
      stream: fc.boolean(),
      tools: fc.constant([{ name: "x", input_schema: { type: "object" } }]),
      tool_choice: fc.constantFrom({ type: "any" }, { type: "auto" }, { type: "none" }),
    },
    { requiredKeys: ["model", "max_tokens", "messages"] },
  ),
  "/v1/messages/count_tokens": fc.record({ model: fc.constant("fake"), messages: conversation }),
  "/api/chat": fc.record(
    {
      model: fc.constant("fake"),
      messages: conversation,
      stream: fc.boolean(),
      tools: fc.constant([functionTool]),
      format: fc.constantFrom("json", { type: "object" }),
      think: fc.boolean(),
    },
    { requiredKeys: ["model", "messages"] },
  ),
  "/api/generate": fc.record(
    {
      model: fc.constantFrom("fake", "made"),
      prompt: text,
      stream: fc.boolean(),
      raw: fc.boolean(),
      keep_alive: fc.constantFrom(0, -1, "1ms", "5m"),
    },
    { requiredKeys: ["model", "prompt"] },
  ),
  "/api/show": fc.record({ model: fc.constant("fake") }),
  "/api/create": fc.record(
    {
      model: fc.constantFrom("made", "made:too"),
      from: fc.constant("fake"),
      system: text,
      parameters: fc.constant({ temperature: 0.5, stop: ["x"] }),
      messages: conversation,
      license: text,
      stream: fc.boolean(),
    },
    { requiredKeys: ["model", "from"] },
  ),
  "/api/copy": fc.record({
    source: fc.constantFrom("fake", "made"),
    destination: fc.constantFrom("made", "copied"),
  }),
  "DELETE /api/delete": fc.record({ model: fc.constantFrom("made", "made:too", "copied") }),
  "/api/pull": fc.record({ model: fc.constant("fake"), stream: fc.boolean() }),
  [`/api/blobs/sha256:${createHash("sha256").update("{}").digest("hex")}`]: fc.constant({}),
  "/completion": fc.record(
    {
      prompt: fc.constantFrom("a", ["a", 7]),
      stream: fc.boolean(),
      n_predict: fc.integer({ min: -1, max: 9 }),
    },
    { requiredKeys: ["prompt"] },
  ),
  "/infill": fc.record(
    { input_prefix: text, input_suffix: text, n_predict: fc.integer({ min: -1, max: 9 }) },
    { requiredKeys: ["input_prefix", "input_suffix"] },
  ),
  "/tokenize": fc.record({ content: text, with_pieces: fc.boolean() }),
  "/detokenize": fc.record({ tokens: fc.array(fc.nat(257)) }),
  "/apply-template": fc.record({ messages: conversation }),
}

/** A sound request; the same with a field or two replaced or added; or anything. */
const request = fc.constantFrom(...Object.keys(SOUND)).chain((path) => {
  const sound = SOUND[path] as fc.Arbitrary<Record<string, unknown>>
  const field = fc.constantFrom(...KEYS)
  const odd = fc.oneof(value, fc.array(message, { maxLength: 2 }), fc.array(tool, { maxLength: 2 }))
  const changed = fc
    .tuple(sound, fc.dictionary(field, odd, { minKeys: 1, maxKeys: 2 }))
    .map(([base, changes]) => ({ ...base, ...changes }))
  const own = fc.tuple(sound, fc.nat(), odd).map(([base, place, other]) => {
    const keys = Object.keys(base)
    if (keys.length === 0) return base
    return { ...base, [keys[place % keys.length] as string]: other }
  })
  const sent = fc.oneof(
    { weight: 4, arbitrary: sound },
    { weight: 3, arbitrary: changed },
    { weight: 3, arbitrary: own },
    { weight: 1, arbitrary: value },
  )
  return sent.map((body) => ({ path, body }))
})

/** A folder with one model, "fake", whose engine is a script; models may be made of it. */
function modelsOf(client: FakeClient): NonNullable<ServerDeps["models"]> {
  const folder = join(home, "models")
  mkdirSync(folder)
  copyFileSync(golden("gguf", "llama-f16.gguf"), join(folder, "fake.gguf"))
  const store = new Store(join(home, "created"), folder)
  const catalog = new Catalog({ folder, config: engineConfig({}), store })
  const tokenizer = fillingTokenizer
  return {
    library: {
      store: catalog.store,
      list: () => catalog.list(),
      describe: (model) => catalog.describe(model),
      check: (model) => catalog.check(model),
      load: async () => ({ client, tokenizer, withTemplate: () => tokenizer }),
    },
    aliases: [],
    maxModels: 2,
    memoryBytes: Number.POSITIVE_INFINITY,
    keepAliveMs: 1000,
    loadTimeoutMs: 10_000,
  }
}

const home = mkdtempSync(join(tmpdir(), "kt-fuzz-"))
afterAll(() => rmSync(home, { recursive: true, force: true }))

test("no request makes the server fail, and every refusal says why in a sentence", async () => {
  const script = {
    answer: (call: number) =>
      ["Hello", '<tool_call>{"name": "x", "arguments": {}}</tool_call>', "{]"][call % 3] as string,
  }
  const client = new FakeClient(script)
  const { app, failures } = testServer(script, {}, { models: modelsOf(client) })
  const answered = new Set<string>()
  await fc.assert(
    fc.asyncProperty(request, async ({ path, body }) => {
      const [method, route] = path.startsWith("DELETE ")
        ? ["DELETE", path.slice(7)]
        : ["POST", path]
      const response = await app.request(route, { method, body: JSON.stringify(body) ?? "" })
      const said = await response.text()
      if (response.status === 200 || response.status === 201) answered.add(path)
      expect(response.status < 500 ? "" : `${response.status} ${said}`).toBe("")
      if (response.status < 400) return
      const { error } = JSON.parse(said) as { error: string | { message: string } }
      const sentence = typeof error === "string" ? error : error.message
      expect(sentence.length).toBeGreaterThan(8)
      expect(sentence).not.toContain("undefined")
      expect(sentence).not.toContain("[object")
    }),
    { numRuns: RUNS },
  )
  expect([...answered].toSorted()).toEqual(Object.keys(SOUND).toSorted())
  expect(failures).toEqual([])
  await until(() => client.running === 0)
}, 600_000)
