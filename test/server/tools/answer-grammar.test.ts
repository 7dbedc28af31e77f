import { afterAll, beforeAll, describe, expect, test } from "bun:test"

import { Grammars } from "../../../src/engine/grammar.ts"
import {
  afterReasoning,
  type AnswerFormat,
  callsInText,
  grammarText,
  jsonFormat,
  oneCall,
} from "../../../src/server/tools/answer-grammar.ts"
import { answerParser } from "../../../src/server/tools/answer-parser.ts"
import type { AnswerPart, ToolParameters } from "../../../src/server/tools/answer.ts"
import { THINK_TAGS, toolCallFormats } from "../../../src/tokenizer/chat-formats.ts"

const EOS = 256
const SCHEMA = {
  type: "object",
  properties: {
    count: { type: "integer" },
    mode: { enum: ["fast", "slow"] },
    on: { type: "boolean" },
  },
  required: ["count", "mode", "on"],
  additionalProperties: false,
}
const TOOLS: ToolParameters = new Map<string, Record<string, unknown>>([
  ["get_it", SCHEMA],
  ["put", { type: "object", properties: {} }],
])

let grammars: Grammars
beforeAll(() => {
  grammars = new Grammars(257)
  // a token a byte, and the end
  const bytes = Uint8Array.from([...Array(256).keys(), ...new TextEncoder().encode("</s>")])
  const ends = Uint32Array.from({ length: 257 }, (_, id) => (id === EOS ? bytes.length : id + 1))
  grammars.setVocabulary({ bytes, ends })
})
afterAll(() => grammars[Symbol.dispose]())

/** What bytes drawn at random among those allowed come to. */
async function drawn(format: AnswerFormat, random: () => number): Promise<string> {
  using grammar = await grammars.matcher(grammarText(format), [EOS])
  const bytes: number[] = []
  while (bytes.length < 2000) {
    const allowed = Array.from({ length: 257 }, (_, id) => id).filter(
      (id) => ((grammar.mask[id >> 5] as number) >>> (id & 31)) & 1,
    )
    expect(allowed.length).toBeGreaterThan(0)
    // numbers and spaces may go on for ever
    const dense = allowed.filter((id) => id !== 32 && id !== 10 && !(id >= 48 && id <= 57))
    const from = dense.length > 0 && random() < 0.7 ? dense : allowed
    const next = from[Math.floor(random() * from.length)] as number
    grammar.accept(next)
    if (next === EOS) return new TextDecoder().decode(Uint8Array.from(bytes))
    bytes.push(next)
  }
  throw new Error(`no end: ${new TextDecoder().decode(Uint8Array.from(bytes))}`)
}

async function accepts(format: AnswerFormat, text: string): Promise<boolean> {
  using grammar = await grammars.matcher(grammarText(format), [EOS])
  for (const byte of [...new TextEncoder().encode(text), EOS]) {
    if ((((grammar.mask[byte >> 5] as number) >>> (byte & 31)) & 1) === 0) return false
    grammar.accept(byte)
  }
  return true
}

function seeded(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

function callsOf(parts: readonly AnswerPart[]): { name: string; arguments: string }[] {
  const calls: { name: string; arguments: string }[] = []
  for (const part of parts) {
    if (part.type === "call") calls.push({ name: part.name, arguments: "" })
    if (part.type === "arguments") calls[part.index]!.arguments += part.text
  }
  return calls
}

describe("a forced call, whatever is drawn, is read as a call that fits the schema", () => {
  test.each(toolCallFormats().map((format) => [format.name, format] as const))(
    "%s",
    async (name, format) => {
      const reasoning = name === "harmony" ? { ...THINK_TAGS, name } : undefined
      for (let seed = 1; seed <= 4; seed++) {
        const text = await drawn(oneCall(format, new Map([["get_it", SCHEMA]])), seeded(seed))
        const parser = answerParser({ reasoning, toolCalls: format }, { tools: TOOLS })
        const parts = [...parser.push(text), ...parser.flush()]
        const [call, ...others] = callsOf(parts)
        expect(others).toEqual([])
        expect(call?.name).toBe("get_it")
        const args = JSON.parse(call?.arguments ?? "")
        expect(args).toEqual({
          count: expect.any(Number),
          mode: expect.stringMatching(/^(fast|slow)$/),
          on: expect.any(Boolean),
        })
        expect(parts.filter(({ type }) => type === "content")).toEqual([])
      }
    },
  )
})

describe("formats", () => {
  const hermes = toolCallFormats().find(({ name }) => name === "hermes")!

  test("any of several tools", async () => {
    const format = oneCall(hermes, TOOLS)
    const put = '<tool_call>\n{"name": "put", "arguments": {}}\n</tool_call>'
    expect(await accepts(format, put)).toBe(true)
    expect(await accepts(format, put.replace("put", "pat"))).toBe(false)
    expect(await accepts(format, `Well. ${put}`)).toBe(false)
  })

  test("calls within text have the arguments of their schema", async () => {
    const format = callsInText(hermes, TOOLS)!
    const call =
      '<tool_call>\n{"name": "get_it", "arguments": {"count": 1, "mode": "fast", "on": true}}\n</tool_call>'
    expect(await accepts(format, "just text < more")).toBe(true)
    expect(await accepts(format, `text ${call}`)).toBe(true)
    expect(await accepts(format, `text ${call.replace("fast", "medium")}`)).toBe(false)
    expect(callsInText({ ...hermes, open: "" }, TOOLS)).toBeUndefined()
  })

  test("reasoning comes before", async () => {
    const json = jsonFormat({ type: "object" })
    const text = '{"a": [1, null]}'
    const open = afterReasoning(json, THINK_TAGS, "open")
    expect(await accepts(open, `so {"x"\n</think>\n\n${text}`)).toBe(true)
    expect(await accepts(open, text)).toBe(false)
    const none = afterReasoning(json, THINK_TAGS, "none")
    expect(await accepts(none, text)).toBe(true)
    expect(await accepts(none, `<think>\nhm\n</think>\n${text}`)).toBe(true)
    expect(await accepts(none, `hm ${text}`)).toBe(false)
    expect(afterReasoning(json, THINK_TAGS, "closed")).toBe(json)
  })

  test("tuples of older drafts", async () => {
    const items = [{ const: 1 }, { enum: ["a"] }]
    const tuple = jsonFormat({
      type: "object",
      properties: { t: { type: "array", items, additionalItems: false, minItems: 2 } },
      required: ["t"],
    })
    expect(await accepts(tuple, '{"t": [1, "a"]}')).toBe(true)
    expect(await accepts(tuple, '{"t": ["a", 1]}')).toBe(false)
    expect(await accepts(tuple, '{"t": [1, "a", 2]}')).toBe(false)
  })

  test("schemas: references, patterns, formats, enums", async () => {
    const tree = jsonFormat({
      $defs: {
        n: {
          type: "object",
          properties: { c: { anyOf: [{ $ref: "#/$defs/n" }, { type: "null" }] } },
          required: ["c"],
        },
      },
      $ref: "#/$defs/n",
    })
    expect(await accepts(tree, '{"c": {"c": null}}')).toBe(true)
    expect(await accepts(tree, '{"c": 1}')).toBe(false)
    const date = jsonFormat({ type: "string", format: "date" })
    expect(await accepts(date, '"2026-11-24"')).toBe(true)
    expect(await accepts(date, '"24 November"')).toBe(false)
    expect(await accepts({ type: "regex", pattern: "[0-9]{3}-[a-z]+" }, "123-ab")).toBe(true)
    expect(await accepts({ type: "grammar", grammar: 'root ::= "yes" | "no"' }, "maybe")).toBe(
      false,
    )
  })

  test.each([
    ["a type that is none", jsonFormat({ type: "nope" }), 'Unsupported type "nope"'],
    ["a reference to nothing", jsonFormat({ $ref: "#/x/y" }), "Cannot find field x"],
    ["a regular expression", { type: "regex", pattern: "((" }, "parenthesis is not closed"],
    ["a grammar", { type: "grammar", grammar: "root = x" }, "root rule"],
  ] as [string, AnswerFormat, string][])(
    "%s that is wrong is refused",
    async (_, format, words) => {
      const error = await grammars.matcher(grammarText(format), [EOS]).catch((e: unknown) => e)
      expect(String(error)).toContain(words)
      expect(await accepts(jsonFormat(true), "[1]")).toBe(true)
    },
  )
})
