import { describe, expect, test } from "bun:test"

import { at, type Json, json, list, sseItems, testServer } from "../server/fakes.ts"

/** Requests as the page that llama.cpp serves sends them. */
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
    const total = client.prompt().length + 1
    const progress = items.flatMap((item) => at(item, "prompt_progress") ?? [])
    expect(progress).toEqual(
      [0, total - 1, total].map((processed) => ({
        total,
        cache: 0,
        processed,
        time_ms: processed,
      })),
    )
    const counts = items.flatMap((item) => at(item, "timings", "predicted_n") ?? [])
    expect(counts.slice(0, 3)).toEqual([0, 0, 0])
    expect(counts).toEqual(counts.toSorted((a, b) => Number(a) - Number(b)))
  })

  test("progress and timings of texts, and what the model was given", async () => {
    const { post, client } = testServer({ answer: "Hello", delayMs: 1 })
    for (const [path, body, textOf] of [
      ["/completion", { n_predict: 20 }, (item: Json) => at(item, "content")],
      ["/v1/completions", { max_tokens: 20 }, (item: Json) => at(item, "choices", 0, "text")],
    ] as const) {
      const asked = { prompt: "hi", stream: true, return_progress: true, timings_per_token: true }
      const { items } = sseItems(await (await post(path, { ...asked, ...body })).text())
      expect(items.map((item) => textOf(item) ?? "").join("")).toBe("Hello")
      const parts = items.map((item) => at(item, "prompt_progress", "processed"))
      expect(parts.slice(0, 3)).toEqual([0, 2, 3])
      expect(at(items[0], "timings", "prompt_n")).toBe(0)
      expect(at(items[4], "timings", "predicted_n")).toBeGreaterThan(0)
      expect(parts.slice(3).filter((one) => one !== undefined)).toEqual([])
      // a whole answer has no place for it
      await post(path, { ...asked, ...body, stream: false })
      expect(client.calls.at(-1)?.params.tellsProgress).toBeUndefined()
      const refusal = await post(path, { prompt: "hi", post_sampling_probs: true })
      expect(refusal.status).toBe(400)
    }
    const messages = [{ role: "user", content: "hi" }]
    const told = await json(post("/v1/chat/completions", { messages, verbose: true }))
    expect(at(told, "__verbose", "prompt")).toContain("hi")
    const untold = await json(post("/v1/chat/completions", { messages, verbose: false }))
    expect(at(untold, "__verbose")).toBeUndefined()
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
