import { describe, expect, test } from "bun:test"

import { chatResponseSchema, generateResponseSchema } from "../../src/server/ollama/schema.ts"
import { at, type Json, json, list, ndjson, testServer } from "./fakes.ts"

const hello = { model: "fake", messages: [{ role: "user", content: "hi" }] }
const RFC3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/

describe("chat", () => {
  test("streams lines by default; the last has counts and durations in nanoseconds", async () => {
    const { post } = testServer({ delayMs: 2 })
    const response = await post("/api/chat", hello)
    expect(response.headers.get("content-type")).toBe("application/x-ndjson")
    const lines = ndjson(await response.text())
    expect(lines.map((line) => at(line, "message", "content")).join("")).toBe("Hello, world!")
    for (const line of lines) {
      expect(at(line, "model")).toBe("fake")
      expect(at(line, "created_at")).toMatch(RFC3339)
      expect(at(line, "message", "role")).toBe("assistant")
    }
    expect(lines.slice(0, -1).every((line) => at(line, "done") === false)).toBe(true)
    const last = lines.at(-1)
    expect(last).toMatchObject({
      done: true,
      done_reason: "stop",
      prompt_eval_count: 19,
      prompt_eval_duration: 5_000_000,
      eval_count: 14,
      load_duration: 0,
    })
    // 14 tokens with 2 ms before each.
    expect(at(last, "total_duration")).toBeGreaterThan(28e6)
    expect(at(last, "eval_duration")).toBeGreaterThan(26e6)
    expect(at(last, "total_duration")).toBeGreaterThan(Number(at(last, "eval_duration")))
  })

  test("stream false gives one object", async () => {
    const body = await json(testServer().post("/api/chat", { ...hello, stream: false }))
    expect(body).toMatchObject({
      message: { role: "assistant", content: "Hello, world!" },
      done: true,
      done_reason: "stop",
    })
  })

  test("a conversation that ends with the beginning of an answer has it go on", async () => {
    const { post, client } = testServer({ answer: "2}" })
    const messages = [...hello.messages, { role: "assistant", content: '{"a": 1' }]
    const body = await json(
      post("/api/chat", { ...hello, messages, format: "json", stream: false }),
    )
    expect(at(body, "message", "content")).toBe("2}")
    expect(client.prompt()).toEndWith('assistant:{"a": 1')
    expect(client.calls[0]!.params.grammarWritten).toBe('{"a": 1')
  })

  test("options reach the engine", async () => {
    const { post, client } = testServer({ then: "endless" })
    const body = await json(
      post("/api/chat", {
        ...hello,
        stream: false,
        keep_alive: "5m",
        options: {
          temperature: 0,
          top_k: 3,
          top_p: 0.5,
          min_p: 0.2,
          num_predict: 6,
          stop: ["zz"],
          seed: 9,
          repeat_penalty: 1.3,
          presence_penalty: 0.1,
          frequency_penalty: 0.2,
          num_ctx: 4096,
        },
      }),
    )
    expect(body).toMatchObject({ done_reason: "length", eval_count: 6 })
    expect(client.calls[0]!.params).toMatchObject({
      temperature: 0,
      topK: 3,
      topP: 0.5,
      minP: 0.2,
      maxTokens: 6,
      seed: 9,
      repetitionPenalty: 1.3,
      presencePenalty: 0.1,
      frequencyPenalty: 0.2,
    })
    await post("/api/chat", {
      ...hello,
      options: { num_predict: -1, stop: ["Hel"] },
      stream: false,
    })
    expect(client.calls[1]!.params.maxTokens).toBe(2048 - 19)
  })

  test("tools and think reach the template", async () => {
    const { post, client } = testServer()
    const tools = [{ type: "function", function: { name: "f" } }]
    await post("/api/chat", {
      model: "fake",
      stream: false,
      think: false,
      tools,
      messages: [
        { role: "user", content: "q" },
        { role: "assistant", tool_calls: [{ function: { name: "f", arguments: { x: 1 } } }] },
      ],
    })
    expect(client.prompt()).toBe(
      `tools:${JSON.stringify(tools)}\nvars:{"enable_thinking":false}\nuser:q\n` +
        'assistant:[{"type":"function","function":{"name":"f","arguments":{"x":1}}}]\nassistant:',
    )
  })

  test("log-probabilities", async () => {
    const body = await json(
      testServer({ answer: "ab" }).post("/api/chat", {
        ...hello,
        stream: false,
        logprobs: true,
        top_logprobs: 1,
      }),
    )
    expect(at(body, "logprobs")).toEqual([
      {
        token: "a",
        logprob: -0.5,
        bytes: [97],
        top_logprobs: [{ token: "a", logprob: -0.5, bytes: [97] }],
      },
      {
        token: "b",
        logprob: -0.5,
        bytes: [98],
        top_logprobs: [{ token: "b", logprob: -0.5, bytes: [98] }],
      },
    ])
  })

  test("no messages load the model", async () => {
    const { post, client } = testServer()
    const body = await json(post("/api/chat", { model: "fake", messages: [] }))
    expect(body).toMatchObject({ done: true, done_reason: "load", message: { content: "" } })
    expect(client.calls.length).toBe(0)
  })

  test("an engine failure is a line with error", async () => {
    const { post } = testServer({ failAt: 2 })
    const lines = ndjson(await (await post("/api/chat", hello)).text())
    expect(lines.at(-1)).toEqual({ error: "the kernel failed: status -4" })
    const response = await post("/api/chat", { ...hello, stream: false })
    expect([response.status, await response.json()]).toEqual([
      500,
      { error: "the kernel failed: status -4" },
    ])
  })
})

describe("generate", () => {
  test("uses the template with system, unless raw", async () => {
    const { post, client } = testServer()
    const body = await json(
      post("/api/generate", { model: "fake:latest", prompt: "hi", system: "s", stream: false }),
    )
    expect(body).toMatchObject({ model: "fake:latest", response: "Hello, world!", done: true })
    expect(client.prompt()).toBe("system:s\nuser:hi\nassistant:")
    const raw = await post("/api/generate", { model: "fake", prompt: "hi", raw: true })
    const lines = ndjson(await raw.text())
    expect(lines.map((line) => at(line, "response")).join("")).toBe("Hello, world!")
    expect(client.prompt(1)).toBe("hi")
  })

  test("an empty prompt loads", async () => {
    const body = await json(testServer().post("/api/generate", { model: "fake" }))
    expect(body).toMatchObject({ response: "", done: true, done_reason: "load" })
  })
})

test("answers are what the OpenAPI document says", async () => {
  const { post } = testServer()
  for (const line of ndjson(await (await post("/api/chat", hello)).text())) {
    chatResponseSchema.parse(line)
  }
  const body = { model: "fake", prompt: "x", stream: false, logprobs: true }
  generateResponseSchema.parse(await json(post("/api/generate", body)))
})

describe("models", () => {
  test("tags, ps, show, version", async () => {
    const { app, post } = testServer()
    const details = {
      parent_model: "",
      format: "gguf",
      family: "llama",
      families: ["llama"],
      parameter_size: "135M",
      quantization_level: "Q4_1",
    }
    const tags = await json(app.request("/api/tags"))
    expect(list(tags, "models")).toEqual([
      {
        name: "fake:latest",
        model: "fake:latest",
        size: 98_000_000,
        digest: "ab".repeat(32),
        details,
        modified_at: "2023-11-14T22:13:20.000Z",
      },
    ])
    const ps = await json(app.request("/api/ps"))
    expect(at(ps, "models", 0)).toMatchObject({
      name: "fake:latest",
      size_vram: 0,
      context_length: 2048,
    })
    const shown = await json(post("/api/show", { name: "fake" }))
    expect(shown).toMatchObject({
      details,
      capabilities: ["completion", "tools"],
      model_info: { "general.architecture": "llama", "llama.context_length": 8192 },
    })
    expect(at(shown, "template")).toContain("message.content")
    expect(at(await json(app.request("/api/version")), "version")).toMatch(/^\d+\.\d+\.\d+$/)
  })

  test("GET / and HEAD / say that it runs", async () => {
    const { app } = testServer()
    expect(await (await app.request("/")).text()).toBe("Ollama is running")
    for (const path of ["/", "/api/tags", "/api/version"]) {
      const head = await app.request(path, { method: "HEAD" })
      expect([head.status, await head.text()]).toEqual([200, ""])
    }
  })
})

describe("refusals are one sentence in Ollama's shape", () => {
  const bad: [name: string, path: string, body: unknown, status: number, text: string][] = [
    ["broken JSON", "/api/chat", "{", 400, "not JSON"],
    ["no model", "/api/chat", { messages: [] }, 400, "model: this field is required"],
    ["unknown model", "/api/chat", { ...hello, model: "x" }, 404, 'model "x" not found'],
    ["show unknown", "/api/show", { model: "x" }, 404, 'model "x" not found'],
    ["format", "/api/chat", { ...hello, format: "yaml" }, 400, "format"],
    ["think", "/api/chat", { ...hello, think: "hard" }, 400, "think"],
    [
      "images",
      "/api/chat",
      { model: "fake", messages: [{ role: "user", content: "x", images: ["AA=="] }] },
      400,
      "messages[0].images",
    ],
    [
      "option range",
      "/api/chat",
      { ...hello, options: { top_p: 2 } },
      400,
      "options.top_p 2: must be at most 1",
    ],
    ["mirostat", "/api/chat", { ...hello, options: { mirostat: 4 } }, 400, "options.mirostat 4"],
    ["unknown option", "/api/chat", { ...hello, options: { tempo: 1 } }, 400, "options.tempo"],
    ["num_predict", "/api/chat", { ...hello, options: { num_predict: 0 } }, 400, "num_predict 0"],
    ["suffix", "/api/generate", { model: "fake", prompt: "a", suffix: "b" }, 400, "cannot fill in"],
    ["context", "/api/generate", { model: "fake", prompt: "a", context: [1] }, 400, "context [1]"],
    [
      "raw with system",
      "/api/generate",
      { model: "fake", prompt: "a", raw: true, system: "s" },
      400,
      "system",
    ],
    ["unload", "/api/generate", { model: "fake", keep_alive: 0 }, 400, "keep_alive 0"],
    [
      "too long",
      "/api/generate",
      { model: "fake", prompt: "x".repeat(3000) },
      400,
      "the context is 2048 tokens",
    ],
    ["no route", "/api/nothing", { model: "x" }, 404, "there is no POST /api/nothing"],
    ["push", "/api/push", { model: "x" }, 400, "this server sends models nowhere"],
    ["no store", "/api/pull", { model: "x" }, 400, "this server has no folder for models"],
  ]
  test.each(bad)("%s", async (_name, path, body, status, text) => {
    const { post, client } = testServer()
    const response = await post(path, body)
    expect(response.status).toBe(status)
    const answer = await json(response)
    expect(Object.keys(answer as object)).toEqual(["error"])
    expect(at(answer, "error")).toContain(text)
    expect(client.calls.length).toBe(0)
  })
})

test("tool calls have their arguments as objects, after the text; thinking has its field", async () => {
  const tools = [{ type: "function", function: { name: "f" } }]
  const answer = 'hm</think>See.\n<tool_call>{"name": "f", "arguments": {"x": [1]}}</tool_call>'
  const { post } = testServer({ answer }, { forceThink: true })
  const message = {
    role: "assistant",
    content: "See.",
    thinking: "hm",
    tool_calls: [{ function: { index: 0, name: "f", arguments: { x: [1] } } }],
  }
  const whole = await json(post("/api/chat", { ...hello, tools, stream: false }))
  expect(at(whole, "message")).toEqual(message)
  const lines = (await (await post("/api/chat", { ...hello, tools })).text()).trim().split("\n")
  const items = lines.map((line) => JSON.parse(line) as Json)
  const texts = (field: string): string =>
    items.map((item) => at(item, "message", field) ?? "").join("")
  expect([texts("thinking"), texts("content")]).toEqual(["hm", "See."])
  expect(items.flatMap((item) => list(item, "message", "tool_calls"))).toEqual(message.tool_calls)
  expect(at(items.at(-1)!, "done_reason")).toBe("stop")
  const generated = await json(post("/api/generate", { model: "fake", prompt: "x", stream: false }))
  expect(generated).toMatchObject({ thinking: "hm", response: answer.slice("hm</think>".length) })
})
