import { describe, expect, test } from "bun:test"

import { at, json, list, ndjson, sseItems, testServer } from "../server/fakes.ts"
import { PoolingClient } from "./pooling-client.ts"

// Open WebUI's two connections: the requests that its routers and tasks send, and what they read of the answers.

/** Sent with each request when an administrator wants callers named. */
const USER = {
  authorization: "Bearer sk-none",
  "x-openwebui-user-name": "Ada%20L",
  "x-openwebui-user-id": "1",
  "x-openwebui-user-email": "ada@example.org",
  "x-openwebui-user-role": "admin",
  "x-openwebui-chat-id": "c0ffee",
}

const TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a place",
    parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
  },
}

const TITLE = '### Task: Give this conversation a title of 3 to 5 words. JSON: { "title": "..." }'

describe("the OpenAI connection", () => {
  test("verify, and the list of models", async () => {
    const { app } = testServer()
    const answer = await app.request("/v1/models", { headers: USER })
    expect(answer.status).toBe(200)
    const body = await json(answer)
    const [model] = list(body, "data")
    expect(at(model, "id")).toBe("fake")
    // a name that is null would be dropped by hand
    expect(model).not.toHaveProperty("name", null)
    expect(at(body, "error")).toBeUndefined()
  })

  test("a chat with every setting of the sidebar, streamed", async () => {
    const { post, client } = testServer({ answer: "Hello" })
    const response = await post(
      "/v1/chat/completions",
      {
        stream: true,
        model: "fake",
        messages: [
          { role: "system", content: "Be short." },
          { role: "user", content: [{ type: "text", text: "hi" }] },
        ],
        temperature: 0.8,
        top_p: 0.9,
        min_p: 0.05,
        top_k: 40,
        max_tokens: 128,
        frequency_penalty: 0,
        presence_penalty: 0,
        repeat_penalty: 1.1,
        repeat_last_n: 64,
        mirostat: 0,
        mirostat_eta: 0.1,
        mirostat_tau: 5,
        seed: 3,
        stop: ["END"],
        logit_bias: { "65": -100 },
        reasoning_effort: "low",
        response_format: { type: "text" },
        stream_options: { include_usage: true },
      },
      USER,
    )
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toContain("text/event-stream")
    const { items, done } = sseItems(await response.text())
    const text = items.map((item) => at(item, "choices", 0, "delta", "content") ?? "").join("")
    expect([text, done]).toEqual(["Hello", true])
    const last = items.findLast((item) => at(item, "usage") !== undefined)
    expect(at(last, "usage")).toMatchObject({ completion_tokens: 6 })
    expect(client.calls[0]?.params).toMatchObject({ seed: 3, maxTokens: 128, penaltyLastN: 64 })
  })

  test("native function calling: the call, then its result", async () => {
    const call =
      '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Oslo"}}\n</tool_call>'
    const { post, client } = testServer({ answer: (i) => (i === 0 ? call : "It rains.") })
    const chat = { stream: true, model: "fake", tools: [TOOL] }
    const user = { role: "user", content: "Rain in Oslo?" }
    const asked = await post("/v1/chat/completions", { ...chat, messages: [user] }, USER)
    const deltas = sseItems(await asked.text()).items.map((item) =>
      at(item, "choices", 0, "delta", "tool_calls", 0),
    )
    // as its middleware puts them together: by index, names and arguments appended
    const heads = deltas.filter((delta) => at(delta, "id") !== undefined)
    expect(heads).toHaveLength(1)
    expect(at(heads[0], "index")).toBe(0)
    expect(at(heads[0], "function", "name")).toBe("get_weather")
    const args = deltas.map((delta) => at(delta, "function", "arguments") ?? "").join("")
    expect(JSON.parse(args)).toEqual({ place: "Oslo" })

    const id = at(heads[0], "id")
    const answered = await post(
      "/v1/chat/completions",
      {
        ...chat,
        messages: [
          user,
          {
            role: "assistant",
            content: "",
            tool_calls: [
              {
                index: 0,
                id,
                type: "function",
                function: { name: "get_weather", arguments: args },
              },
            ],
          },
          { role: "tool", tool_call_id: id, content: "rain" },
        ],
      },
      USER,
    )
    expect(answered.status).toBe(200)
    expect(client.prompt(1)).toContain("tool:rain")
  })

  test("titles, tags and follow-ups", async () => {
    const { post } = testServer({ answer: '{ "title": "Weather" }' })
    for (const extra of [{ max_completion_tokens: 1000 }, {}]) {
      const messages = [{ role: "user", content: TITLE }]
      const body = { model: "fake", messages, stream: false, ...extra }
      const answer = await json(post("/v1/chat/completions", body, USER))
      const message = at(answer, "choices", 0, "message")
      expect(JSON.parse(String(at(message, "content")))).toEqual({ title: "Weather" })
      expect(at(answer, "usage", "total_tokens")).toBeNumber()
    }
  })

  test("errors are read as error.message", async () => {
    const { post } = testServer()
    const answer = await post("/v1/chat/completions", {
      model: "none",
      messages: [{ role: "user", content: "x" }],
    })
    expect(answer.status).toBe(404)
    expect(at(await json(answer), "error", "message")).toBeString()
  })

  test("vectors of documents, and their order by a query", async () => {
    const { post } = testServer({}, {}, { client: new PoolingClient() })
    const input = ["abc", "de"]
    const vectors = await json(post("/v1/embeddings", { input, model: "fake" }, USER))
    expect(list(vectors, "data").map((one) => at(one, "embedding"))).toEqual([
      [4, 97],
      [3, 100],
    ])
    const asked = { model: "fake", query: "q", documents: ["a", "z"], top_n: 2 }
    const results = list(await json(post("/v1/rerank", asked, USER)), "results")
    const scores = results.toSorted((a, b) => Number(at(a, "index")) - Number(at(b, "index")))
    expect(scores.map((one) => at(one, "relevance_score"))).toEqual([97 / 256, 122 / 256])
  })
})

describe("the Ollama connection", () => {
  test("verify: a version of numbers", async () => {
    const { app } = testServer()
    const version = String(
      at(await json(app.request("/api/version", { headers: USER })), "version"),
    )
    const numbers = version
      .replace(/^v|-.*/g, "")
      .split(".")
      .map(Number)
    expect(numbers.every(Number.isInteger)).toBe(true)
  })

  /** It keeps the lists by `model`, and puts ":latest" behind a name that has no tag before it looks there. */
  test("a model is found in the lists under the name that requests get", async () => {
    const { app, post } = testServer()
    const models = list(await json(app.request("/api/tags")), "models")
    const byName = new Map(models.map((one) => [String(at(one, "model")), one]))
    const wanted = "fake".includes(":") ? "fake" : "fake:latest"
    expect(byName.has(wanted)).toBe(true)
    expect(at(byName.get(wanted), "details", "quantization_level")).toBe("Q4_1")
    const loaded = list(await json(app.request("/api/ps")), "models")
    const until = new Map(loaded.map((one) => [at(one, "name"), String(at(one, "expires_at"))]))
    // an ISO date with a zone
    expect(until.get(wanted)).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)$/)
    const shown = await json(post("/api/show", { model: wanted, name: wanted }))
    expect(at(shown, "capabilities")).toContain("completion")
  })

  test("a chat, streamed, with all options", async () => {
    const { post, client } = testServer({ answer: "Hello" })
    const response = await post(
      "/api/chat",
      {
        model: "fake:latest",
        messages: [
          { role: "system", content: "Be short." },
          { role: "user", content: "hi" },
        ],
        stream: true,
        format: "",
        keep_alive: "5m",
        think: false,
        options: {
          temperature: 0.8,
          top_p: 0.9,
          top_k: 40,
          min_p: 0.05,
          seed: 3,
          mirostat: 0,
          mirostat_eta: 0.1,
          mirostat_tau: 5,
          num_ctx: 2048,
          num_batch: 512,
          num_keep: 24,
          num_predict: 128,
          num_gpu: 1,
          num_thread: 2,
          repeat_last_n: 64,
          repeat_penalty: 1.1,
          presence_penalty: 0,
          frequency_penalty: 0,
          tfs_z: 1,
          use_mmap: true,
          use_mlock: false,
          stop: ["END"],
        },
      },
      USER,
    )
    expect(response.status).toBe(200)
    expect(response.headers.get("content-type")).toContain("application/x-ndjson")
    const lines = ndjson(await response.text())
    expect(lines.map((line) => at(line, "message", "content")).join("")).toBe("Hello")
    const last = lines.at(-1)
    expect(at(last, "done")).toBe(true)
    // its token rates divide these
    for (const field of [
      "total_duration",
      "load_duration",
      "prompt_eval_count",
      "prompt_eval_duration",
      "eval_count",
      "eval_duration",
    ])
      expect(at(last, field)).toBeNumber()
    expect(client.calls[0]?.params).toMatchObject({ seed: 3, maxTokens: 128 })
  })

  test("a task sends its limit beside the messages, not in the options", async () => {
    const { post, client } = testServer({ answer: "Weather" })
    const body = {
      model: "fake:latest",
      messages: [{ role: "user", content: TITLE }],
      stream: false,
      num_predict: 1000,
    }
    const answer = await json(post("/api/chat", body, USER))
    expect(at(answer, "message", "content")).toBe("Weather")
    expect(client.calls[0]?.params.maxTokens).toBe(1000)
    const both = { ...body, options: { num_predict: 7 }, system: "Be short." }
    expect((await post("/api/chat", both, USER)).status).toBe(200)
    expect(client.calls[1]?.params.maxTokens).toBe(7)
    expect(client.prompt(1)).toStartWith("system:Be short.\n")
  })

  test("tools: calls with ids and indices go back as they came", async () => {
    const call =
      '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Oslo"}}\n</tool_call>'
    const { post, client } = testServer({ answer: (i) => (i === 0 ? call : "It rains.") })
    const chat = { model: "fake:latest", stream: true, tools: [TOOL], options: {} }
    const user = { role: "user", content: "Rain in Oslo?" }
    const asked = await post("/api/chat", { ...chat, messages: [user] }, USER)
    const calls = ndjson(await asked.text()).flatMap((line) => {
      const found = at(line, "message", "tool_calls")
      return Array.isArray(found) ? found : []
    })
    expect(calls).toHaveLength(1)
    expect(at(calls[0], "function", "arguments")).toEqual({ place: "Oslo" })
    const said = { index: 0, id: "call_1", function: at(calls[0], "function") }
    const answered = await post("/api/chat", {
      ...chat,
      messages: [
        user,
        { role: "assistant", content: "", tool_calls: [said] },
        { role: "tool", tool_call_id: "call_1", content: "rain" },
      ],
    })
    expect(answered.status).toBe(200)
    expect(client.prompt(1)).toContain("tool:rain")
  })

  test("generate, and unloading by an empty prompt", async () => {
    const { post } = testServer({ answer: "Hello" })
    const body = { model: "fake:latest", prompt: "hi", stream: true }
    const lines = ndjson(await (await post("/api/generate", body, USER)).text())
    expect(lines.map((line) => at(line, "response")).join("")).toBe("Hello")
    // the model that the server was started with stays, and is said to
    const unload = await post("/api/generate", { model: "fake:latest", keep_alive: 0, prompt: "" })
    expect(unload.status).toBeLessThan(500)
  })

  test("vectors, by the newer route and the older", async () => {
    const { post } = testServer({}, {}, { client: new PoolingClient() })
    const many = await json(
      post("/api/embed", { model: "fake", input: ["abc", "de"], truncate: true }, USER),
    )
    expect(list(many, "embeddings")).toEqual([
      [4, 97],
      [3, 100],
    ])
    const one = await json(post("/api/embeddings", { model: "fake", prompt: "abc" }, USER))
    expect(at(one, "embedding")).toEqual([4, 97])
  })

  test("what a server without a folder for models says of pull, create, copy and delete", async () => {
    const { app, post } = testServer()
    const name = "fake:latest"
    const refusals = await Promise.all([
      post(
        "/api/pull",
        { model: "hf.co/org/model", name: "hf.co/org/model", insecure: true },
        USER,
      ),
      post("/api/create", { model: "x", stream: true, from: name, system: "Be short." }, USER),
      post("/api/copy", { source: name, destination: "x" }, USER),
      app.request("/api/delete", { method: "DELETE", body: JSON.stringify({ model: name, name }) }),
      post("/api/push", { model: name, insecure: true, stream: true }, USER),
    ])
    for (const response of refusals) {
      expect(response.status).toBe(400)
      expect(at(await json(response), "error")).toBeString()
    }
  })
})
