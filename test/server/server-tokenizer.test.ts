import { expect, test } from "bun:test"

import { RequestError } from "../../src/errors.ts"
import { chatPrompt } from "../../src/server/chat.ts"
import { serverTokenizer } from "../../src/server/server-tokenizer.ts"
import { TextStream } from "../../src/server/text-stream.ts"
import { DEFAULT_SERVER_CONFIG } from "../../src/server/types.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { golden } from "../setup.ts"
import { readGgufMetadata } from "../tokenizer/gguf-metadata.ts"

const real = Tokenizer.fromGguf(readGgufMetadata(golden("gguf", "llama-f16.gguf")))

test("a conversation becomes the template's text as ids, special tokens recognised", () => {
  const tokenizer = serverTokenizer(real)
  const messages = [{ role: "user", content: "Hello" }]
  const { ids, prefix } = chatPrompt({ tokenizer, config: DEFAULT_SERVER_CONFIG }, messages, {
    reasoning: "none",
  })
  const text = tokenizer.renderChat(messages)
  expect(prefix).toBe("")
  expect(text).toContain("Hello")
  expect(real.decode(ids)).toEndWith(text)
  expect([...ids].some((id) => tokenizer.isSpecial(id))).toBe(true)
})

test("a template of the user's own, and its refusal", () => {
  const template =
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" +
    "{{ messages[0].content }}|{{ tools | length if tools else 0 }}|{{ mood }}"
  const tokenizer = serverTokenizer(real, { template })
  const user = [{ role: "user", content: "a" }]
  expect(tokenizer.renderChat(user, { tools: [{}, {}], vars: { mood: "calm" } })).toBe("a|2|calm")
  const system = [{ role: "system", content: "a" }]
  expect(() =>
    chatPrompt({ tokenizer, config: DEFAULT_SERVER_CONFIG }, system, { reasoning: "none" }),
  ).toThrow(/user first/)
})

test("a model without a template warns once and uses ChatML", () => {
  const warnings: string[] = []
  const bare = Tokenizer.fromGguf(readGgufMetadata(golden("gguf", "llama-tied-bf16.gguf")))
  const tokenizer = serverTokenizer(bare, { warn: (message) => warnings.push(message) })
  tokenizer.renderChat([{ role: "user", content: "a" }])
  expect(tokenizer.renderChat([{ role: "user", content: "a" }])).toBe(
    "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
  )
  expect(warnings.length).toBe(1)
})

test("text of a real vocabulary streams back whole, control tokens left out", () => {
  const tokenizer = serverTokenizer(real)
  const text = "Grüße, 世界 👩‍💻!\n  def f(x):\n\treturn x"
  const stream = new TextStream(tokenizer, [])
  const eog = [...tokenizer.eogIds]
  const ids = [...tokenizer.encode(text, { addSpecial: false }), ...eog]
  const pieces = ids.map((id) => stream.push(id, undefined).text)
  expect(pieces.join("") + stream.flush().text).toBe(text)
  expect(pieces.join("")).not.toContain("\ufffd")
})

test("what a template refuses is a 400 with the template's words", () => {
  const template = "{{ raise_exception('roles must alternate') }}"
  const tokenizer = serverTokenizer(real, { template })
  try {
    chatPrompt({ tokenizer, config: DEFAULT_SERVER_CONFIG }, [{ role: "user", content: "a" }], {
      reasoning: "none",
    })
    expect.unreachable()
  } catch (error) {
    expect(error).toBeInstanceOf(RequestError)
    expect(error).toMatchObject({ status: 400, code: "chat_template_error" })
    expect((error as Error).message).toContain("roles must alternate")
  }
})

test("forced reasoning begins with the model's own marker, unless the template has put it", () => {
  const config = { ...DEFAULT_SERVER_CONFIG, forceThink: true }
  const prompt = (template: string): { text: string; prefix: string } => {
    const { ids, prefix } = chatPrompt(
      { tokenizer: serverTokenizer(real, { template }), config },
      [{ role: "user", content: "a" }],
      { reasoning: "none" },
    )
    return { text: real.decode(ids, { skipSpecial: true }), prefix }
  }
  expect(prompt("Q</think>A")).toEqual({ text: "Q</think>A<think>\n", prefix: "<think>\n" })
  expect(prompt("{{ 'A<think>\\n' }}")).toEqual({ text: "A<think>\n", prefix: "<think>\n" })
  expect(prompt("A[THINK]x")).toEqual({ text: "A[THINK]x[THINK]", prefix: "[THINK]" })
})
