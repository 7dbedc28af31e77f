import { describe, expect, test } from "bun:test"
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { at, BOS, type Json, json, list, testServer } from "./fakes.ts"

function temporary(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), "kt-slots-"))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}

const bytes = (text: string): number[] => [...new TextEncoder().encode(text)]

describe("tokens", () => {
  test("of text, with pieces, and back", async () => {
    const { post } = testServer()
    expect(at(await json(post("/tokenize", { content: "né" })), "tokens")).toEqual(bytes("né"))
    const special = await json(post("/tokenize", { content: ["a", 98, "c"], add_special: true }))
    expect(at(special, "tokens")).toEqual([BOS, 97, 98, 99])
    const pieces = await json(post("/tokenize", { content: "é!", with_pieces: true }))
    expect(list(pieces, "tokens")).toEqual([
      { id: 0xc3, piece: [0xc3] },
      { id: 0xa9, piece: [0xa9] },
      { id: 33, piece: "!" },
    ])
    const text = await json(post("/detokenize", { tokens: bytes("né") }))
    expect(text).toEqual({ content: "né" })
    const wrong = await post("/detokenize", { tokens: [999] })
    expect(wrong.status).toBe(400)
    expect(at(await json(wrong), "error", "message")).toContain("tokens 999")
  })

  test("a template applied, and the server's properties", async () => {
    const { post, app } = testServer()
    const messages = [{ role: "user", content: "hi" }]
    expect(await json(post("/apply-template", { messages }))).toEqual({
      prompt: "user:hi\nassistant:",
    })
    const props = (await (await app.request("/props")).json()) as Json
    expect(at(props, "total_slots")).toBeGreaterThan(0)
    expect(at(props, "default_generation_settings", "n_ctx")).toBeGreaterThan(0)
    expect(at(props, "model_alias")).toBe("fake")
  })
})

describe("slots", () => {
  test("busy ones are those that sequences take", async () => {
    const { app, post } = testServer({ then: "endless", delayMs: 1, maxBatchSize: 3 })
    const busy = async (): Promise<Json[]> =>
      ((await json(app.request("/slots"))) as Json[]).map((slot) => at(slot, "is_processing"))
    expect(await busy()).toEqual([false, false, false])
    const running = await post("/completion", { prompt: "a", stream: true })
    expect(await busy()).toEqual([true, false, false])
    await running.body?.cancel()
    expect(await busy()).toEqual([false, false, false])
    expect(at(await json(app.request("/slots")), 2)).toMatchObject({ id: 2, n_ctx: 2048 })
  })

  test("a slot is saved under a name, restored into another, and erased", async () => {
    using folder = temporary()
    const { post, client } = testServer({ answer: "Hello" }, { slotFolder: folder.path })
    const prompt = { prompt: "abcdefg", n_predict: 50 }
    expect(await json(post("/completion", { ...prompt, id_slot: 1 }))).toMatchObject({ id_slot: 1 })
    const saved = await json(post("/slots/1?action=save", { filename: "a-1.bin" }))
    // the start token, seven letters and those of the answer that others followed: three whole blocks
    expect(saved).toMatchObject({ id_slot: 1, filename: "a-1.bin", n_saved: 12, n_written: 48 })
    expect(readdirSync(folder.path)).toEqual(["a-1.bin"])
    expect(await json(post("/slots/0?action=restore", { filename: "a-1.bin" }))).toMatchObject({
      id_slot: 0,
      n_restored: 12,
      n_read: 48,
    })
    expect(client.known.size).toBe(3)
    // both begin alike: nothing is forgotten but what is the slot's own
    await json(post("/completion", { prompt: "abcdxyz.....", id_slot: 1 }))
    await json(post("/slots/1?action=save", { filename: "b" }))
    await json(post("/slots/2?action=restore", { filename: "b" }))
    expect(client.known.size).toBeGreaterThan(3)
    expect(await json(post("/slots/0?action=erase", {}))).toEqual({ id_slot: 0, n_erased: 12 })
    expect([...client.known].filter((name) => name.includes("103"))).toEqual([])
    expect(client.known.size).toBeGreaterThan(1)
    expect(await json(post("/slots/0?action=erase", {}))).toEqual({ id_slot: 0, n_erased: 0 })
  })

  test("what is wrong with a name, a file, a slot or the server is said", async () => {
    using folder = temporary()
    const { post } = testServer({}, { slotFolder: folder.path, slotLimitBytes: 40 })
    const said = async (response: Promise<Response>, status: number): Promise<string> => {
      expect((await response).status).toBe(status)
      return String(at(await json(response), "error", "message"))
    }
    for (const filename of ["../a", "a/b", "a\\b", "..", ".a", "", "x".repeat(129), "a\0b"])
      for (const action of ["save", "restore"])
        expect(await said(post(`/slots/0?action=${action}`, { filename }), 400)).toContain(
          "filename",
        )
    expect(await said(post("/slots/0?action=restore", { filename: "none" }), 404)).toContain("none")
    writeFileSync(join(folder.path, "bad"), new Uint8Array(16).fill(255))
    expect(await said(post("/slots/0?action=restore", { filename: "bad" }), 400)).toBe(
      "filename bad: it is damaged",
    )
    await json(post("/completion", { prompt: "abcdefghijklmnop", id_slot: 0 }))
    expect(await said(post("/slots/0?action=save", { filename: "big" }), 507)).toContain(
      "--slot-save-limit",
    )
    expect(readdirSync(folder.path)).toEqual(["bad"])
    expect(await said(post("/slots/99?action=erase", {}), 400)).toContain("there are 4 slots")
    expect(await said(post("/slots/0", {}), 400)).toContain("action")
    expect(await said(post("/completion", { prompt: "a", id_slot: 9 }), 400)).toContain("id_slot 9")
    const plain = testServer()
    const refused = await said(plain.post("/slots/0?action=save", { filename: "a" }), 501)
    expect(refused).toContain("--slot-save-path")
    expect((await plain.post("/slots/0?action=erase", {})).status).toBe(200)
  })
})

describe("/completion", () => {
  test("several prompts, texts in objects, and prompts of tokens", async () => {
    const { post, client } = testServer({ answer: (call) => "ab".charAt(call) })
    const both = (await json(post("/completions", { prompt: ["x", [121, "z"]] }))) as Json[]
    expect(both.map((one) => [at(one, "index"), at(one, "content")])).toEqual([
      [0, "a"],
      [1, "b"],
    ])
    expect([client.prompt(0), client.prompt(1)]).toEqual(["x", "yz"])
    await json(post("/completion", { prompt: { prompt_string: "one" } }))
    expect(client.prompt(2)).toBe("one")
    expect((await json(post("/completion", { prompt: ["a", 98] }))) as object).toHaveProperty(
      "index",
      0,
    )
    expect(client.prompt(3)).toBe("ab")
    expect((await post("/completion", { prompt: [{ text: "a" }] })).status).toBe(400)
  })

  test("fields: settings, those asked for, tokens of a stream, ids of the likeliest", async () => {
    const { post, client } = testServer({ answer: "a\nb" })
    const body = await json(
      post("/completion", { prompt: "x", seed: 4, n_predict: 9, ignore_eos: true }),
    )
    expect(body).toMatchObject({ has_new_line: true })
    expect(at(body, "generation_settings")).toMatchObject({
      seed: 4,
      n_predict: 9,
      ignore_eos: true,
    })
    expect(list(body, "generation_settings", "logit_bias").at(-1)).toMatchObject({ bias: null })
    const fields = ["content", "generation_settings/n_predict", "nothing/there"]
    const few = await json(
      post("/completion", { prompt: "x", n_predict: 3, response_fields: fields }),
    )
    expect(few).toEqual({ content: "a\nb", "generation_settings/n_predict": 3 })
    const streamed = await (await post("/completion", { prompt: "x", stream: true })).text()
    const tokens = streamed
      .split("\n\n")
      .filter((line) => line.startsWith("data: "))
      .flatMap((line) => (JSON.parse(line.slice(6)) as { tokens: number[] }).tokens)
    expect(tokens).toEqual(bytes("a\nb"))
    const likely = await json(post("/completion", { prompt: "x", n_probs: 2 }))
    const [first] = list(likely, "completion_probabilities")
    expect(at(first as Json, "id")).toBe(97)
    for (const one of list(first as Json, "top_logprobs"))
      expect(typeof at(one, "id")).toBe("number")
    await json(post("/completion", { prompt: "x", logit_bias: { bc: -3, "100": false } }))
    expect(client.calls.at(-1)!.params.logitBias).toEqual([
      [98, -3],
      [99, -3],
      [100, Number.NEGATIVE_INFINITY],
    ])
  })

  test("llama.cpp's other names of routes, and slots of conversations", async () => {
    const { post, app, client } = testServer()
    const messages = [{ role: "user", content: "hi" }]
    expect((await app.request("/models")).status).toBe(200)
    expect((await app.request("/v1/health")).status).toBe(200)
    const body = await json(post("/chat/completions", { messages, id_slot: 2 }))
    expect(at(body, "choices", 0, "message", "content")).toBe("Hello, world!")
    const counted = await json(post("/chat/completions/input_tokens", { messages }))
    expect(at(counted, "input_tokens")).toBe(client.calls[0]!.ids.length)
    expect(await json(post("/slots/2?action=erase", {}))).toEqual({
      id_slot: 2,
      n_erased: client.calls[0]!.ids.length + "Hello, world!".length,
    })
    expect((await post("/chat/completions", { messages, id_slot: 50 })).status).toBe(400)
  })

  test("whole", async () => {
    const { post, client } = testServer({ answer: "Hello", cachedTokens: 2 })
    const body = await json(post("/completion", { prompt: ["ab", 99], n_predict: 50, seed: 3 }))
    expect(body).toMatchObject({
      content: "Hello",
      tokens: [],
      stop: true,
      stop_type: "eos",
      stopping_word: "",
      tokens_predicted: 6,
      tokens_evaluated: 4,
      tokens_cached: 2,
      truncated: false,
    })
    expect([...client.calls[0]!.ids]).toEqual([BOS, 97, 98, 99])
    const cut = await json(post("/completion", { prompt: "a", n_predict: 3, return_tokens: true }))
    expect(cut).toMatchObject({ content: "Hel", stop_type: "limit", tokens: bytes("Hel") })
    const word = await json(post("/completion", { prompt: "a", stop: ["ll"] }))
    expect(word).toMatchObject({ content: "He", stop_type: "word", stopping_word: "ll" })
  })

  test("streamed, with probabilities", async () => {
    const { post } = testServer({ answer: "abc" })
    const response = await post("/completion", { prompt: "x", stream: true, n_probs: 1 })
    const frames = (await response.text()).trim().split("\n\n")
    const items = frames.map((frame) => JSON.parse(frame.replace(/^data: /, "")) as Json)
    expect(items.map((item) => at(item, "content")).join("")).toBe("abc")
    expect(items.map((item) => at(item, "stop"))).toEqual([false, false, false, true])
    expect(list(items[0]!, "completion_probabilities")[0]).toMatchObject({
      token: "a",
      logprob: -0.5,
      top_logprobs: [{ token: "a" }],
    })
  })

  test("what the engine is asked", async () => {
    const { post, client } = testServer()
    await post("/completion", {
      prompt: "x",
      json_schema: { type: "object" },
      logit_bias: [
        [5, 2],
        [6, false],
      ],
      ignore_eos: true,
    })
    const { params } = client.calls[0]!
    expect(params.logitBias).toEqual([
      [5, 2],
      [6, Number.NEGATIVE_INFINITY],
    ])
    expect(params).toMatchObject({ ignoreEos: true })
    expect(params.grammar).toContain("json_schema")
    const refused = await post("/completion", { prompt: "x", mirostat: 4 })
    expect(refused.status).toBe(400)
    expect(at(await json(refused), "error", "message")).toContain("mirostat 4")
  })
})
