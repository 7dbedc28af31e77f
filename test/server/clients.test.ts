import { afterAll, beforeAll, describe, expect, test } from "bun:test"

import { Ollama } from "ollama"
import OpenAI, {
  APIError,
  AuthenticationError,
  BadRequestError,
  InternalServerError,
  NotFoundError,
  RateLimitError,
} from "openai"

import { type RunningServer, startServer } from "../../src/server/serve.ts"
import { type Script, type TestServer, testServer, until } from "./fakes.ts"

const ANSWER = "Grüße! 世界 👩‍💻, said STOP and went on."
const messages = [{ role: "user" as const, content: "hi" }]
const servers: RunningServer[] = []

function open(script: Script, maxQueue = 8): TestServer & { readonly url: string } {
  const fake = testServer(script, { apiKeys: ["secret"], maxQueue })
  const server = startServer({ app: fake.app, port: 0 })
  servers.push(server)
  return { ...fake, url: server.url }
}

function openai(url: string, apiKey = "secret"): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 })
}

function ollama(url: string, apiKey = "secret"): Ollama {
  return new Ollama({ host: url, headers: { authorization: `Bearer ${apiKey}` } })
}

/** What a promise (or the clients' own thenables) fails with. */
async function failure(work: () => PromiseLike<unknown>): Promise<unknown> {
  try {
    await work()
  } catch (error) {
    return error
  }
  throw new Error("it did not fail")
}

let main: ReturnType<typeof open>
let endless: ReturnType<typeof open>
let failing: ReturnType<typeof open>
beforeAll(() => {
  main = open({ answer: ANSWER, cachedTokens: 3 })
  endless = open({ then: "endless", delayMs: 3, maxBatchSize: 1 }, 0)
  failing = open({ failAt: 4 })
})
afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop(0)))
})

describe("the openai client", () => {
  test("chat, whole", async () => {
    const request = { model: "fake", messages, seed: 1, max_completion_tokens: 500 }
    const { data, request_id } = await openai(main.url)
      .chat.completions.create(request)
      .withResponse()
    expect(data.choices[0]?.message.content).toBe(ANSWER)
    expect(data.choices[0]?.finish_reason).toBe("stop")
    expect(data.usage?.prompt_tokens).toBe(19)
    expect(data.usage?.prompt_tokens_details?.cached_tokens).toBe(3)
    expect(request_id).toMatch(/^req_/)
  })

  test("chat, streamed, with usage", async () => {
    const stream = await openai(main.url).chat.completions.create({
      model: "fake",
      messages,
      stream: true,
      stream_options: { include_usage: true },
    })
    let text = ""
    let usage: number | undefined
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? ""
      usage = chunk.usage?.total_tokens ?? usage
    }
    expect(text).toBe(ANSWER)
    expect(usage).toBe(19 + new TextEncoder().encode(ANSWER).length + 1)
  })

  test("the stream helper collects the same answer, n choices too", async () => {
    const stream = openai(main.url).chat.completions.stream({
      model: "default",
      messages,
      n: 2,
      stop: ["STOP"],
      logprobs: true,
      top_logprobs: 1,
    })
    const completion = await stream.finalChatCompletion()
    const expected = ANSWER.slice(0, ANSWER.indexOf("STOP"))
    expect(completion.choices.map((choice) => choice.message.content)).toEqual([expected, expected])
    for (const choice of completion.choices) {
      const bytes = choice.logprobs?.content?.flatMap((token) => token.bytes ?? []) ?? []
      expect(new TextDecoder().decode(Uint8Array.from(bytes))).toBe(expected)
    }
  })

  test("text completions, whole and streamed", async () => {
    const client = openai(main.url)
    const prompt = [
      [72, 105],
      [72, 111],
    ]
    const whole = await client.completions.create({
      model: "fake",
      prompt,
      echo: true,
      max_tokens: 1,
    })
    expect(whole.choices.map((choice) => choice.text)).toEqual(["HiG", "HoG"])
    const scored = await client.completions.create({
      model: "fake",
      prompt: "Hi",
      echo: true,
      logprobs: 1,
      max_tokens: 0,
      best_of: 1,
    })
    expect(scored.choices[0]).toMatchObject({
      text: "Hi",
      logprobs: { tokens: ["<s>", "H", "i"], token_logprobs: [null, -0.125, -0.25] },
    })
    const stream = await client.completions.create({ model: "fake", prompt: "x", stream: true })
    let text = ""
    for await (const chunk of stream) text += chunk.choices[0]?.text ?? ""
    expect(text).toBe(ANSWER)
  })

  test("models", async () => {
    const client = openai(main.url)
    const ids: string[] = []
    for await (const model of client.models.list()) ids.push(model.id)
    expect(ids).toEqual(["fake"])
    expect((await client.models.retrieve("default")).id).toBe("fake")
    expect(await failure(() => client.models.retrieve("org/other"))).toBeInstanceOf(NotFoundError)
  })

  test("errors are the client's own classes", async () => {
    const chat = (client: OpenAI, more: object = {}): Promise<unknown> =>
      client.chat.completions.create({ model: "fake", messages, ...more })
    expect(await failure(() => chat(openai(main.url, "wrong")))).toBeInstanceOf(AuthenticationError)
    const range = await failure(() => chat(openai(main.url), { temperature: 5 }))
    expect(range).toBeInstanceOf(BadRequestError)
    expect(range).toMatchObject({
      status: 400,
      param: "temperature",
      code: "invalid_value",
      type: "invalid_request_error",
    })
    const long = [{ role: "user", content: "x".repeat(5000) }]
    const full = await failure(() => chat(openai(main.url), { messages: long }))
    expect((full as BadRequestError).code).toBe("context_length_exceeded")
    expect(await failure(() => chat(openai(failing.url)))).toBeInstanceOf(InternalServerError)
  })

  test("an engine failure in the middle of a stream is an APIError", async () => {
    const stream = await openai(failing.url).chat.completions.create({
      model: "fake",
      messages,
      stream: true,
    })
    let text = ""
    const error = await failure(async () => {
      for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ""
    })
    expect(text).toBe("Hell")
    expect(error).toBeInstanceOf(APIError)
    expect((error as APIError).message).toContain("the kernel failed")
  })

  test("abort, break and a full queue", async () => {
    const { client: engine, app, url } = endless
    const client = openai(url)
    const create = (): Promise<AsyncIterable<unknown> & { controller: AbortController }> =>
      client.chat.completions.create({ model: "fake", messages, stream: true })
    const stream = await create()
    await until(() => engine.running === 1)
    const busy = await failure(create)
    expect(busy).toBeInstanceOf(RateLimitError)
    expect((busy as RateLimitError).headers?.get("retry-after")).toMatch(/^\d+$/)
    let seen = 0
    for await (const _ of stream) if (++seen > 5) break
    await until(() => app.admission.active === 0 && engine.running === 0)

    const again = await create()
    // The client ends the loop quietly when its own controller aborts.
    for await (const _ of again) if (++seen === 10) again.controller.abort()
    expect(seen).toBe(10)
    await until(() => app.admission.active === 0 && engine.running === 0)
    expect(engine.calls.every((call) => call.sentAfterAbort <= 1)).toBe(true)
  })
})

describe("the ollama client", () => {
  test("chat, whole and streamed", async () => {
    const client = ollama(main.url)
    const whole = await client.chat({ model: "fake", messages, options: { num_predict: 500 } })
    expect(whole.message.content).toBe(ANSWER)
    expect(whole).toMatchObject({ done: true, done_reason: "stop", prompt_eval_count: 19 })
    expect(new Date(whole.created_at).getTime()).toBeGreaterThan(Date.now() - 60_000)
    let text = ""
    let count = 0
    const stream = await client.chat({
      model: "fake",
      messages,
      stream: true,
      options: { stop: ["STOP"] },
    })
    for await (const part of stream) {
      text += part.message.content
      if (part.done) count = part.eval_count
    }
    expect(text).toBe(ANSWER.slice(0, ANSWER.indexOf("STOP")))
    // The engine stops at the stop string's last byte.
    expect(count).toBe(new TextEncoder().encode(`${text}STOP`).length)
  })

  test("generate", async () => {
    const client = ollama(main.url)
    const whole = await client.generate({ model: "fake", prompt: "hi", raw: true })
    expect(whole.response).toBe(ANSWER)
    let text = ""
    for await (const part of await client.generate({ model: "fake", prompt: "hi", stream: true })) {
      text += part.response
    }
    expect(text).toBe(ANSWER)
  })

  test("list, show, ps and version", async () => {
    const client = ollama(main.url)
    expect((await client.list()).models.map((model) => model.name)).toEqual(["fake:latest"])
    expect((await client.show({ model: "fake" })).details.quantization_level).toBe("Q4_1")
    expect((await client.ps()).models[0]?.model).toBe("fake:latest")
    expect((await client.version()).version).toMatch(/^\d/)
  })

  test("errors carry the server's sentence", async () => {
    const chat = (client: Ollama, more: object = {}): Promise<unknown> =>
      client.chat({ model: "fake", messages, ...more })
    await expect(chat(ollama(main.url, "wrong"))).rejects.toThrow("the API key is not valid")
    await expect(chat(ollama(main.url), { model: "other" })).rejects.toThrow(
      'model "other" not found',
    )
    await expect(chat(ollama(main.url), { options: { top_p: 7 } })).rejects.toThrow(
      "options.top_p 7",
    )
    const stream = await ollama(failing.url).chat({ model: "fake", messages, stream: true })
    const read = async (): Promise<void> => {
      for await (const _ of stream) continue
    }
    await expect(read()).rejects.toThrow("the kernel failed")
  })

  test("abort", async () => {
    const { client: engine, app, url } = endless
    const client = ollama(url)
    const stream = await client.chat({ model: "fake", messages, stream: true })
    let seen = 0
    const read = async (): Promise<void> => {
      for await (const _ of stream) if (++seen === 5) client.abort()
    }
    expect((await failure(read)) as Error).toHaveProperty("name", "AbortError")
    await until(() => app.admission.active === 0 && engine.running === 0)
  })
})
