import { afterAll, beforeAll, describe, expect, test } from "bun:test"

import Anthropic, {
  APIError,
  AuthenticationError,
  BadRequestError,
  NotFoundError,
} from "@anthropic-ai/sdk"

import { messagesResponseSchema } from "../../src/server/anthropic/schema.ts"
import { type RunningServer, startServer } from "../../src/server/serve.ts"
import type { ServerConfig } from "../../src/server/types.ts"
import { at, json, type Script, type TestServer, testServer } from "./fakes.ts"

const servers: RunningServer[] = []
afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop(0)))
})

interface Opened extends TestServer {
  readonly api: Anthropic
  readonly url: string
}

function open(script: Script, config: Partial<ServerConfig> = {}): Opened {
  const fake = testServer(script, { apiKeys: ["secret"], ...config })
  const server = startServer({ app: fake.app, port: 0 })
  servers.push(server)
  const api = new Anthropic({ baseURL: server.url, apiKey: "secret", maxRetries: 0 })
  return { ...fake, api, url: server.url }
}

const hello = {
  model: "fake",
  max_tokens: 200,
  messages: [{ role: "user" as const, content: "hi" }],
}
const weather: Anthropic.Tool = {
  name: "weather",
  description: "of a city",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
}
const CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'

let plain: Opened
let calling: Opened
beforeAll(() => {
  plain = open({ answer: "Grüße! 世界, said STOP and on", cachedTokens: 3 })
  calling = open({ answer: `hm\n</think>\n\nLet me see.\n${CALL}\n${CALL}` }, { forceThink: true })
})

async function failure(work: () => PromiseLike<unknown>): Promise<APIError> {
  try {
    await work()
  } catch (error) {
    return error as APIError
  }
  throw new Error("it did not fail")
}

describe("Anthropic's client", () => {
  test("a whole message", async () => {
    const { data, request_id } = await plain.api.messages.create(hello).withResponse()
    expect(data.content).toEqual([{ type: "text", text: "Grüße! 世界, said STOP and on" }] as never)
    expect(data).toMatchObject({ role: "assistant", model: "fake", stop_reason: "end_turn" })
    expect(data.usage).toMatchObject({ cache_read_input_tokens: 3, cache_creation_input_tokens: 0 })
    expect(data.usage.input_tokens + 3).toBe(plain.client.calls.at(-1)!.ids.length)
    expect(request_id).toMatch(/^req_/)
    expect(messagesResponseSchema.parse(data)).toBeTruthy()
  })

  test("length, stop sequence, model names", async () => {
    const short = await plain.api.messages.create({ ...hello, max_tokens: 3 })
    expect(short.stop_reason).toBe("max_tokens")
    const stopped = await plain.api.messages.create({
      ...hello,
      model: "claude-opus-4-8",
      stop_sequences: ["STOP"],
    })
    expect(stopped).toMatchObject({ stop_reason: "stop_sequence", stop_sequence: "STOP" })
    expect(stopped.model).toBe("claude-opus-4-8")
  })

  test("a stream of text", async () => {
    const stream = plain.api.messages.stream(hello)
    const texts: string[] = []
    stream.on("text", (text) => texts.push(text))
    const message = await stream.finalMessage()
    expect(texts.join("")).toBe("Grüße! 世界, said STOP and on")
    expect(texts.length).toBeGreaterThan(5)
    expect(message.stop_reason).toBe("end_turn")
    expect(message.usage.output_tokens).toBeGreaterThan(20)
  })

  const expected = [
    { type: "thinking", thinking: "hm", signature: "" },
    { type: "text", text: "Let me see." },
    {
      type: "tool_use",
      id: expect.stringMatching(/^call_/),
      name: "weather",
      input: { city: "Köln" },
    },
    {
      type: "tool_use",
      id: expect.stringMatching(/^call_/),
      name: "weather",
      input: { city: "Köln" },
    },
  ]

  test("thinking and tools, whole and streamed", async () => {
    const request = { ...hello, tools: [weather] }
    const whole = await calling.api.messages.create(request)
    expect(whole.content).toEqual(expected as never)
    expect(whole.stop_reason).toBe("tool_use")
    const streamed = await calling.api.messages.stream(request).finalMessage()
    expect(streamed.content).toMatchObject(expected)
    expect(streamed.stop_reason).toBe("tool_use")
    const one = await calling.api.messages.create({
      ...request,
      tool_choice: { type: "auto", disable_parallel_tool_use: true },
    })
    expect(one.content.filter(({ type }) => type === "tool_use")).toHaveLength(1)
  })

  test("the events of a stream, in order", async () => {
    const events: string[] = []
    const stream = await calling.api.messages.create({ ...hello, tools: [weather], stream: true })
    for await (const event of stream) {
      const name =
        event.type === "content_block_start"
          ? `start ${event.index} ${event.content_block.type}`
          : event.type === "content_block_delta"
            ? `delta ${event.index} ${event.delta.type}`
            : event.type === "content_block_stop"
              ? `stop ${event.index}`
              : event.type
      if (events.at(-1) !== name) events.push(name)
    }
    const call = (i: number): string[] => [
      `start ${i} tool_use`,
      `delta ${i} input_json_delta`,
      `stop ${i}`,
    ]
    expect(events).toEqual([
      "message_start",
      "start 0 thinking",
      "delta 0 thinking_delta",
      "stop 0",
      "start 1 text",
      "delta 1 text_delta",
      "stop 1",
      ...call(2),
      ...call(3),
      "message_delta",
      "message_stop",
    ])
  })

  test("a conversation with results of tools reaches the template", async () => {
    const { api, client } = open({})
    await api.messages.create({
      ...hello,
      system: [{ type: "text", text: "be brief", cache_control: { type: "ephemeral" } }],
      messages: [
        { role: "user", content: [{ type: "text", text: "weather?" }] },
        {
          role: "assistant",
          content: [
            { type: "thinking", thinking: "hm", signature: "x" },
            { type: "text", text: "I look." },
            { type: "tool_use", id: "t1", name: "weather", input: { city: "Köln" } },
          ],
        },
        {
          role: "user",
          content: [
            { type: "tool_result", tool_use_id: "t1", content: [{ type: "text", text: "rain" }] },
            { type: "text", text: "so?" },
          ],
        },
      ],
    })
    const call =
      '[{"id":"t1","type":"function","function":{"name":"weather","arguments":{"city":"Köln"}}}]'
    expect(client.prompt()).toBe(
      `system:be brief\nuser:weather?\nassistant:I look.${call}\ntool:rain\nuser:so?\nassistant:`,
    )
  })

  test("tokens are counted as they would be computed", async () => {
    const request = { model: "fake", messages: hello.messages, tools: [weather], system: "s" }
    const { input_tokens } = await plain.api.messages.countTokens(request)
    await plain.api.messages.create({ ...request, max_tokens: 5 })
    expect(input_tokens).toBe(plain.client.calls.at(-1)!.ids.length)
  })

  test("a conversation that ends with the beginning of an answer has it go on", async () => {
    const { api, client } = open({ answer: " and more" })
    const { content } = await api.messages.create({
      ...hello,
      messages: [...hello.messages, { role: "assistant", content: "One" }],
    })
    expect(client.prompt()).toEndWith("assistant:One")
    expect(content).toEqual([{ type: "text", text: " and more" } as never])
  })

  test("a tool that must be called, strict tools and a schema become grammars", async () => {
    const { api, client } = open({ answer: CALL })
    await api.messages.create({ ...hello, tools: [weather], tool_choice: { type: "any" } })
    await api.messages.create({
      ...hello,
      tools: [weather],
      tool_choice: { type: "tool", name: "weather" },
    })
    const grammars = client.calls.map(({ params }) => params.grammar ?? "")
    for (const grammar of grammars) expect(grammar).toContain('\\"name\\": \\"weather\\"')
    await api.messages.create({ ...hello, tools: [weather], tool_choice: { type: "none" } })
    expect(client.calls.at(-1)!.params.grammar).toBeUndefined()
    expect(client.vocabulary?.ends).toHaveLength(client.info.vocabSize)
  })

  test("errors are the client's classes, with sentences", async () => {
    const wrong = new Anthropic({ baseURL: plain.url, apiKey: "wrong", maxRetries: 0 })
    expect(await failure(() => wrong.messages.create(hello))).toBeInstanceOf(AuthenticationError)
    const missing = await failure(() => plain.api.messages.create({ ...hello, model: "other" }))
    expect(missing).toBeInstanceOf(NotFoundError)
    expect(missing.message).toContain("not found; this server has")
    const image = await failure(() =>
      plain.api.messages.create({
        ...hello,
        messages: [
          {
            role: "user",
            content: [
              { type: "image", source: { type: "base64", media_type: "image/png", data: "AA==" } },
            ],
          },
        ],
      }),
    )
    expect(image).toBeInstanceOf(BadRequestError)
    expect(image.message).toContain("reads text only")
    const unknown = await failure(() =>
      plain.api.messages.create({
        ...hello,
        tools: [weather],
        tool_choice: { type: "tool", name: "x" },
      }),
    )
    expect(unknown.message).toContain("tool_choice x: there is no such tool")
    const failing = open({ failAt: 3 })
    expect((await failure(() => failing.api.messages.create(hello))).status).toBe(500)
    const midway = await failure(() => failing.api.messages.stream(hello).finalMessage())
    expect(midway.message).toContain("the kernel failed")
  })
})

test("errors have Anthropic's shape", async () => {
  const body = await json(testServer().post("/v1/messages", { model: "fake", messages: [] }))
  expect(at(body, "type")).toBe("error")
  expect(at(body, "error", "type")).toBe("invalid_request_error")
  expect(at(body, "error", "message")).toContain("messages")
})
