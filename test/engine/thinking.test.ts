import { describe, expect, test } from "bun:test"

import { Thinking } from "../../src/engine/thinking.ts"
import { tableOf } from "./token-table.ts"

const TEXTS = [
  "a",
  "</",
  "think",
  ">",
  "<think>",
  "</think>",
  ">\n\n",
  "b</think>c",
  "\n",
  "\u20ac",
]
const EURO = new TextEncoder().encode("\u20ac")

function ids(...texts: string[]): number[] {
  return texts.map((text) => TEXTS.indexOf(text))
}

function thinking(budget: number, isOpen: boolean): Thinking {
  const closing = ids("\n", "</think>", "\n")
  return new Thinking(
    { budget, isOpen, closing, open: "<think>", close: "</think>" },
    tableOf(TEXTS),
  )
}

/** Feeds tokens until one is forced; how many it took. */
function fed(one: Thinking, tokens: readonly number[]): number {
  for (const [i, token] of tokens.entries()) {
    if (one.forced !== undefined) return i
    one.accept(token)
  }
  return tokens.length
}

describe("bounded reasoning", () => {
  test("closing tokens are forced one after the other, and nothing after them", () => {
    const one = thinking(2, true)
    expect(fed(one, ids("a", "a", "a"))).toBe(2)
    for (const token of ids("\n", "</think>", "\n")) {
      expect(one.forced).toBe(token)
      one.accept(token)
    }
    expect(one.forced).toBeUndefined()
    expect(fed(one, ids("a", "a", "a", "a"))).toBe(4)
  })

  test("it counts from the mark on; none may be had at all", () => {
    expect(fed(thinking(1, false), ids("a", "a", "<think>", "a", "a"))).toBe(4)
    expect(fed(thinking(0, false), ids("a", "<think>", "a"))).toBe(2)
    expect(fed(thinking(0, true), ids("a"))).toBe(0)
  })

  test.each([
    ["one token", ["a", "</think>", "a", "a", "a"]],
    ["several tokens", ["a", "</", "think", ">", "a", "a", "a", "a"]],
    ["tokens that hold more", ["a", "b</think>c", "a", "a", "a"]],
    ["a token with line breaks", ["</", "think", ">\n\n", "a", "a", "a"]],
  ])("it ends by itself: %s", (_, texts) => {
    expect(fed(thinking(4, true), ids(...texts))).toBe(texts.length)
  })

  test("a second beginning has what is left", () => {
    const texts = ["a", "a", "</think>", "<think>", "a", "a"]
    expect(fed(thinking(4, true), ids(...texts))).toBe(5)
  })

  test("neither a mark nor a character is cut in two", () => {
    expect(fed(thinking(2, true), ids("a", "</", "a", "a"))).toBe(3)
    expect(fed(thinking(2, true), ids("a", "</", "think", ">", "a", "a"))).toBe(6)
    const bytes = Uint8Array.from([97, ...EURO])
    const table = { bytes, ends: Uint32Array.of(1, 2, 3, 4) }
    const params = { budget: 1, isOpen: true, closing: [0], open: "<t>", close: "</t>" }
    expect(fed(new Thinking(params, table), [1, 2, 3, 0])).toBe(3)
    // what never becomes a character delays it for some tokens only
    const broken = Array.from({ length: 20 }, () => 1)
    expect(fed(new Thinking(params, table), broken)).toBeLessThan(12)
  })
})
