import { describe, expect, test } from "bun:test"

import { at, json, list, sseItems, testServer } from "../server/fakes.ts"

/** Requests as programs send them that cannot be installed for a test. */
describe("llama.cpp's web page", () => {
  test("a streamed chat with all its settings", async () => {
    const { post, client } = testServer({ answer: "Hello" })
    const response = await post("/v1/chat/completions", {
      messages: [
        { role: "system", content: "Be short." },
        { role: "user", content: [{ type: "text", text: "hi" }] },
      ],
      return_progress: true,
      sse_ping_interval: 1,
      stream: true,
      reasoning_format: "auto",
      chat_template_kwargs: { enable_thinking: false },
      reasoning_control: true,
      temperature: 0.8,
      max_tokens: -1,
      dynatemp_range: 0,
      dynatemp_exponent: 1,
      top_k: 40,
      top_p: 0.95,
      min_p: 0.05,
      xtc_probability: 0,
      xtc_threshold: 0.1,
      typ_p: 0.9,
      repeat_last_n: 64,
      repeat_penalty: 1,
      presence_penalty: 0,
      frequency_penalty: 0,
      dry_multiplier: 0,
      dry_base: 1.75,
      dry_allowed_length: 2,
      dry_penalty_last_n: -1,
      samplers: ["top_k", "typ_p", "top_p", "min_p", "temperature"],
      backend_sampling: false,
      timings_per_token: true,
    })
    expect(response.status).toBe(200)
    const { items, done } = sseItems(await response.text())
    const text = items.map((item) => at(item, "choices", 0, "delta", "content") ?? "").join("")
    expect(text).toBe("Hello")
    expect(done).toBe(true)
    expect(at(items.at(-1), "timings", "predicted_n")).toBe(6)
    expect(client.calls[0]?.params.typicalP).toBe(0.9)
    expect(client.prompt()).toContain("hi")
  })

  test("what it reads of the server", async () => {
    const { app } = testServer()
    const props = await json(app.request("/props"))
    expect(at(props, "default_generation_settings", "n_ctx")).toBe(2048)
    expect(at(props, "modalities")).toEqual({ vision: false, audio: false })
    const models = await json(app.request("/v1/models"))
    expect(list(models, "data")).toHaveLength(1)
  })
})

/** What a stream of /completion says, and whether its last event stops. */
async function pieces(response: Response): Promise<{ text: string; stops: boolean }> {
  expect(response.status).toBe(200)
  const { items } = sseItems(await response.text())
  return {
    text: items.map((item) => at(item, "content")).join(""),
    stops: at(items.at(-1), "stop") === true,
  }
}

describe("Tabby", () => {
  test("completes by llama.cpp's route", async () => {
    const { post, client } = testServer({ answer: "return 1" })
    const request = {
      seed: 7,
      prompt: "def one():\n    ",
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
})

describe("Continue", () => {
  test("completes by llama.cpp's route", async () => {
    const { post, client } = testServer({ answer: "x + 1" })
    const request = {
      prompt: "y = ",
      stream: true,
      n_predict: 4096,
      mirostat: 0,
      stop: ["\n\n", "<|endoftext|>"],
      temperature: 0.01,
    }
    const headers = { authorization: "Bearer undefined" }
    const streamed = await pieces(await post("/completion", request, headers))
    expect(streamed).toEqual({ text: "x + 1", stops: true })
    expect(client.prompt()).toBe("y = ")
  })
})
