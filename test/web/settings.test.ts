import { expect, test } from "bun:test"

import { ageGroup, formatDuration, formatSpeed, formatTokens } from "../../src/web/format.ts"
import {
  breakersText,
  countChanged,
  parseBreakers,
  parseField,
  parseSchema,
  parseTools,
  readSettings,
  SAMPLING_FIELDS,
  type SamplingField,
} from "../../src/web/settings.ts"
import { EMPTY_SETTINGS, SAMPLERS } from "../../src/web/types.ts"
import { SAMPLER_NAMES } from "../../src/worker/protocol.ts"

const field = (key: string): SamplingField => {
  const found = SAMPLING_FIELDS.find((each) => each.key === key)
  if (found === undefined) throw new Error(`no field ${key}`)
  return found
}

test("fields take numbers in range, nothing, or say what is wrong", () => {
  expect(parseField(field("temperature"), " 0.7 ")).toBe(0.7)
  expect(parseField(field("temperature"), "")).toBeNull()
  expect(parseField(field("temperature"), "3")).toBe("Temperature must be between 0 and 2")
  expect(parseField(field("temperature"), "warm")).toBe("Temperature must be a number")
  expect(parseField(field("top_k"), "1.5")).toBe("Top-k must be a whole number")
  expect(parseField(field("max_tokens"), "0")).toBe("Max tokens must be between 1 and 1000000")
})

test("stored settings are read field by field", () => {
  expect(readSettings({ seed: 7, top_k: 1.5, min_p: "0.1" })).toEqual({
    ...EMPTY_SETTINGS,
    seed: 7,
  })
  expect(readSettings(null)).toEqual(EMPTY_SETTINGS)
  expect(countChanged({ ...EMPTY_SETTINGS, seed: 0, system: "x" })).toBe(2)
  expect(countChanged({ ...EMPTY_SETTINGS, system: "  " })).toBe(0)
})

test("numbers read well", () => {
  expect([85.4, 1240, 9_994, 12_340, 125_000].map(formatDuration)).toEqual([
    "85 ms",
    "1.24 s",
    "9.99 s",
    "12.3 s",
    "2 min 5 s",
  ])
  expect([8.34, 99.94, 131.2, 1234].map(formatSpeed)).toEqual(["8.3", "99.9", "131", "1,234"])
  expect([900, 8000, 8192, 131_072, 1_048_576].map(formatTokens)).toEqual([
    "900",
    "8k",
    "8.2k",
    "131k",
    "1.0M",
  ])
})

test("ages follow the calendar", () => {
  const now = new Date(2026, 2, 31, 9).getTime()
  const day = (n: number, hour: number): number => new Date(2026, 2, n, hour).getTime()
  expect(
    [day(31, 0), day(30, 23), day(30, 0), day(25, 12), day(20, 0)].map((t) => ageGroup(t, now)),
  ).toEqual(["today", "yesterday", "yesterday", "lastWeek", "earlier"])
})

test("tools and schemas are JSON of their shape, or a sentence says what is wrong", () => {
  const tools = [{ type: "function", function: { name: "f" } }]
  expect(parseTools(JSON.stringify(tools))).toEqual(tools)
  expect(parseTools(" ")).toBeUndefined()
  for (const text of ["[]", "{}", "3", '[{"type":"function"}]', "[null]"])
    expect(parseTools(text)).toStartWith("Tools are a list like")
  expect(parseTools("[")).toStartWith("Not JSON: ")
  expect(parseSchema('{"type":"object"}')).toEqual({ type: "object" })
  expect(parseSchema("[]")).toStartWith("A schema is an object")
  expect(readSettings({ tools: "[", schema: "{}", mirostat: 2 })).toEqual({
    ...EMPTY_SETTINGS,
    schema: "{}",
    mirostat: 2,
  })
})

test("breakers are lines, with marks for those that no line can hold", () => {
  const breakers = ["\n", ":", "\\", "\\n", "\t", " * "]
  expect(parseBreakers(breakersText(breakers))).toEqual(breakers)
  expect(parseBreakers("\n\n")).toBeNull()
  expect(parseBreakers("a\na")).toEqual(["a"])
  expect(parseBreakers("x".repeat(41))).toBe("A breaker has at most 40 characters")
  const many = Array.from({ length: 65 }, (_, i) => `${i}`)
  expect(parseBreakers(many.join("\n"))).toBe("At most 64 breakers")
})

test("an order of samplers is kept where it is one, and the server's own is none", () => {
  expect(SAMPLERS).toEqual(SAMPLER_NAMES)
  const read = (samplers: unknown): unknown => readSettings({ samplers }).samplers
  expect(read(["xtc", "top_k", "xtc", "none"])).toEqual(["xtc", "top_k"])
  for (const none of [[], ["none"], "xtc", [...SAMPLERS]]) expect(read(none)).toBeNull()
  const stored = { samplers: ["top_k"], dry_sequence_breakers: ["\n"], thinking: "off" }
  expect(readSettings(stored)).toEqual({ ...EMPTY_SETTINGS, ...stored } as never)
  expect(countChanged(readSettings(stored))).toBe(3)
  expect(readSettings({ thinking: "much", dry_sequence_breakers: [1] })).toEqual(EMPTY_SETTINGS)
})
