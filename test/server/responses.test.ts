import { Database } from "bun:sqlite"
import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import OpenAI, { BadRequestError, NotFoundError } from "openai"

import { ResponseStore } from "../../src/server/openai/response-store.ts"
import { responseSchema } from "../../src/server/openai/responses-schema.ts"
import { type RunningServer, startServer } from "../../src/server/serve.ts"
import type { ServerConfig } from "../../src/server/types.ts"
import { type Script, type TestServer, testServer } from "./fakes.ts"

const servers: RunningServer[] = []
const folder = mkdtempSync(join(tmpdir(), "kt-responses-"))
afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop(0)))
  rmSync(folder, { recursive: true })
})

function open(
  script: Script,
  config: Partial<ServerConfig> = {},
): TestServer & { readonly api: OpenAI["responses"] } {
  const fake = testServer(script, config)
  const server = startServer({ app: fake.app, port: 0 })
  servers.push(server)
  const { responses: api } = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "x", maxRetries: 0 })
  return { ...fake, api }
}

const tool = {
  type: "function" as const,
  name: "f",
  description: "d",
  parameters: { type: "object", properties: { x: { type: "integer" } } },
  strict: false,
}
const CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'

describe("the openai client", () => {
  test("a response, read again, and its input", async () => {
    const { api } = open({ answer: "Hello é", cachedTokens: 2 })
    const made = await api.create({ model: "fake", input: "hi", instructions: "be brief" })
    expect(made.output_text).toBe("Hello é")
    expect(made).toMatchObject({ status: "completed", instructions: "be brief", error: null })
    expect(made.usage?.input_tokens_details.cached_tokens).toBe(2)
    expect(responseSchema.parse(made)).toBeTruthy()
    const { output_text: _, ...bare } = made
    const { output_text: __, ...read } = await api.retrieve(made.id)
    expect(JSON.stringify(read)).toBe(JSON.stringify(bare))
    const items = await api.inputItems.list(made.id)
    expect(items.data).toMatchObject([
      { type: "message", role: "user", content: [{ type: "input_text", text: "hi" }] },
    ])
    await api.delete(made.id)
    const gone = await api.retrieve(made.id).catch((error: unknown) => error)
    expect(gone).toBeInstanceOf(NotFoundError)
  })

  test("a conversation goes on from an id; instructions do not", async () => {
    const { api, client } = open({ answer: (call) => `answer ${call}` })
    const first = await api.create({ input: "one", instructions: "be brief" })
    const second = await api.create({ input: "two", previous_response_id: first.id })
    await api.create({ input: "three", previous_response_id: second.id })
    expect(client.prompt(2)).toBe(
      "user:one\nassistant:answer 0\nuser:two\nassistant:answer 1\nuser:three\nassistant:",
    )
    const kept = await api.create({ input: "x", store: false })
    const missing = await api
      .create({ input: "y", previous_response_id: kept.id })
      .catch((error: unknown) => error)
    expect(missing).toBeInstanceOf(NotFoundError)
  })

  test("calls, their results, and a grammar where one must come", async () => {
    const { api, client } = open({ answer: (call) => (call === 0 ? `See.\n${CALL}` : "42") })
    const asked = await api.create({ input: "go", tools: [tool] })
    const [message, call] = asked.output
    expect(message).toMatchObject({ type: "message", content: [{ text: "See." }] })
    expect(call).toMatchObject({ type: "function_call", name: "f", arguments: '{"x": 1}' })
    const { call_id } = call as OpenAI.Responses.ResponseFunctionToolCall
    const output = { type: "function_call_output" as const, call_id, output: "seen" }
    const done = await api.create({
      input: [output],
      previous_response_id: asked.id,
      tools: [tool],
      tool_choice: { type: "function", name: "f" },
    })
    expect(done.output_text).toBe("42")
    const called = `[{"id":"${call_id}","type":"function","function":{"name":"f","arguments":{"x":1}}}]`
    expect(client.prompt(1)).toContain(`user:go\nassistant:See.${called}\ntool:seen\nassistant:`)
    expect(client.calls[1]!.params.grammar).toContain('\\"name\\": \\"f\\"')
    const schema = { type: "object", properties: {} }
    await api.create({
      input: "json",
      text: { format: { type: "json_schema", name: "n", schema, strict: true } },
    })
    expect(client.calls[2]!.params.grammar).toContain('"json_schema"')
  })

  test("a stream has the events of its items, numbered, and the same response at its end", async () => {
    const { api } = open({ answer: `hm</think>See.\n${CALL}` }, { forceThink: true })
    const stream = await api.create({ input: "go", tools: [tool], stream: true })
    const types: string[] = []
    let number = 0
    let last: OpenAI.Responses.ResponseStreamEvent | undefined
    const deltas: Record<string, string> = {}
    for await (const event of stream) {
      expect(event.sequence_number).toBe(number++)
      if (types.at(-1) !== event.type) types.push(event.type)
      if ("delta" in event) deltas[event.type] = (deltas[event.type] ?? "") + String(event.delta)
      last = event
    }
    const item = (name: string): string[] => [
      "response.output_item.added",
      "response.content_part.added",
      `response.${name}.delta`,
      `response.${name}.done`,
      "response.content_part.done",
      "response.output_item.done",
    ]
    expect(types).toEqual([
      "response.created",
      "response.in_progress",
      ...item("reasoning_text"),
      ...item("output_text"),
      "response.output_item.added",
      "response.function_call_arguments.delta",
      "response.function_call_arguments.done",
      "response.output_item.done",
      "response.completed",
    ])
    expect(deltas).toEqual({
      "response.reasoning_text.delta": "hm",
      "response.output_text.delta": "See.",
      "response.function_call_arguments.delta": '{"x": 1}',
    })
    if (last?.type !== "response.completed") throw new Error("it did not complete")
    const { response } = last
    expect(response.output.map(({ type }) => type)).toEqual([
      "reasoning",
      "message",
      "function_call",
    ])
    expect((await api.retrieve(response.id)).output).toEqual(response.output)
  })

  test("length, failures and what is refused", async () => {
    const { api } = open({ answer: "a long answer" })
    const cut = await api.create({ input: "x", max_output_tokens: 3 })
    expect(cut).toMatchObject({
      status: "incomplete",
      incomplete_details: { reason: "max_output_tokens" },
    })
    const image = await api
      .create({
        input: [
          { role: "user", content: [{ type: "input_image", detail: "auto", image_url: "x" }] },
        ],
      })
      .catch((error: unknown) => error)
    expect(image).toBeInstanceOf(BadRequestError)
    const search = await api
      .create({ input: "x", tools: [{ type: "web_search" }] })
      .catch((error: unknown) => error)
    expect(String(search)).toContain("only function tools")
    const failing = open({ failAt: 2 })
    const events: string[] = []
    const stream = await failing.api.create({ input: "x", stream: true })
    try {
      for await (const event of stream) events.push(event.type)
    } catch {
      // the client throws at the error event
    }
    expect(events).toContain("response.failed")
  })
})

describe("the store", () => {
  const stored = { response: { a: 1 }, items: [1, 2, 3], inputStart: 1, inputCount: 2 }

  test("survives being opened again, also beside another", () => {
    const path = join(folder, "kept.sqlite")
    using first = new ResponseStore(path)
    first.put("r1", stored)
    using second = new ResponseStore(path)
    expect(second.get("r1")).toEqual(stored)
    expect(second.delete("r1")).toBe(true)
    expect(second.delete("r1")).toBe(false)
    expect(first.get("r1")).toBeUndefined()
  })

  test("tells once that its file cannot be made, and goes on in memory", () => {
    const told: unknown[] = []
    using store = new ResponseStore("/dev/null/x.sqlite", (error) => told.push(error))
    expect(told).toEqual([])
    store.put("r1", stored)
    expect(store.get("r1")).toEqual(stored)
    expect(told).toHaveLength(1)
  })

  test("forgets what is old, and the oldest where there is too much", () => {
    const path = join(folder, "bounded.sqlite")
    using store = new ResponseStore(path)
    store.put("old", stored)
    store.put("big", stored)
    store.put("new", stored)
    using db = new Database(path)
    const month = 31 * 24 * 60 * 60 * 1000
    db.query("UPDATE responses SET created = created - ? WHERE id = 'old'").run(month)
    expect(store.get("old")).toBeUndefined()
    db.query("UPDATE responses SET bytes = ?, created = created - 1000 WHERE id = 'big'").run(
      2 ** 29,
    )
    store.put("newest", stored)
    const ids = db.query<{ id: string }, []>("SELECT id FROM responses ORDER BY id").all()
    expect(ids.map(({ id }) => id)).toEqual(["new", "newest"])
  })
})
