import { describe, expect, test } from "bun:test"

import { chatBody, chatEvents, responseFailure } from "../../src/web/api.ts"
import { EMPTY_SETTINGS } from "../../src/web/types.ts"

async function* from(items: readonly (object | string)[]): AsyncGenerator<string> {
  for (const item of items) yield typeof item === "string" ? item : JSON.stringify(item)
}

const collect = (items: readonly (object | string)[]): Promise<object[]> =>
  Array.fromAsync(chatEvents(from(items)))

const delta = (content: string): object => ({ choices: [{ delta: { content } }] })
const finish = (reason: string): object => ({ choices: [{ delta: {}, finish_reason: reason }] })

describe("chatEvents", () => {
  test("reads text, reasoning, usage and the end", async () => {
    const events = await collect([
      { choices: [{ delta: { role: "assistant", content: "" } }] },
      { choices: [{ delta: { reasoning_content: "hm" } }] },
      delta("Hi"),
      finish("stop"),
      {
        choices: [],
        usage: { prompt_tokens: 9, completion_tokens: 2 },
        timings: { prompt_n: 4, cache_n: 5, predicted_n: 2, predicted_per_second: 80.5 },
      },
      "[DONE]",
    ])
    expect(events).toEqual([
      { type: "reasoning", text: "hm" },
      { type: "text", text: "Hi" },
      {
        type: "usage",
        usage: { promptTokens: 9, answerTokens: 2, cachedTokens: 5, tokensPerSecond: 80.5 },
      },
      { type: "end", reason: "done" },
    ])
  })

  test("tells an answer cut by its length", async () => {
    expect((await collect([delta("a"), finish("length"), "[DONE]"])).at(-1)).toEqual({
      type: "end",
      reason: "length",
    })
  })

  test("a stream that just ends is a lost connection, unless it had finished", async () => {
    const lost = (await collect([delta("a")])).at(-1)
    expect(lost).toMatchObject({ type: "failure", failure: { kind: "connection" } })
    expect((await collect([delta("a"), finish("stop")])).at(-1)).toEqual({
      type: "end",
      reason: "done",
    })
  })

  test("passes on an error in the stream and reports what is not a chunk", async () => {
    const error = { type: "failure", failure: { kind: "server", message: "out of pages" } }
    expect(await collect([{ error: { message: "out of pages" } }])).toEqual([error])
    expect((await collect(["<html>"])).at(-1)).toMatchObject({ failure: { kind: "server" } })
  })

  test("takes counts from timings where there is no usage", async () => {
    const [usage] = await collect([
      { choices: [], timings: { prompt_n: 4, cache_n: 5, predicted_n: 2 } },
    ])
    expect(usage).toEqual({
      type: "usage",
      usage: { promptTokens: 9, answerTokens: 2, cachedTokens: 5 },
    })
  })
})

test("chatBody leaves out settings that are unset and asks for usage", () => {
  const settings = { ...EMPTY_SETTINGS, temperature: 0, top_k: 40, system: "not here" }
  expect(chatBody({ messages: [], settings, model: "m" })).toEqual({
    model: "m",
    messages: [],
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    temperature: 0,
    top_k: 40,
  })
  expect(chatBody({ messages: [], settings: EMPTY_SETTINGS, model: undefined })).not.toHaveProperty(
    "model",
  )
})

describe("responseFailure", () => {
  test("knows a missing key, a busy server and a bad request", async () => {
    const key = await responseFailure(
      Response.json({ error: { message: "no key" } }, { status: 401 }),
    )
    expect(key).toEqual({ kind: "auth", message: "no key" })
    const busy = await responseFailure(
      Response.json(
        { error: { message: "queue full" } },
        { status: 429, headers: { "retry-after": "3" } },
      ),
    )
    expect(busy).toEqual({ kind: "busy", message: "queue full", retryAfter: 3 })
    const bad = await responseFailure(Response.json({ error: "too long" }, { status: 400 }))
    expect(bad).toEqual({ kind: "request", message: "too long" })
  })

  test("has words for an answer without any", async () => {
    const failure = await responseFailure(new Response("<h1>Bad Gateway</h1>", { status: 502 }))
    expect(failure).toEqual({ kind: "server", message: "The server answered with status 502." })
  })
})
