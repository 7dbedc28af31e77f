import { describe, expect, test } from "bun:test"

import {
  chatResponseSchema,
  completionResponseSchema,
  errorSchema,
  modelListSchema,
} from "../../src/server/openai/schema.ts"
import type { ServerTokenizer } from "../../src/server/types.ts"
import { type ReasoningFormat, THINK_TAGS } from "../../src/tokenizer/chat-formats.ts"
import { at, byteTokenizer, EOS, type Json, json, list, sseItems, testServer } from "./fakes.ts"

const CHAT = "/v1/chat/completions"
const TEXT = "/v1/completions"
const hello = { model: "fake", messages: [{ role: "user", content: "hi" }] }

async function streamed(response: Response): Promise<Json[]> {
  expect(response.status).toBe(200)
  expect(response.headers.get("content-type")).toStartWith("text/event-stream")
  const { items, done } = sseItems(await response.text())
  expect(done).toBe(true)
  return items
}

function contentOf(items: readonly Json[], choice = 0): string {
  return items
    .flatMap((item) => [...list(item, "choices")])
    .filter((one) => at(one, "index") === choice)
    .map((one) => at(one, "delta", "content") ?? at(one, "text") ?? "")
    .join("")
}

describe("chat completions", () => {
  test("a whole answer has OpenAI's fields, usage and timings", async () => {
    const { post, client } = testServer({ cachedTokens: 4 })
    const body = await json(post(CHAT, hello))
    expect(at(body, "id")).toStartWith("chatcmpl-")
    expect(at(body, "object")).toBe("chat.completion")
    expect(at(body, "model")).toBe("fake")
    expect(at(body, "choices")).toEqual([
      {
        index: 0,
        message: { role: "assistant", content: "Hello, world!", refusal: null },
        logprobs: null,
        finish_reason: "stop",
      },
    ])
    const prompt = "user:hi\nassistant:".length + 1
    expect(client.prompt()).toBe("user:hi\nassistant:")
    expect(at(body, "usage")).toEqual({
      prompt_tokens: prompt,
      completion_tokens: 14,
      total_tokens: prompt + 14,
      prompt_tokens_details: { cached_tokens: 4 },
    })
    const timings = at(body, "timings")
    expect(timings).toMatchObject({
      cache_n: 4,
      prompt_n: prompt - 4,
      prompt_ms: 5,
      predicted_n: 14,
    })
    expect(at(timings, "prompt_per_second")).toBeCloseTo(((prompt - 4) * 1000) / 5)
    expect(at(timings, "ttft_ms")).toBeGreaterThan(0)
  })

  test("a stream starts with the role, ends with the reason, then usage and [DONE]", async () => {
    const { post } = testServer()
    const items = await streamed(
      await post(CHAT, { ...hello, stream: true, stream_options: { include_usage: true } }),
    )
    expect(at(items[0], "choices", 0, "delta")).toEqual({ role: "assistant", content: "" })
    expect(
      items.slice(1).every((item) => at(item, "choices", 0, "delta", "role") === undefined),
    ).toBe(true)
    expect(contentOf(items)).toBe("Hello, world!")
    const [last, usage] = items.slice(-2)
    expect(at(last, "choices")).toEqual([
      { index: 0, delta: {}, logprobs: null, finish_reason: "stop" },
    ])
    expect(at(last, "timings", "predicted_n")).toBe(14)
    expect(at(last, "usage")).toBeNull()
    expect(at(usage, "choices")).toEqual([])
    expect(at(usage, "usage", "completion_tokens")).toBe(14)
    expect(new Set(items.map((item) => at(item, "id"))).size).toBe(1)
  })

  test("without include_usage no chunk has usage", async () => {
    const items = await streamed(await testServer().post(CHAT, { ...hello, stream: true }))
    expect(items.some((item) => at(item, "usage") !== undefined)).toBe(false)
    expect(at(items.at(-1), "choices", 0, "finish_reason")).toBe("stop")
  })

  test("max_tokens ends with length; max_completion_tokens wins", async () => {
    const { post, client } = testServer()
    const body = await json(post(CHAT, { ...hello, max_tokens: 9, max_completion_tokens: 5 }))
    expect(at(body, "choices", 0)).toMatchObject({
      message: { content: "Hello" },
      finish_reason: "length",
    })
    expect(client.calls[0]!.params.maxTokens).toBe(5)
  })

  test("sampling fields reach the engine, absent ones are the server's", async () => {
    const { post, client } = testServer()
    await post(CHAT, {
      ...hello,
      temperature: 0.5,
      top_p: 0.6,
      top_k: 7,
      min_p: 0.1,
      repetition_penalty: 1.2,
      presence_penalty: 0.3,
      frequency_penalty: -0.4,
      logit_bias: { "65": -100 },
      seed: 42,
      stop_token_ids: [10],
    })
    expect(client.calls[0]!.params).toEqual({
      temperature: 0.5,
      topP: 0.6,
      topK: 7,
      minP: 0.1,
      repetitionPenalty: 1.2,
      presencePenalty: 0.3,
      frequencyPenalty: -0.4,
      logitBias: [[65, -100]],
      seed: 42,
      stopTokens: [EOS, 10],
      maxTokens: 2048 - 19,
    })
    await post(CHAT, { ...hello, temperature: null, seed: -1 })
    const { temperature, seed } = client.calls[1]!.params
    expect([temperature, seed]).toEqual([0.8, undefined])
  })

  test("n choices run side by side with seeds of their own", async () => {
    const { post, client } = testServer({ answer: (call) => `answer ${call}`, delayMs: 1 })
    const body = await json(post(CHAT, { ...hello, n: 3, seed: 5 }))
    expect(list(body, "choices").map((choice) => at(choice, "message", "content"))).toEqual([
      "answer 0",
      "answer 1",
      "answer 2",
    ])
    expect(client.calls.map((call) => call.params.seed)).toEqual([5, 6, 7])
    // The prompt counts once.
    expect(at(body, "usage")).toMatchObject({ prompt_tokens: 19, completion_tokens: 3 * 9 })

    const items = await streamed(await post(CHAT, { ...hello, n: 2, stream: true }))
    expect(items.slice(0, 2).map((item) => at(item, "choices", 0, "index"))).toEqual([0, 1])
    expect([contentOf(items, 0), contentOf(items, 1)]).toEqual(["answer 3", "answer 4"])
  })

  test("a stop string over several tokens ends the answer and the sequence", async () => {
    const { post, client } = testServer({ answer: "one two three four", then: "endless" })
    const body = await json(post(CHAT, { ...hello, stop: ["zzz", "two three"] }))
    expect(at(body, "choices", 0)).toMatchObject({
      message: { content: "one " },
      finish_reason: "stop",
    })
    expect(client.calls[0]!.ended).toBe("aborted")
    expect(client.calls[0]!.sent).toBe("one two three".length)
  })

  test("what might begin a stop string is held back, and given when it does not", async () => {
    const { post } = testServer({ answer: "a END b EN" })
    const items = await streamed(await post(CHAT, { ...hello, stream: true, stop: "ENDING" }))
    expect(contentOf(items)).toBe("a END b EN")
    const pieces = items.map((item) => at(item, "choices", 0, "delta", "content"))
    expect(pieces).toContain("END ")
  })

  test("characters spread over tokens arrive whole", async () => {
    const text = "Grüße, 世界 👩‍💻!"
    const items = await streamed(
      await testServer({ answer: text }).post(CHAT, { ...hello, stream: true }),
    )
    expect(contentOf(items)).toBe(text)
    for (const item of items) {
      expect(JSON.stringify(item)).not.toContain("\ufffd")
    }
  })

  test("log-probabilities have the tokens' bytes and spell the content", async () => {
    const { post } = testServer({ answer: "né" })
    const body = await json(post(CHAT, { ...hello, logprobs: true, top_logprobs: 2 }))
    const content = list(body, "choices", 0, "logprobs", "content")
    expect(content.map((token) => at(token, "bytes"))).toEqual([[110], [0xc3], [0xa9]])
    expect(content[0]).toMatchObject({ token: "n", logprob: -0.5 })
    expect(
      list(content[0], "top_logprobs").map((top) => [at(top, "token"), at(top, "logprob")]),
    ).toEqual([
      ["n", -0.5],
      ["o", -1.5],
    ])
    const bytes = Uint8Array.from(content.flatMap((token) => [...list(token, "bytes")]) as number[])
    expect(new TextDecoder().decode(bytes)).toBe("né")

    const without = await json(post(CHAT, { ...hello, logprobs: true }))
    expect(at(without, "choices", 0, "logprobs", "content", 0, "top_logprobs")).toEqual([] as never)
  })

  test("log-probabilities of a stream go with their text, and end where a stop string begins", async () => {
    const items = await streamed(
      await testServer({ answer: "aé STOP" }).post(CHAT, {
        ...hello,
        stream: true,
        logprobs: true,
        stop: " STOP",
      }),
    )
    const tokens = items.flatMap((item) => [...list(item, "choices", 0, "logprobs", "content")])
    expect(tokens.flatMap((token) => [...list(token, "bytes")]) as number[]).toEqual([
      ...new TextEncoder().encode("aé"),
    ])
    const withText = items.filter((item) => at(item, "choices", 0, "delta", "content") === "é")
    expect(list(withText[0], "choices", 0, "logprobs", "content").length).toBe(2)
  })

  test("tokens that come together are one chunk, with each token's log-probability", async () => {
    const { post } = testServer({ answer: "abcdefg", together: 3 })
    const items = await streamed(await post(CHAT, { ...hello, stream: true, logprobs: true }))
    const withText = items.filter((item) => list(item, "choices", 0, "logprobs", "content").length)
    expect(withText.map((item) => at(item, "choices", 0, "delta", "content") as string)).toEqual([
      "abc",
      "def",
      "g",
    ])
    expect(withText.map((item) => list(item, "choices", 0, "logprobs", "content").length)).toEqual([
      3, 3, 1,
    ])
  })

  test("a stop string in the middle of tokens that come together ends the text there", async () => {
    const { post, client } = testServer({ answer: "abSTOPcd", together: 20 })
    const body = await json(post(CHAT, { ...hello, stop: ["STOP"] }))
    expect(at(body, "choices", 0, "message", "content")).toBe("ab")
    expect(at(body, "choices", 0, "finish_reason")).toBe("stop")
    expect(at(body, "usage", "completion_tokens")).toBe(6)
    expect(client.running).toBe(0)
  })

  test("log-probabilities of text that was held back wait for it", async () => {
    const { post } = testServer({ answer: "a EEN b END c" })
    const items = await streamed(
      await post(CHAT, { ...hello, stream: true, logprobs: true, stop: ["ENDING"] }),
    )
    for (const item of items) {
      const tokens = list(item, "choices", 0, "logprobs", "content")
      const bytes = Uint8Array.from(tokens.flatMap((token) => list(token, "bytes") as number[]))
      const text = at(item, "choices", 0, "delta", "content") ?? ""
      expect(new TextDecoder().decode(bytes)).toBe(String(text))
    }
    expect(contentOf(items)).toBe("a EEN b END c")
  })

  test("content parts, developer messages, tool calls and tools reach the template", async () => {
    const { post, client } = testServer()
    const tools = [{ type: "function", function: { name: "f", parameters: { type: "object" } } }]
    await post(CHAT, {
      tools,
      chat_template_kwargs: { enable_thinking: false },
      messages: [
        { role: "developer", content: "be brief" },
        {
          role: "user",
          content: [
            { type: "text", text: "a" },
            { type: "text", text: "b" },
          ],
        },
        {
          role: "assistant",
          content: null,
          tool_calls: [
            { id: "c1", type: "function", function: { name: "f", arguments: '{"x":1}' } },
          ],
        },
        { role: "tool", tool_call_id: "c1", content: "42" },
      ],
    })
    const call = '[{"id":"c1","type":"function","function":{"name":"f","arguments":{"x":1}}}]'
    expect(client.prompt()).toBe(
      `tools:${JSON.stringify(tools)}\nvars:{"enable_thinking":false}\n` +
        `system:be brief\nuser:a\nb\nassistant:${call}\ntool:42\nassistant:`,
    )
    await post(CHAT, { ...hello, tools, tool_choice: "none" })
    expect(client.prompt(1)).toBe("user:hi\nassistant:")
  })

  test("forceThink opens the thinking in the prompt; it is the reasoning", async () => {
    const { post, client } = testServer({ answer: "hm\n</think>\n\nyes" }, { forceThink: true })
    const body = await json(post(CHAT, hello))
    expect(at(body, "choices", 0, "message")).toMatchObject({
      reasoning_content: "hm",
      content: "yes",
    })
    expect(client.prompt()).toEndWith("assistant:<think>\n")
    const items = await streamed(await post(CHAT, { ...hello, stream: true }))
    expect(contentOf(items)).toBe("yes")
    const thought = items.map((item) => at(item, "choices", 0, "delta", "reasoning_content") ?? "")
    expect(thought.join("")).toBe("hm")
    const whole = await json(post(CHAT, { ...hello, reasoning_format: "none" }))
    expect(at(whole, "choices", 0, "message", "content")).toBe("<think>\nhm\n</think>\n\nyes")
  })

  test("marks of reasoning that are control tokens stay where the reasoning does", async () => {
    const marks = new Map([
      [250, "<think>"],
      [251, "</think>"],
    ])
    const tokenizer: ServerTokenizer = {
      ...byteTokenizer,
      tokenBytes: (id) => {
        const mark = marks.get(id)
        return mark === undefined ? byteTokenizer.tokenBytes(id) : new TextEncoder().encode(mark)
      },
      isSpecial: (id) => marks.has(id) || byteTokenizer.isSpecial(id),
      chatFormat: { reasoning: THINK_TAGS, toolCalls: undefined },
    }
    const answer = [250, ...new TextEncoder().encode("hm"), 251, ...new TextEncoder().encode("yes")]
    const { post } = testServer({ answer }, {}, { tokenizer })
    const split = await json(post(CHAT, hello))
    expect(at(split, "choices", 0, "message")).toMatchObject({
      reasoning_content: "hm",
      content: "yes",
    })
    const whole = await json(post(CHAT, { ...hello, reasoning_format: "none" }))
    expect(at(whole, "choices", 0, "message", "content")).toBe("<think>hm</think>yes")
  })

  test("prompt_logprobs are the prompt's, once for all choices", async () => {
    const { post, client } = testServer()
    const body = await json(post(CHAT, { ...hello, prompt_logprobs: 2, n: 2 }))
    const given = list(body, "prompt_logprobs")
    expect(given).toHaveLength(client.calls[0]!.ids.length)
    expect(given[0]).toBeNull()
    expect(JSON.stringify(given[1])).toContain('"logprob":-0.5')
    expect(client.calls.map(({ params }) => params.promptLogprobs)).toEqual([2, undefined])
    expect(at(body, "choices", 0, "logprobs")).toBeNull()
    const refused = await post(CHAT, { ...hello, prompt_logprobs: 0, stream: true })
    expect(refused.status).toBe(400)
  })

  test("a bound on reasoning reaches the engine with the model's marks", async () => {
    const reasons = { reasoning: THINK_TAGS, toolCalls: undefined }
    const tokenizer: ServerTokenizer = { ...byteTokenizer, chatFormat: reasons }
    const { post, client } = testServer({}, { thinkingBudget: 9 }, { tokenizer })
    const bodies = [
      { thinking_budget_tokens: 3 },
      { reasoning_budget_tokens: 0, reasoning_budget_message: " enough" },
      { thinking_token_budget: 4, chat_template_kwargs: {} },
      {},
      { thinking_budget_tokens: -1 },
    ]
    for (const body of bodies) await json(post(CHAT, { ...hello, ...body }))
    const given = client.calls.map(({ params }) => params.thinking)
    expect(given.map((one) => one?.budget)).toEqual([3, 0, 4, 9, undefined])
    expect(given[0]).toMatchObject({ open: "<think>", close: "</think>", isOpen: false })
    const text = (ids: readonly number[] = []): string => String.fromCharCode(...ids)
    expect(text(given[0]?.closing)).toBe("\n</think>\n\n")
    expect(text(given[1]?.closing)).toBe(" enough\n</think>\n\n")
    const forced = testServer({}, { forceThink: true }, { tokenizer })
    await forced.post(CHAT, { ...hello, thinking_budget_tokens: 3 })
    expect(forced.client.calls[0]!.params.thinking?.isOpen).toBe(true)
    const thinking = { type: "enabled", budget_tokens: 1024 }
    await post("/v1/messages", { ...hello, max_tokens: 9, thinking })
    expect(client.calls.at(-1)!.params.thinking?.budget).toBe(1024)
    // a template without marks has nothing to bound
    const plain = testServer()
    await plain.post(CHAT, { ...hello, thinking_budget_tokens: 3 })
    expect(plain.client.calls[0]!.params.thinking).toBeUndefined()
  })

  describe("continue_final_message", () => {
    const begun = (message: object): object => ({
      ...hello,
      messages: [...hello.messages, { role: "assistant", ...message }],
      continue_final_message: true,
      add_generation_prompt: false,
    })

    test("goes on where the last message ends, and gives what is new", async () => {
      const { post, client } = testServer({ answer: " two three" })
      const body = await json(post(CHAT, begun({ content: "one " })))
      expect(client.prompt()).toBe("user:hi\nassistant:one ")
      expect(at(body, "choices", 0, "message", "content")).toBe(" two three")
      const items = await streamed(await post(CHAT, { ...begun({ content: "x" }), stream: true }))
      expect(contentOf(items)).toBe(" two three")
      expect(client.prompt(1)).toBe("user:hi\nassistant:x")
    })

    test("an answer without text is begun", async () => {
      const { post, client } = testServer()
      const body = await json(post(CHAT, begun({ content: "" })))
      expect(client.prompt()).toBe("user:hi\nassistant:")
      expect(at(body, "choices", 0, "message", "content")).toBe("Hello, world!")
    })

    test("spaces and beginnings of markers are not sent again", async () => {
      const tools = [{ type: "function", function: { name: "f" } }]
      for (const content of ["a  ", "a <", "a <tool_", "\n\n a"]) {
        const { post } = testServer({ answer: " b <c" })
        const body = await json(post(CHAT, { ...begun({ content }), tools }))
        expect(at(body, "choices", 0, "message", "content")).toBe(" b <c")
      }
      const { post } = testServer({ answer: 'call>{"name": "f", "arguments": {}}</tool_call>' })
      const body = await json(post(CHAT, { ...begun({ content: "a <tool_" }), tools }))
      expect(at(body, "choices", 0, "message", "tool_calls", 0, "function", "name")).toBe("f")
    })

    test("reasoning goes on as reasoning, or lies before the content", async () => {
      const tokenizer: ServerTokenizer = {
        ...byteTokenizer,
        chatFormat: { reasoning: THINK_TAGS, toolCalls: undefined },
      }
      const { post, client } = testServer({ answer: " b</think>yes" }, {}, { tokenizer })
      const body = await json(post(CHAT, begun({ content: "", reasoning_content: "a" })))
      expect(client.prompt()).toBe("user:hi\nassistant:<think>\na")
      expect(at(body, "choices", 0, "message")).toMatchObject({
        reasoning_content: " b",
        content: "yes",
      })
      const after = testServer({ answer: " more" }, { forceThink: true }, { tokenizer })
      const whole = await json(after.post(CHAT, begun({ content: "ye", reasoning_content: "a" })))
      expect(after.client.prompt()).toBe("user:hi\nassistant:<think>\na\n</think>\n\nye")
      expect(at(whole, "choices", 0, "message")).toMatchObject({ content: " more" })
      await after.post(CHAT, { ...begun({ content: "<think>\na" }), reasoning_format: "none" })
      expect(after.client.prompt(1)).toBe("user:hi\nassistant:<think>\na")
    })

    test("what a schema or a grammar must match begins with what is written", async () => {
      const tokenizer: ServerTokenizer = {
        ...byteTokenizer,
        chatFormat: { reasoning: THINK_TAGS, toolCalls: undefined },
      }
      const { post, client } = testServer({ answer: "2}" }, {}, { tokenizer })
      const schema = { response_format: { type: "json_object" } }
      const body = await json(post(CHAT, { ...begun({ content: '{"a": 1' }), ...schema }))
      expect(at(body, "choices", 0, "message", "content")).toBe("2}")
      const thought = { content: "{", reasoning_content: "hm" }
      await post(CHAT, { ...begun(thought), ...schema })
      await post(CHAT, { ...begun({ content: "" }), ...schema })
      expect(client.calls.map(({ params }) => params.grammarWritten)).toEqual([
        '{"a": 1',
        "<think>\nhm\n</think>\n\n{",
        undefined,
      ])
    })

    test("what the engine refuses of a stream with a schema has its status", async () => {
      const { post } = testServer({ refuses: "the grammar cannot be compiled" })
      const schema = { response_format: { type: "json_object" }, stream: true }
      for (const [path, body] of [
        [CHAT, { ...hello, ...schema }],
        ["/v1/completions", { prompt: "a", ...schema }],
        ["/completion", { prompt: "a", json_schema: {}, stream: true }],
        ["/api/chat", { ...hello, format: "json" }],
      ] as const) {
        const response = await post(path, body)
        expect(response.status).toBe(400)
        expect(await response.text()).toContain("the grammar cannot be compiled")
      }
    })

    test("harmony's answer goes on in its channel", async () => {
      const harmony: ReasoningFormat = {
        name: "harmony",
        open: "<|channel|>analysis<|message|>",
        start: "<|channel|>analysis<|message|>",
        close: "<|end|>",
      }
      const tokenizer: ServerTokenizer = {
        ...byteTokenizer,
        chatFormat: { reasoning: harmony, toolCalls: undefined },
      }
      const { post, client } = testServer({ answer: " two" }, {}, { tokenizer })
      const body = await json(post(CHAT, begun({ content: "one", reasoning_content: "hm" })))
      expect(client.prompt()).toBe(
        "user:hi\nassistant:<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>one",
      )
      expect(at(body, "choices", 0, "message")).toMatchObject({ content: " two" })
      const thought = await json(post(CHAT, begun({ content: "", reasoning_content: "hm" })))
      expect(client.prompt(1)).toEndWith("assistant:<|channel|>analysis<|message|>hm")
      expect(at(thought, "choices", 0, "message")).toMatchObject({ reasoning_content: " two" })
    })

    test.each([
      [{ messages: hello.messages }, 'the last message\'s role is "user"'],
      [{ add_generation_prompt: true }, "is not begun anew"],
      [
        {
          messages: [
            ...hello.messages,
            { role: "assistant", tool_calls: [{ function: { name: "f", arguments: "{}" } }] },
          ],
        },
        "ends in tool calls",
      ],
    ])("refuses %j", async (change, reason) => {
      const response = await testServer().post(CHAT, { ...begun({ content: "a" }), ...change })
      expect(response.status).toBe(400)
      expect(at(await json(response), "error", "message")).toContain(reason)
    })
  })

  test("without add_generation_prompt the prompt ends with the last message", async () => {
    const { post, client } = testServer()
    await post(CHAT, { ...hello, add_generation_prompt: false })
    expect(client.prompt()).toBe("user:hi\n")
  })

  test("continuous_usage_stats tells the tokens so far", async () => {
    const { post, client } = testServer({ delayMs: 1 })
    const items = await streamed(
      await post(CHAT, {
        ...hello,
        stream: true,
        stream_options: { include_usage: true, continuous_usage_stats: true },
      }),
    )
    const prompt = client.prompt().length + 1
    const counts = items
      .filter((item) => contentOf([item]) !== "")
      .map((item) => at(item, "usage", "completion_tokens") as number)
    expect(counts).toEqual([...counts].sort((a, b) => a - b))
    expect(counts.at(-1)).toBeWithin(1, 15)
    expect(at(items[2], "usage")).toMatchObject({ prompt_tokens: prompt })
    expect(at(items.at(-1), "usage", "completion_tokens")).toBe(14)
  })

  describe("tool calls", () => {
    const tools = [{ type: "function", function: { name: "f", parameters: { type: "object" } } }]
    const call = (x: number): string =>
      `<tool_call>\n{"name": "f", "arguments": {"x": ${x}}}\n</tool_call>`
    const answer = `Let me see.\n${call(1)}\n${call(2)}`

    test("of a whole answer", async () => {
      const body = await json(testServer({ answer }).post(CHAT, { ...hello, tools }))
      const choice = list(body, "choices")[0] as Json
      expect(at(choice, "finish_reason")).toBe("tool_calls")
      expect(at(choice, "message", "content")).toBe("Let me see.")
      const calls = list(choice, "message", "tool_calls")
      expect(calls.map((one) => at(one, "function"))).toEqual([
        { name: "f", arguments: '{"x": 1}' },
        { name: "f", arguments: '{"x": 2}' },
      ])
      const ids = calls.map((one) => String(at(one, "id")))
      expect(new Set(ids).size).toBe(2)
      for (const id of ids) expect(id).toMatch(/^call_\w{24}$/)
      expect(chatResponseSchema.parse(body)).toBeTruthy()
    })

    test("without text the content is null", async () => {
      const body = await json(testServer({ answer: call(1) }).post(CHAT, { ...hello, tools }))
      expect(at(body, "choices", 0, "message", "content")).toBeNull()
    })

    test("of a stream: id and name once, then arguments as they come", async () => {
      const items = await streamed(
        await testServer({ answer }).post(CHAT, { ...hello, tools, stream: true }),
      )
      const deltas = items.flatMap((item) => [...list(item, "choices", 0, "delta", "tool_calls")])
      const named = deltas.filter((delta) => at(delta, "id") !== undefined)
      expect(named.map((delta) => at(delta, "index"))).toEqual([0, 1])
      for (const [index, text] of ['{"x": 1}', '{"x": 2}'].entries()) {
        const own = deltas.filter((delta) => at(delta, "index") === index)
        expect(own.map((delta) => at(delta, "function", "arguments")).join("")).toBe(text)
        expect(own.length).toBeGreaterThan(3)
      }
      expect(contentOf(items)).toBe("Let me see.")
      expect(items.map((item) => at(item, "choices", 0, "finish_reason"))).toContain("tool_calls")
    })

    test("parallel_tool_calls false keeps the first", async () => {
      const { post } = testServer({ answer })
      const body = await json(post(CHAT, { ...hello, tools, parallel_tool_calls: false }))
      expect(list(body, "choices", 0, "message", "tool_calls")).toHaveLength(1)
    })

    test("without tools they are text; what is no call is text", async () => {
      const body = await json(testServer({ answer }).post(CHAT, hello))
      expect(at(body, "choices", 0, "message", "content")).toBe(answer)
      const odd = "<tool_call>{]</tool_call>"
      const other = await json(testServer({ answer: odd }).post(CHAT, { ...hello, tools }))
      expect(at(other, "choices", 0)).toMatchObject({
        message: { content: odd },
        finish_reason: "stop",
      })
    })
  })

  test("an engine failure is a 500, or an error event once the stream has begun", async () => {
    const { post } = testServer({ failAt: 3 })
    const response = await post(CHAT, hello)
    expect(response.status).toBe(500)
    expect(at(await json(response), "error")).toEqual({
      message: "the kernel failed: status -4",
      type: "server_error",
      param: null,
      code: "engine_error",
    })
    const { items, done } = sseItems(await (await post(CHAT, { ...hello, stream: true })).text())
    expect(done).toBe(false)
    expect(contentOf(items.slice(0, -1))).toBe("Hel")
    expect(at(items.at(-1), "error")).toMatchObject({ message: "the kernel failed: status -4" })
  })
})

describe("text completions", () => {
  test("a string is encoded as it is, without a template", async () => {
    const { post, client } = testServer()
    const body = await json(post(TEXT, { model: "default", prompt: "Once" }))
    expect(body).toMatchObject({ object: "text_completion", model: "fake" })
    expect(at(body, "id")).toStartWith("cmpl-")
    expect(at(body, "choices")).toEqual([
      { index: 0, text: "Hello, world!", logprobs: null, finish_reason: "stop" },
    ])
    expect(client.prompt()).toBe("Once")
    expect(client.calls[0]!.ids[0]).toBe(256)
  })

  test("token ids, several texts and several lists of ids", async () => {
    const { post, client } = testServer({ answer: (call) => `<${call}>` })
    await post(TEXT, { prompt: [72, 105] })
    expect([...client.calls[0]!.ids]).toEqual([72, 105])
    const texts = await json(post(TEXT, { prompt: ["a", "bc"], n: 2 }))
    expect(
      list(texts, "choices").map((choice) => [at(choice, "index"), at(choice, "text")]),
    ).toEqual([
      [0, "<1>"],
      [1, "<2>"],
      [2, "<3>"],
      [3, "<4>"],
    ])
    expect([1, 2, 3, 4].map((i) => client.prompt(i))).toEqual(["a", "a", "bc", "bc"])
    // Each prompt counts once: "a" and "bc" with their start tokens.
    expect(at(texts, "usage")).toMatchObject({ prompt_tokens: 5, completion_tokens: 16 })
    await post(TEXT, { prompt: [[1, 2], [3]] })
    expect(client.calls.slice(5).map((call) => [...call.ids])).toEqual([[1, 2], [3]])
  })

  test("echo with logprobs gives those of the prompt, of which the first is unknown", async () => {
    const { post, client } = testServer({ answer: "!" })
    const body = { prompt: "Hi", echo: true, logprobs: 2, max_tokens: 0, prompt_logprobs: 1 }
    const only = await json(post(TEXT, body))
    expect(at(only, "choices", 0)).toMatchObject({
      text: "Hi",
      finish_reason: "length",
      logprobs: {
        tokens: ["<s>", "H", "i"],
        token_logprobs: [null, -0.125, -0.25],
        text_offset: [0, 0, 1],
        top_logprobs: [null, { H: -0.5, I: -1.5 }, { i: -0.5, j: -1.5 }],
      },
    })
    expect(list(only, "choices", 0, "prompt_logprobs")[0]).toBeNull()
    expect(at(only, "usage", "completion_tokens")).toBe(0)
    expect(client.calls[0]?.params).toMatchObject({ promptLogprobs: 2, maxTokens: 1 })
    const items = await streamed(
      await post(TEXT, { prompt: "Hi", echo: true, logprobs: 0, stream: true }),
    )
    const first = at(items[0], "choices", 0)
    expect(first).toMatchObject({ text: "Hi", logprobs: { token_logprobs: [null, -0.125, -0.25] } })
    expect(at(items[1], "choices", 0)).toMatchObject({ text: "!", logprobs: { text_offset: [2] } })
  })

  test("best_of returns the n likeliest, and counts all that were drawn", async () => {
    const { post, client } = testServer({
      answer: (call) => "abcd".charAt(call),
      logprobOf: (call) => [-3, -1, -2, -4][call] as number,
    })
    const body = await json(post(TEXT, { prompt: "x", best_of: 4, n: 2 }))
    expect(list(body, "choices").map((choice) => at(choice, "text"))).toEqual(["b", "c"])
    expect(list(body, "choices").map((choice) => at(choice, "index"))).toEqual([0, 1])
    expect(at(body, "choices", 0, "logprobs")).toBeNull()
    expect(at(body, "usage", "completion_tokens")).toBe(8)
    expect(client.calls).toHaveLength(4)
  })

  test("echo gives the prompt first; max_tokens 0 gives only that", async () => {
    const { post, client } = testServer()
    const body = await json(post(TEXT, { prompt: [72, 105], echo: true }))
    expect(at(body, "choices", 0, "text")).toBe("HiHello, world!")
    const items = await streamed(await post(TEXT, { prompt: "Hi ", echo: true, stream: true }))
    expect(contentOf(items)).toBe("Hi Hello, world!")
    const only = await json(post(TEXT, { prompt: "Hi", echo: true, max_tokens: 0 }))
    expect(at(only, "choices", 0)).toMatchObject({ text: "Hi", finish_reason: "length" })
    expect(at(only, "usage", "completion_tokens")).toBe(0)
    expect(client.calls.length).toBe(2)
  })

  test("log-probabilities in the older form, whole and streamed alike", async () => {
    const { post } = testServer({ answer: "abc" })
    const body = await json(post(TEXT, { prompt: "x", logprobs: 1 }))
    const whole = at(body, "choices", 0, "logprobs")
    expect(whole).toEqual({
      tokens: ["a", "b", "c"],
      token_logprobs: [-0.5, -0.5, -0.5],
      top_logprobs: [{ a: -0.5 }, { b: -0.5 }, { c: -0.5 }],
      text_offset: [0, 1, 2],
    })
    const items = await streamed(await post(TEXT, { prompt: "x", logprobs: 1, stream: true }))
    const offsets = items.flatMap((item) => [
      ...list(item, "choices", 0, "logprobs", "text_offset"),
    ])
    expect(offsets as unknown[]).toEqual([0, 1, 2])
  })

  test("usage of a stream comes in a last chunk without choices", async () => {
    const items = await streamed(
      await testServer().post(TEXT, {
        prompt: "x",
        stream: true,
        stream_options: { include_usage: true },
      }),
    )
    expect(items.at(-1)).toMatchObject({
      choices: [],
      usage: { prompt_tokens: 2, completion_tokens: 14 },
    })
  })
})

test("answers are what the OpenAPI document says", async () => {
  const { app, post } = testServer()
  const more = { logprobs: true, top_logprobs: 1 }
  chatResponseSchema.parse(await json(post(CHAT, { ...hello, ...more })))
  completionResponseSchema.parse(await json(post(TEXT, { prompt: "x", logprobs: 1 })))
  modelListSchema.parse(await json(app.request("/v1/models")))
  errorSchema.parse(await json(post(CHAT, {})))
})

describe("models", () => {
  test("list and look-up, by name or alias", async () => {
    const { app } = testServer()
    const models = await json(app.request("/v1/models"))
    expect(list(models, "data").length).toBe(1)
    expect(at(models, "data", 0)).toMatchObject({
      id: "fake",
      object: "model",
      owned_by: "ktransformers",
    })
    for (const id of ["fake", "default"]) {
      expect(at(await json(app.request(`/v1/models/${id}`)), "id")).toBe("fake")
    }
    const missing = await app.request(`/v1/models/${encodeURIComponent("org/other")}`)
    expect(missing.status).toBe(404)
    expect(at(await json(missing), "error")).toMatchObject({
      message: 'model "org/other" not found; this server has "fake"',
      code: "model_not_found",
    })
  })
})

describe("refusals name the field and its value", () => {
  const bad: [
    name: string,
    path: string,
    body: unknown,
    status: number,
    param: string | null,
    text: string,
  ][] = [
    ["broken JSON", CHAT, '{"messages":', 400, null, "the request body is not JSON"],
    ["empty body", CHAT, "", 400, null, "it is empty"],
    ["not an object", CHAT, [], 400, null, "expected an object"],
    ["no messages", CHAT, {}, 400, "messages", "messages: this field is required"],
    ["empty messages", CHAT, { messages: [] }, 400, "messages", "at least 1 item"],
    [
      "role",
      CHAT,
      { messages: [{ role: "x", content: "" }] },
      400,
      "messages[0].role",
      '"x": expected',
    ],
    [
      "content type",
      CHAT,
      { messages: [{ role: "user", content: 1 }] },
      400,
      "messages[0].content",
      "1: expected a string or an array",
    ],
    [
      "image",
      CHAT,
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: {} }] }] },
      400,
      "messages[0].content[0].type",
      '"image_url"',
    ],
    [
      "content missing",
      CHAT,
      { messages: [{ role: "user" }] },
      400,
      "messages[0].content",
      "needs content",
    ],
    [
      "tool without id",
      CHAT,
      { messages: [{ role: "tool", content: "1" }] },
      400,
      "messages[0].tool_call_id",
      "which call",
    ],
    [
      "temperature",
      CHAT,
      { ...hello, temperature: 3 },
      400,
      "temperature",
      "temperature 3: must be at most 2",
    ],
    ["top_p", CHAT, { ...hello, top_p: 0 }, 400, "top_p", "top_p 0: must be more than 0"],
    [
      "max_tokens",
      CHAT,
      { ...hello, max_tokens: 0 },
      400,
      "max_tokens",
      "max_tokens 0: must be at least 1",
    ],
    [
      "fraction",
      CHAT,
      { ...hello, max_tokens: 1.5 },
      400,
      "max_tokens",
      "max_tokens 1.5: expected an integer",
    ],
    ["n", CHAT, { ...hello, n: 129 }, 400, "n", "n 129: must be at most 128"],
    ["17 stops", CHAT, { ...hello, stop: Array(17).fill("a") }, 400, "stop", "at most 16 items"],
    ["empty stop", CHAT, { ...hello, stop: "" }, 400, "stop", "at least 1 character"],
    [
      "top_logprobs",
      CHAT,
      { ...hello, logprobs: true, top_logprobs: 21 },
      400,
      "top_logprobs",
      "at most 20",
    ],
    ["bias key", CHAT, { ...hello, logit_bias: { x: 1 } }, 400, "logit_bias.x", "token ids"],
    [
      "bias token",
      CHAT,
      { ...hello, logit_bias: { "999": 1 } },
      400,
      "logit_bias",
      "tokens 0 to 257",
    ],
    ["unknown field", CHAT, { ...hello, temprature: 1 }, 400, "temprature", "not known"],
    [
      "json_object",
      CHAT,
      { ...hello, response_format: { type: "json_object" }, grammar: 'root ::= "a"' },
      400,
      "response_format",
      "only one format",
    ],
    [
      "forced tool",
      CHAT,
      { ...hello, tool_choice: "required" },
      400,
      "tool_choice",
      "no tools to choose from",
    ],
    ["audio", CHAT, { ...hello, modalities: ["text", "audio"] }, 400, "modalities", "text only"],
    ["store", CHAT, { ...hello, store: true }, 400, "store", "not stored"],
    [
      "template refuses",
      CHAT,
      { messages: [{ role: "assistant", content: "x" }] },
      400,
      "messages",
      "starts with the user",
    ],
    ["model", CHAT, { ...hello, model: "gpt-4" }, 404, "model", "gpt-4"],
    ["no prompt", TEXT, {}, 400, "prompt", "this field is required"],
    [
      "prompt token",
      TEXT,
      { prompt: [1, 300] },
      400,
      "prompt",
      "300: the model has tokens 0 to 257",
    ],
    ["empty ids", TEXT, { prompt: [] }, 400, "prompt", "at least 1 item"],
    ["too many", TEXT, { prompt: ["a", "b"], n: 128 }, 400, "prompt", "256 choices"],
    ["best_of, n", TEXT, { prompt: "a", best_of: 1, n: 2 }, 400, "best_of", "less than n"],
    ["best_of, stream", TEXT, { prompt: "a", best_of: 3, stream: true }, 400, "best_of", "stream"],
    [
      "logit_bias",
      TEXT,
      {
        prompt: "a",
        logit_bias: Object.fromEntries(Array.from({ length: 1025 }, (_, i) => [i, 1])),
      },
      400,
      "logit_bias",
      "at most 1024 entries",
    ],
    ["suffix", TEXT, { prompt: "a", suffix: "b" }, 400, "suffix", "cannot fill in"],
  ]
  test.each(bad)("%s", async (_name, path, body, status, param, text) => {
    const { post, client } = testServer()
    const response = await post(path, body)
    expect(response.status).toBe(status)
    const error = at(await json(response), "error")
    expect(at(error, "type")).toBe("invalid_request_error")
    expect(at(error, "param")).toBe(param)
    expect(at(error, "message")).toContain(text)
    expect(client.calls.length).toBe(0)
  })

  test("fields that ask for nothing special pass", async () => {
    const response = await testServer().post(CHAT, {
      ...hello,
      response_format: { type: "text" },
      tool_choice: "auto",
      modalities: ["text"],
      store: false,
      user: "u",
      metadata: { a: "b" },
      stop: null,
      logit_bias: null,
      functions: null,
    })
    expect(response.status).toBe(200)
  })

  test("a prompt that fills the context", async () => {
    const { post } = testServer({ contextLength: 32 })
    const long = { messages: [{ role: "user", content: "x".repeat(40) }] }
    for (const [path, body] of [
      [CHAT, long],
      [CHAT, { ...long, stream: true }],
      [TEXT, { prompt: "x".repeat(31) }],
    ] as const) {
      const response = await post(path, body)
      expect(response.status).toBe(400)
      expect(at(await json(response), "error", "code")).toBe("context_length_exceeded")
    }
    // One token less leaves room for one.
    const body = await json(post(TEXT, { prompt: "x".repeat(30), max_tokens: 50 }))
    expect(at(body, "choices", 0)).toMatchObject({ text: "H", finish_reason: "length" })
  })
})
