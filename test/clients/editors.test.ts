import { describe, expect, test } from "bun:test"

import {
  at,
  fillingTokenizer,
  type Json,
  json,
  list,
  ndjson,
  sseItems,
  testServer,
} from "../server/fakes.ts"
import { PoolingClient } from "./pooling-client.ts"

// Tabby and Continue: the requests that their sources send, and what they read of the answers.

/** What a stream of /completion says, and whether its last event stops. */
async function pieces(response: Response): Promise<{ text: string; stops: boolean }> {
  expect(response.status).toBe(200)
  const { items } = sseItems(await response.text())
  return {
    text: items.map((item) => at(item, "content")).join(""),
    stops: at(items.at(-1), "stop") === true,
  }
}

async function events(response: Response): Promise<Json[]> {
  expect(response.status).toBe(200)
  return sseItems(await response.text()).items
}

async function lines(response: Response): Promise<Json[]> {
  expect(response.status).toBe(200)
  return ndjson(await response.text())
}

const filling = { tokenizer: fillingTokenizer }
/** The prompt of a hole between "a(" and ")", as `fillingTokenizer` marks it. */
const HOLE = [256, 0xf8, ..."a(".split("").map((c) => c.charCodeAt(0)), 0xf9, 41, 0xfa]

describe("Tabby", () => {
  test("llama.cpp/completion, with the model's own marks of a hole in the prompt", async () => {
    const { post, client } = testServer({ answer: "return 1" })
    const request = {
      seed: 7,
      prompt: "<PRE> def one():\n     <SUF>\n <MID>",
      n_predict: 64,
      temperature: 0.1,
      penalty_last_n: 0,
      presence_penalty: 0,
    }
    const streamed = await pieces(await post("/completion", { ...request, stream: true }))
    expect(streamed).toEqual({ text: "return 1", stops: true })
    const whole = await json(post("/completion", { ...request, stream: false }))
    expect(at(whole, "content")).toBe("return 1")
    expect(client.calls[0]?.params).toMatchObject({ seed: 7, maxTokens: 64, temperature: 0.1 })
  })

  test("openai/completion: a suffix beside the prompt; vllm/completion: none", async () => {
    const { post, client } = testServer({ answer: "b" }, {}, filling)
    const request = {
      model: "fake",
      prompt: "a(",
      suffix: ")",
      max_tokens: 64,
      temperature: 0.1,
      stream: true,
      presence_penalty: 0,
    }
    const items = await events(await post("/v1/completions", request))
    expect(items.map((item) => at(item, "choices", 0, "text")).join("")).toBe("b")
    expect(at(items.at(-1), "choices", 0, "finish_reason")).toBe("stop")
    expect([...(client.calls[0]?.ids ?? [])]).toEqual(HOLE)
    expect((await post("/v1/completions", { ...request, suffix: null })).status).toBe(200)
    expect(client.prompt(1)).toBe("a(")
  })

  test("mistral/completion", async () => {
    const { post, client } = testServer({ answer: "b" }, {}, filling)
    const request = {
      prompt: "a(",
      suffix: ")",
      model: "fake",
      temperature: 0.1,
      max_tokens: 64,
      stream: true,
      random_seed: 7,
    }
    const items = await events(await post("/v1/fim/completions", request))
    // each event's content must be there, or Tabby stops
    const contents = items.map((item) => at(item, "choices", 0, "delta", "content"))
    expect(contents.every((content) => typeof content === "string")).toBe(true)
    expect(contents.join("")).toBe("b")
    expect(at(items.at(-1), "choices", 0, "finish_reason")).toBe("stop")
    expect([...(client.calls[0]?.ids ?? [])]).toEqual(HOLE)
    expect(client.calls[0]?.params).toMatchObject({ seed: 7, maxTokens: 64 })
    const whole = await json(post("/v1/fim/completions", { ...request, stream: false }))
    expect(at(whole, "choices", 0, "message", "content")).toBe("b")
    const plain = testServer()
    expect((await plain.post("/v1/fim/completions", request)).status).toBe(400)
  })

  test("ollama/completion: a template that is the prompt alone means raw", async () => {
    const { app, post, client } = testServer({ answer: "return 1" })
    const [first] = list(await json(app.request("/api/tags")), "models")
    const request = {
      model: at(first, "name"),
      prompt: "<PRE> def one():\n <SUF>\n <MID>",
      template: "{{ .Prompt }}",
      options: { num_predict: 64, seed: 7, repeat_last_n: 0, temperature: 0.1 },
      stream: true,
    }
    const items = await lines(await post("/api/generate", request))
    expect(items.map((item) => at(item, "response")).join("")).toBe("return 1")
    expect(client.prompt()).toBe(request.prompt)
    const other = await post("/api/generate", {
      ...request,
      template: "{{ .System }}{{ .Prompt }}",
    })
    expect(other.status).toBe(400)
  })

  test("openai/chat", async () => {
    const { post } = testServer({ answer: "It adds." })
    const request = {
      model: "fake",
      messages: [{ role: "user", content: "What does it do?" }],
      presence_penalty: 0.5,
      user: "ada@example.org",
      stream: true,
      stream_options: null,
    }
    const items = await events(await post("/v1/chat/completions", request))
    const text = items.map((item) => at(item, "choices", 0, "delta", "content") ?? "").join("")
    expect(text).toBe("It adds.")
    // its types want these in every event
    for (const item of items)
      expect(item).toMatchObject({
        id: expect.any(String),
        created: expect.any(Number),
        model: "fake",
        object: "chat.completion.chunk",
      })
  })

  test("llama.cpp/embedding counts tokens first; openai/embedding", async () => {
    const { post } = testServer({}, {}, { client: new PoolingClient() })
    const counted = await json(post("/tokenize", { content: "abc" }))
    expect(list(counted, "tokens").every((id) => typeof id === "number")).toBe(true)
    for (const path of ["/embeddings", "/embedding"])
      expect(at(await json(post(path, { content: "abc" })), 0, "embedding", 0)).toEqual([4, 97])
    const openai = await json(post("/v1/embeddings", { input: ["abc"], model: "fake" }))
    expect(at(openai, "data", 0, "embedding")).toEqual([4, 97])
  })
})

describe("Continue, llama.cpp", () => {
  test("completes", async () => {
    const { post, client } = testServer({ answer: "x + 1" })
    const request = {
      model: "fake",
      prompt: "<fim_prefix>y = <fim_suffix>\n<fim_middle>",
      stream: true,
      n_predict: 4096,
      mirostat: 0,
      stop: ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "/src/", "```"],
      temperature: 0.01,
    }
    const headers = { authorization: "Bearer undefined" }
    const streamed = await pieces(await post("/completion", request, headers))
    expect(streamed).toEqual({ text: "x + 1", stops: true })
    expect(client.prompt()).toBe(request.prompt)
  })
})

describe("Continue, openai", () => {
  const headers = { "x-api-key": "", authorization: "Bearer ", "api-key": "" }

  test("autocomplete: a prompt in the model's template", async () => {
    const { post, client } = testServer({ answer: "x + 1" })
    const request = {
      model: "fake",
      max_tokens: 256,
      temperature: 0.01,
      stream: true,
      stop: ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "\n\n"],
      prompt: "<|fim_prefix|>y = <|fim_suffix|>\n<|fim_middle|>",
    }
    const items = await events(await post("/v1/completions", request, headers))
    expect(items.map((item) => at(item, "choices", 0, "text")).join("")).toBe("x + 1")
    expect(client.prompt()).toBe(request.prompt)
  })

  test("autocomplete: the route for models with a hole", async () => {
    const { post, client } = testServer({ answer: "b" }, {}, filling)
    const request = {
      model: "fake",
      prompt: "a(",
      suffix: ")",
      max_tokens: 256,
      temperature: 0.01,
      stop: ["\n\n"],
      stream: true,
    }
    const items = await events(await post("/v1/fim/completions", request, headers))
    const texts = items.map((item) => at(item, "choices", 0, "delta", "content"))
    expect(texts.join("")).toBe("b")
    expect([...(client.calls[0]?.ids ?? [])]).toEqual(HOLE)
  })

  test("agent mode: a tool, its streamed call, and its result", async () => {
    const call =
      '<tool_call>\n{"name": "read_file", "arguments": {"filepath": "a.ts"}}\n</tool_call>'
    const { post } = testServer({ answer: (i) => (i === 0 ? call : "Done.") })
    const parameters = { type: "object", properties: { filepath: { type: "string" } } }
    const chat = {
      model: "fake",
      max_tokens: 512,
      stream: true,
      stream_options: { include_usage: true },
      parallel_tool_calls: false,
      tools: [{ type: "function", function: { name: "read_file", description: "", parameters } }],
    }
    const messages: unknown[] = [
      { role: "system", content: "You edit code." },
      { role: "user", content: [{ type: "text", text: "Read a.ts" }] },
    ]
    const asked = await events(await post("/v1/chat/completions", { ...chat, messages }, headers))
    const deltas = asked.flatMap((item) => list(item, "choices", 0, "delta", "tool_calls"))
    const args = deltas.map((delta) => at(delta, "function", "arguments") ?? "").join("")
    expect(JSON.parse(args)).toEqual({ filepath: "a.ts" })
    const id = at(deltas[0], "id")
    const said = { id, type: "function", function: { name: "read_file", arguments: args } }
    messages.push({ role: "assistant", content: " ", tool_calls: [said] })
    messages.push({ role: "tool", content: "let a", tool_call_id: id })
    const items = await events(await post("/v1/chat/completions", { ...chat, messages }, headers))
    expect(items.map((item) => at(item, "choices", 0, "delta", "content") ?? "").join("")).toBe(
      "Done.",
    )
    expect(at(items.at(-1), "usage", "completion_tokens")).toBe(6)
  })

  test("vectors in batches, a rank for each chunk, and what its vLLM provider reads", async () => {
    const { app, post } = testServer({}, {}, { client: new PoolingClient() })
    const vectors = await json(post("/v1/embeddings", { input: ["abc", "de"], model: "fake" }))
    expect(list(vectors, "data").map((one) => at(one, "embedding"))).toEqual([
      [4, 97],
      [3, 100],
    ])
    const asked = { model: "fake", query: "q", documents: ["a", "z"] }
    const results = list(await json(post("/v1/rerank", asked, headers)), "results")
    const order = results.toSorted((a, b) => Number(at(a, "index")) - Number(at(b, "index")))
    expect(order.map((one) => at(one, "relevance_score"))).toEqual([97 / 256, 122 / 256])
    const [model] = list(await json(app.request("/v1/models")), "data")
    expect([at(model, "id"), at(model, "max_model_len")]).toEqual(["fake", 2048])
  })
})

describe("Continue, huggingface-tei", () => {
  test("what it asks of the model, vectors, and ranks in any order", async () => {
    const { app, post } = testServer({}, {}, { client: new PoolingClient() })
    const info = await json(app.request("/info"))
    expect(at(info, "model_id")).toBe("fake")
    expect(Number(at(info, "max_client_batch_size"))).toBeGreaterThan(0)
    expect(await json(post("/embed", { inputs: ["abc", "de"] }))).toEqual([
      [4, 97],
      [3, 100],
    ])
    const long = { inputs: "x".repeat(3000) }
    expect((await post("/embed", long)).status).toBe(400)
    expect(await json(post("/embed", { ...long, truncate: true }))).toEqual([[2048, 120]])
    const asked = {
      query: "q",
      return_text: false,
      raw_scores: false,
      texts: ["a", "z"],
      truncation_direction: "Right",
      truncate: true,
    }
    const ranked = (await json(post("/rerank", asked))) as { index: number; score: number }[]
    const order = ranked.toSorted((a, b) => a.index - b.index)
    expect(order.map(({ score }) => score)).toEqual([97 / 256, 122 / 256])
  })
})

describe("Continue, ollama", () => {
  /** It takes a model for one that fills in where the template names .Suffix, and reads two parameters. */
  async function shown(post: ReturnType<typeof testServer>["post"]): Promise<Json> {
    return json(post("/api/show", { name: "fake" }))
  }

  test("what it asks of the model first", async () => {
    const plain = await shown(testServer().post)
    expect(String(at(plain, "template"))).not.toContain(".Suffix")
    expect(at(plain, "capabilities")).not.toContain("insert")
    const able = await shown(testServer({}, {}, filling).post)
    expect(String(at(able, "template"))).toContain(".Suffix")
    expect(at(able, "capabilities")).toContain("insert")
    const parameters = String(at(able, "parameters")).split("\n")
    const context = parameters.find((line) => line.startsWith("num_ctx "))
    expect(Number(context?.split(" ")[1])).toBe(2048)
  })

  test("autocomplete: a suffix where the model can, else a prompt as it is", async () => {
    const { post, client } = testServer({ answer: "b" }, {}, filling)
    const options = {
      temperature: 0.01,
      num_predict: 256,
      stop: ["\n\n"],
      num_ctx: 2048,
      num_thread: 2,
      use_mmap: true,
    }
    const common = { model: "fake", options, keep_alive: 1800, stream: true }
    const hole = await post("/api/generate", { ...common, prompt: "a(", suffix: ")" })
    expect((await lines(hole)).map((item) => at(item, "response")).join("")).toBe("b")
    expect([...(client.calls[0]?.ids ?? [])]).toEqual(HOLE)
    const raw = await post("/api/generate", { ...common, prompt: "a(", raw: true })
    expect((await lines(raw)).map((item) => at(item, "response")).join("")).toBe("b")
    expect(client.prompt(1)).toBe("a(")
  })

  test("chat with tools and thinking off", async () => {
    const { post } = testServer({ answer: "Hello" })
    const request = {
      model: "fake",
      messages: [
        { role: "user", content: "hi" },
        {
          role: "assistant",
          content: "",
          tool_calls: [{ function: { name: "read_file", arguments: { filepath: "a.ts" } } }],
        },
        { role: "tool", content: "let a" },
      ],
      options: { num_predict: 512, num_ctx: 2048 },
      think: false,
      keep_alive: 1800,
      stream: true,
      tools: [
        {
          type: "function",
          function: { name: "read_file", description: "", parameters: { type: "object" } },
        },
      ],
    }
    const items = await lines(await post("/api/chat", request))
    expect(items.map((item) => at(item, "message", "content")).join("")).toBe("Hello")
    expect(items.every((item) => at(item, "message", "role") === "assistant")).toBe(true)
  })

  test("models by name, vectors in batches", async () => {
    const { app, post } = testServer({}, {}, { client: new PoolingClient() })
    const names = list(await json(app.request("/api/tags")), "models").map((one) => at(one, "name"))
    expect(names).toEqual(["fake:latest"])
    const answer = await json(post("/api/embed", { model: names[0], input: ["abc", "de"] }))
    expect(list(answer, "embeddings")).toEqual([
      [4, 97],
      [3, 100],
    ])
  })
})
