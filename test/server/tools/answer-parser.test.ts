import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { answerParser } from "../../../src/server/tools/answer-parser.ts"
import type { AnswerPart, ToolParameters } from "../../../src/server/tools/answer.ts"
import {
  type ChatFormat,
  THINK_TAGS,
  type ToolCallFormat,
  toolCallFormats,
} from "../../../src/tokenizer/chat-formats.ts"

const TOOLS: ToolParameters = new Map([
  ["f", { type: "object", properties: { a: { type: "integer" } } }],
  ["g", { type: "object", properties: { code: { type: "string" }, n: { type: "number" } } }],
])

interface Answer {
  reasoning: string
  content: string
  calls: { name: string; id: string | undefined; arguments: string }[]
}

function join(parts: readonly AnswerPart[]): Answer {
  const answer: Answer = { reasoning: "", content: "", calls: [] }
  for (const part of parts) {
    if (part.type === "call") {
      expect(part.index).toBe(answer.calls.length)
      answer.calls.push({ name: part.name, id: part.id, arguments: "" })
    } else if (part.type === "arguments") answer.calls[part.index]!.arguments += part.text
    else answer[part.type] += part.text
  }
  return answer
}

/** Whole, by characters and cut at random: always the same answer. */
function parse(
  format: ChatFormat,
  text: string,
  options: { tools?: ToolParameters; reasoningOpen?: boolean } = { tools: TOOLS },
): Answer {
  const cut = (pieces: readonly string[]): Answer => {
    const parser = answerParser(format, options)
    return join([...pieces.flatMap((piece) => parser.push(piece)), ...parser.flush()])
  }
  const whole = cut([text])
  expect(cut([...text])).toEqual(whole)
  fc.assert(
    fc.property(fc.array(fc.nat(text.length), { maxLength: 6 }), (at) => {
      const places = [0, ...at.toSorted((a, b) => a - b), text.length]
      expect(cut(places.slice(1).map((end, i) => text.slice(places[i], end)))).toEqual(whole)
    }),
    { numRuns: 30 },
  )
  return whole
}

const named = (name: string): ToolCallFormat => {
  const format = toolCallFormats().find((one) => one.name === name)
  if (format === undefined) throw new Error(name)
  return format
}
const only = (name: string): ChatFormat => ({ reasoning: undefined, toolCalls: named(name) })
const harmony: ChatFormat = {
  reasoning: { ...THINK_TAGS, name: "harmony" },
  toolCalls: named("harmony"),
}

describe("every format's example is a call of f with a = 1", () => {
  test.each(toolCallFormats().map(({ name }) => name))("%s", (name) => {
    const format = name === "harmony" ? harmony : only(name)
    const { content, calls } = parse(format, named(name).example)
    expect(content).toBe("")
    expect(calls.map((call) => [call.name, JSON.parse(call.arguments)])).toEqual([["f", { a: 1 }]])
  })

  test.each(
    toolCallFormats()
      .filter(({ open }) => open !== "")
      .map(({ name }) => name),
  )("%s, after text", (name) => {
    if (name === "harmony") return
    const { content, calls } = parse(only(name), `I shall look.\n\n${named(name).example}`)
    expect(content).toBe("I shall look.")
    expect(calls.map((call) => [call.name, JSON.parse(call.arguments)])).toEqual([["f", { a: 1 }]])
  })

  test.each(toolCallFormats().map(({ name }) => name))("%s, cut off anywhere", (name) => {
    const format = name === "harmony" ? harmony : only(name)
    const { example } = named(name)
    for (let n = 0; n < example.length; n++) {
      const { calls } = parse(format, example.slice(0, n))
      expect(calls.length).toBeLessThan(2)
      for (const call of calls) expect(call.name).toBe("f")
    }
  })

  test("without tools it is text", () => {
    const { example } = named("hermes")
    expect(parse(only("hermes"), example, {}).content).toBe(example)
  })
})

describe("calls", () => {
  test("several, with text around them", () => {
    const text =
      'Two.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {"code": "</tool_call> {\\"x\\"", "n": 2.5}}\n</tool_call>'
    const { content, calls } = parse(only("hermes"), text)
    expect(content).toBe("Two.")
    expect(calls.map((call) => JSON.parse(call.arguments))).toEqual([
      { a: 1 },
      { code: '</tool_call> {"x"', n: 2.5 },
    ])
  })

  test("a list of them", () => {
    const text =
      '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"id": "abc", "name": "g", "arguments": {}}]'
    const { calls } = parse(only("mistral"), text)
    expect(calls).toEqual([
      { name: "f", id: undefined, arguments: '{"a": 1}' },
      { name: "g", id: "abc", arguments: "{}" },
    ])
  })

  test("several with ids of the format", () => {
    const text =
      '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{"n": 2}<|tool_call_end|><|tool_calls_section_end|>'
    expect(parse(only("kimi-k2"), text).calls).toEqual([
      { name: "f", id: "functions.f:0", arguments: '{"a": 1}' },
      { name: "g", id: "functions.g:1", arguments: '{"n": 2}' },
    ])
  })

  test("strings between tags keep what looks like JSON, their lines and signs", () => {
    const code = 'if (a < b) {\n  print("</b>\\n")\n}'
    const text = `<tool_call>\n<function=g>\n<parameter=code>\n${code}\n</parameter>\n<parameter=n>\n12\n</parameter>\n</function>\n</tool_call>`
    const { calls } = parse(only("qwen3-coder"), text)
    expect(JSON.parse(calls[0]!.arguments)).toEqual({ code, n: 12 })
    const number = text.replace(code, "12")
    expect(JSON.parse(parse(only("qwen3-coder"), number).calls[0]!.arguments)).toEqual({
      code: "12",
      n: 12,
    })
  })

  test("a long string argument is passed on as it comes", () => {
    const parser = answerParser(only("qwen3-coder"), { tools: TOOLS })
    parser.push("<tool_call>\n<function=g>\n<parameter=code>\n")
    const parts = parser.push("first line\nsecond")
    expect(parts).toEqual([{ type: "arguments", index: 0, text: "first line\\nsecond" }])
  })

  test("JSON arguments are passed on as they come", () => {
    const parser = answerParser(only("hermes"), { tools: TOOLS })
    expect(parser.push('<tool_call>{"name": "g", "argu')).toEqual([
      { type: "call", index: 0, id: undefined, name: "g" },
    ])
    expect(parser.push('ments": {"code": "abc')).toEqual([
      { type: "arguments", index: 0, text: '{"code": "abc' },
    ])
  })

  test("Python's values", () => {
    const text = `[g(code='it\\'s "x"', n=-1.5, list=[1, 'a', None], flag=True, deep={'k': (1, 2)})]`
    expect(JSON.parse(parse(only("pythonic"), text).calls[0]!.arguments)).toEqual({
      code: 'it\'s "x"',
      n: -1.5,
      list: [1, "a", null],
      flag: true,
      deep: { k: [1, 2] },
    })
  })

  test("a whole answer is a call only with the name of a tool", () => {
    for (const text of ['{"name": "other", "parameters": {}}', '{"x": 1}', "[1, 2]", "[note](x)"]) {
      expect(parse(only("llama3"), text)).toEqual({ reasoning: "", content: text, calls: [] })
      expect(parse(only("pythonic"), text)).toEqual({ reasoning: "", content: text, calls: [] })
    }
  })

  test("arguments written as a string of JSON, and a missing one", () => {
    const { calls } = parse(
      only("hermes"),
      '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call><tool_call>{"name": "f"}</tool_call>',
    )
    expect(calls.map((call) => call.arguments)).toEqual(['{"a": 1}', "{}"])
  })

  test("what cannot be read is text", () => {
    for (const text of [
      "<tool_call>what?</tool_call>",
      '<tool_call>{"arguments": {"a": 1}}</tool_call>',
    ])
      expect(parse(only("hermes"), text)).toEqual({ reasoning: "", content: text, calls: [] })
  })

  test("no text at all breaks it", () => {
    const names = toolCallFormats().map(({ name }) => name)
    const pieces = toolCallFormats().flatMap(
      ({ example }) => example.match(/<[^>]*>|[[\]{}"':,=]|\w+|\s+/g) ?? [],
    )
    fc.assert(
      fc.property(
        fc.constantFrom(...names),
        fc.array(fc.oneof(fc.constantFrom(...pieces), fc.string()), { maxLength: 30 }),
        (name, text) => {
          const parser = answerParser(name === "harmony" ? harmony : only(name), { tools: TOOLS })
          join([...text.flatMap((piece) => parser.push(piece)), ...parser.flush()])
        },
      ),
      { numRuns: 500 },
    )
  })
})

describe("reasoning", () => {
  const think: ChatFormat = { reasoning: THINK_TAGS, toolCalls: named("hermes") }

  test("in the answer, begun by the prompt, absent, and never closed", () => {
    expect(parse(think, "<think>\nHm.\n\nSo.\n</think>\n\nYes.\n")).toMatchObject({
      reasoning: "Hm.\n\nSo.",
      content: "Yes.\n",
    })
    expect(parse(think, "Hm.\n</think>\n\nYes.", { reasoningOpen: true })).toMatchObject({
      reasoning: "Hm.",
      content: "Yes.",
    })
    expect(parse(think, "  Yes, <b>this</b>. ")).toMatchObject({
      reasoning: "",
      content: "  Yes, <b>this</b>. ",
    })
    expect(parse(think, "<think>Hm")).toMatchObject({ reasoning: "Hm", content: "" })
  })

  test("then a call", () => {
    const text =
      '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    expect(parse(think, text)).toEqual({
      reasoning: "Hm.",
      content: "",
      calls: [{ name: "f", id: undefined, arguments: '{"a": 1}' }],
    })
  })

  test("harmony: analysis, a preamble, a call and a final answer", () => {
    const text =
      '<|channel|>analysis<|message|>Need f.<|end|><|start|>assistant<|channel|>commentary<|message|>Calling.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    expect(parse(harmony, text)).toEqual({
      reasoning: "Need f.",
      content: "Calling.",
      calls: [{ name: "f", id: undefined, arguments: '{"a": 1}' }],
    })
    const final =
      "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>4"
    expect(parse(harmony, final)).toEqual({ reasoning: "2+2", content: "4", calls: [] })
  })
})
