import { Database } from "bun:sqlite"
import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import OpenAI, { BadRequestError, NotFoundError } from "openai"

import { ConversationStore } from "../../src/server/openai/conversation-store.ts"
import { KeptDatabase } from "../../src/server/openai/kept-database.ts"
import { ResponseStore } from "../../src/server/openai/response-store.ts"
import { responseSchema } from "../../src/server/openai/responses-schema.ts"
import { type RunningServer, startServer } from "../../src/server/serve.ts"
import type { ServerConfig } from "../../src/server/types.ts"
import { type Script, type TestServer, testServer, until } from "./fakes.ts"

const servers: RunningServer[] = []
const folder = mkdtempSync(join(tmpdir(), "kt-responses-"))
afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop(0)))
  rmSync(folder, { recursive: true })
})

function open(
  script: Script,
  config: Partial<ServerConfig> = {},
): TestServer & {
  readonly api: OpenAI["responses"]
  readonly conversations: OpenAI["conversations"]
} {
  const fake = testServer(script, config)
  const server = startServer({ app: fake.app, port: 0 })
  servers.push(server)
  const options = { baseURL: `${server.url}/v1`, apiKey: "x", maxRetries: 0 }
  const { responses: api, conversations } = new OpenAI(options)
  return { ...fake, api, conversations }
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

  test("custom tools and those of namespaces are told and called; what OpenAI runs is left out", async () => {
    const call = (name: string, args: string): string =>
      `<tool_call>\n{"name": "${name}", "arguments": ${args}}\n</tool_call>`
    const { api, client } = open({
      answer: (n) =>
        n === 0
          ? call("patch", '{"input": "*** Begin\\n"}') + call("crm__find", '{"id": 7}')
          : "done",
    })
    const tools: OpenAI.Responses.Tool[] = [
      { type: "custom", name: "patch", description: "changes files" },
      {
        type: "namespace",
        name: "crm",
        description: "customers",
        tools: [{ type: "function", name: "find", parameters: { type: "object" } }],
      },
      { type: "web_search" },
    ]
    const events: OpenAI.Responses.ResponseStreamEvent[] = []
    for await (const event of await api.create({ input: "go", tools, stream: true }))
      events.push(event)
    expect(events).toContainEqual(
      expect.objectContaining({
        type: "response.custom_tool_call_input.done",
        input: "*** Begin\n",
      }),
    )
    const last = events.at(-1)
    if (last?.type !== "response.completed") throw new Error("it did not complete")
    expect(last.response.tools).toHaveLength(2)
    const [patch, find] = last.response.output
    expect(patch).toMatchObject({ type: "custom_tool_call", name: "patch", input: "*** Begin\n" })
    expect(find).toMatchObject({
      type: "function_call",
      name: "find",
      namespace: "crm",
      arguments: '{"id": 7}',
    })
    const prompt = client.prompt()
    expect(prompt).toContain("crm__find")
    expect(prompt).not.toContain("web_search")
    const { call_id } = patch as OpenAI.Responses.ResponseCustomToolCall
    await api.create({
      input: [{ type: "custom_tool_call_output", call_id, output: "patched" }],
      previous_response_id: last.response.id,
      tools,
    })
    expect(client.prompt(1)).toContain('"name":"crm__find"')
    expect(client.prompt(1)).toContain('{"input":"*** Begin\\n"}')
    expect(client.prompt(1)).toContain("tool:patched")
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
    const nameless = await api
      .create({ input: "x", tools: [{ type: "custom", name: "" }] })
      .catch((error: unknown) => error)
    expect(nameless).toBeInstanceOf(BadRequestError)
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

const message = (text: string): OpenAI.Responses.ResponseInputItem => ({
  role: "user",
  content: [{ type: "input_text", text }],
})

describe("background responses", () => {
  test("go on alone, can be followed from any event, and are read when done", async () => {
    const { api } = open({ answer: "Hello", delayMs: 5 })
    const begun = await api.create({ input: "hi", background: true })
    expect(begun).toMatchObject({ status: "in_progress", background: true, output: [] })
    expect((await api.retrieve(begun.id)).status).toBe("in_progress")
    const early = await api
      .create({ input: "more", previous_response_id: begun.id })
      .catch((error: unknown) => error)
    expect(String(early)).toContain("still computed")
    const all: OpenAI.Responses.ResponseStreamEvent[] = []
    for await (const event of await api.retrieve(begun.id, { stream: true })) all.push(event)
    expect(all.map(({ sequence_number }) => sequence_number)).toEqual(all.map((_, i) => i))
    expect(all.at(-1)?.type).toBe("response.completed")
    const rest: OpenAI.Responses.ResponseStreamEvent[] = []
    const query = { stream: true as const, starting_after: 3 }
    for await (const event of await api.retrieve(begun.id, query)) rest.push(event)
    expect(rest).toEqual(all.slice(4))
    expect(await api.retrieve(begun.id)).toMatchObject({
      status: "completed",
      output_text: "Hello",
    })
  })

  test("do not end with the client that began them", async () => {
    const { api, client } = open({ answer: "Hello", delayMs: 5 })
    const stream = await api.create({ input: "hi", background: true, stream: true })
    for await (const event of stream) if (event.type === "response.output_text.delta") break
    await until(() => client.calls[0]?.ended === "finished")
  })

  test("are cancelled, keep what was said, and are forgotten", async () => {
    const { api, client } = open({ answer: "on and on ", then: "endless", delayMs: 2 })
    const { id } = await api.create({ input: "hi", background: true })
    await until(() => (client.calls[0]?.sent ?? 0) > 4)
    const ended = await api.cancel(id)
    expect(ended.status).toBe("cancelled")
    expect(ended.output).toMatchObject([
      { status: "incomplete", content: [{ text: expect.stringMatching(/^on a/) }] },
    ])
    expect(client.running).toBe(0)
    expect((await api.cancel(id)).status).toBe("cancelled")
    const second = await api.create({ input: "hi", background: true })
    await api.delete(second.id)
    expect(client.running).toBe(0)
    const gone = await api.retrieve(second.id).catch((error: unknown) => error)
    expect(gone).toBeInstanceOf(NotFoundError)
  })

  test("tell of their failure, and of a server that ended before them", async () => {
    const { api, failures } = open({ failAt: 2 })
    const { id } = await api.create({ input: "hi", background: true })
    await until(() => failures.length > 0)
    const failed = await api.retrieve(id)
    expect(failed).toMatchObject({ status: "failed", error: { code: "engine_error" } })
    using kept = new KeptDatabase(":memory:")
    const response = { id: "resp_x", background: true, status: "in_progress", output: [] }
    new ResponseStore(kept).put("resp_x", { response, items: [], inputStart: 0, inputCount: 0 })
    const { app } = testServer({}, {}, { kept })
    const read = (await (await app.request("/v1/responses/resp_x")).json()) as unknown
    expect(read).toMatchObject({
      status: "failed",
      error: { message: expect.stringMatching(/server ended/) },
    })
  })

  test("cannot be asked for without being stored, and others cannot be cancelled", async () => {
    const { api } = open({})
    const unstored = await api
      .create({ input: "hi", background: true, store: false })
      .catch((error: unknown) => error)
    expect(unstored).toBeInstanceOf(BadRequestError)
    const { id } = await api.create({ input: "hi" })
    expect(await api.cancel(id).catch((error: unknown) => error)).toBeInstanceOf(BadRequestError)
  })
})

describe("conversations", () => {
  test("responses read and lengthen them", async () => {
    const { api, conversations, client } = open({ answer: (call) => `answer ${call}` })
    const { id } = await conversations.create({ items: [message("one")], metadata: { a: "b" } })
    const first = await api.create({ input: "two", conversation: id })
    expect(first.conversation).toEqual({ id })
    await api.create({ input: "three", conversation: { id } })
    expect(client.prompt(1)).toBe("user:one\nuser:two\nassistant:answer 0\nuser:three\nassistant:")
    const pages = conversations.items.list(id, { order: "asc", limit: 2 })
    const items = await Array.fromAsync(pages)
    expect(items.map((item) => item.type)).toEqual(Array(5).fill("message"))
    expect((await pages).has_more).toBe(true)
    const [last] = (await conversations.items.list(id)).data
    expect(last).toMatchObject({ role: "assistant", content: [{ text: "answer 1" }] })
    const itemId = (last as { id: string }).id
    const params = { conversation_id: id }
    expect(await conversations.items.retrieve(itemId, params)).toEqual(last as never)
    await conversations.items.delete(itemId, params)
    expect((await conversations.items.list(id)).data).toHaveLength(4)
    await conversations.items.create(id, { items: [message("four")] })
    expect((await conversations.items.list(id)).data).toHaveLength(5)
  })

  test("are changed, forgotten, and not found", async () => {
    const { api, conversations } = open({})
    const { id } = await conversations.create({ metadata: { a: "b" } })
    expect(await conversations.update(id, { metadata: { c: "d" } })).toMatchObject({
      metadata: { c: "d" },
    })
    expect((await conversations.retrieve(id)).metadata).toEqual({ c: "d" })
    expect(await conversations.delete(id)).toMatchObject({ deleted: true })
    for (const call of [
      () => conversations.retrieve(id),
      () => conversations.items.list(id),
      () => api.create({ input: "x", conversation: id }),
    ])
      expect(await call().catch((error: unknown) => error)).toBeInstanceOf(NotFoundError)
  })

  test("pages that make no sense, and both ways to go on at once, are refused", async () => {
    const { api, conversations } = open({})
    const { id } = await conversations.create()
    for (const query of [{ limit: 0 }, { limit: 101 }, { after: "none" }, { order: "up" as never }])
      expect(
        await conversations.items.list(id, query).catch((error: unknown) => error),
      ).toBeInstanceOf(BadRequestError)
    const previous = await api.create({ input: "x" })
    const both = { input: "x", conversation: id, previous_response_id: previous.id }
    expect(await api.create(both).catch((error: unknown) => error)).toBeInstanceOf(BadRequestError)
  })

  test("an item that was put out before is named by its id", async () => {
    const { api, client } = open({ answer: "said" })
    const first = await api.create({ input: "one" })
    const reference = { type: "item_reference" as const, id: first.output[0]!.id as string }
    await api.create({ input: [message("one"), reference, message("two")] })
    expect(client.prompt(1)).toBe("user:one\nassistant:said\nuser:two\nassistant:")
    const unknown = await api
      .create({ input: [{ type: "item_reference", id: "msg_none" }] })
      .catch((error: unknown) => error)
    expect(unknown).toBeInstanceOf(NotFoundError)
    expect(String(unknown)).toContain("msg_none")
  })
})

describe("the store", () => {
  const response = { status: "completed", output: [{ id: "msg_1" }] }
  const stored = { response, items: [1, 2, 3], inputStart: 1, inputCount: 2 }

  test("survives being opened again, also beside another", () => {
    const path = join(folder, "kept.sqlite")
    using firstFile = new KeptDatabase(path)
    const first = new ResponseStore(firstFile)
    first.put("r1", stored)
    using secondFile = new KeptDatabase(path)
    const second = new ResponseStore(secondFile)
    expect(second.item("msg_1")).toEqual({ id: "msg_1" })
    expect(second.get("r1")).toEqual(stored)
    expect(second.delete("r1")).toBe(true)
    expect(second.delete("r1")).toBe(false)
    expect(first.get("r1")).toBeUndefined()
    expect(first.item("msg_1")).toBeUndefined()
  })

  test("tells once that its file cannot be made, and goes on in memory", () => {
    const told: unknown[] = []
    using kept = new KeptDatabase("/dev/null/x.sqlite", (error) => told.push(error))
    const store = new ResponseStore(kept)
    expect(told).toEqual([])
    store.put("r1", stored)
    expect(store.get("r1")).toEqual(stored)
    expect(told).toHaveLength(1)
  })

  test("forgets what is old, and the oldest where there is too much", () => {
    const path = join(folder, "bounded.sqlite")
    using kept = new KeptDatabase(path)
    const store = new ResponseStore(kept)
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
  test("conversations that were not used for long leave with their items", () => {
    const path = join(folder, "conversations.sqlite")
    using kept = new KeptDatabase(path)
    const store = new ConversationStore(kept)
    const { id } = store.create({})
    store.add(id, [{ id: "a" }, { id: "b" }, { id: "a" }])
    expect(store.items(id)).toEqual([{ id: "a" }, { id: "b" }])
    using db = new Database(path)
    db.query("UPDATE conversations SET created = created - ?").run(31 * 24 * 60 * 60 * 1000)
    expect(store.get(id)).toBeUndefined()
    store.create({})
    expect(db.query("SELECT COUNT(*) AS n FROM conversation_items").get()).toEqual({ n: 0 })
  })
})
