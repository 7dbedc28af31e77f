import { expect, test } from "bun:test"

import { applyEvent, draftStats, fillMessage, newDraft } from "../../src/web/draft.ts"
import type { Message } from "../../src/web/types.ts"

const message: Message = {
  id: "1",
  role: "assistant",
  content: "",
  createdAt: 0,
  state: "streaming",
}

test("collects text and reasoning, and times both from the first token", () => {
  let draft = newDraft(1000)
  expect(draftStats(draft)).toBeUndefined()
  draft = applyEvent(draft, { type: "reasoning", text: "hm" }, 1250)
  draft = applyEvent(draft, { type: "text", text: "Hel" }, 1500)
  draft = applyEvent(draft, { type: "text", text: "lo" }, 1750)
  expect(fillMessage(message, draft)).toMatchObject({
    content: "Hello",
    reasoning: "hm",
    state: "streaming",
  })
  expect(draftStats(draft)).toEqual({
    firstTokenMs: 250,
    generationMs: 500,
    promptTokens: 0,
    cachedTokens: 0,
    answerTokens: 3,
    tokensPerSecond: 4,
  })
})

test("the server's figures win over the page's", () => {
  let draft = applyEvent(newDraft(0), { type: "text", text: "a" }, 100)
  draft = applyEvent(draft, { type: "usage", usage: { answerTokens: 7, tokensPerSecond: 90 } }, 200)
  draft = applyEvent(draft, { type: "usage", usage: { promptTokens: 30, cachedTokens: 20 } }, 200)
  expect(draftStats(draft)).toMatchObject({
    answerTokens: 7,
    tokensPerSecond: 90,
    promptTokens: 30,
    cachedTokens: 20,
  })
})

test("ends as the stream ended", () => {
  const draft = applyEvent(newDraft(0), { type: "text", text: "a" }, 1)
  const end = (event: Parameters<typeof applyEvent>[1]): Message =>
    fillMessage(message, applyEvent(draft, event, 2))
  expect(end({ type: "end", reason: "done" }).state).toBe("done")
  expect(end({ type: "end", reason: "length" }).state).toBe("length")
  const failure = { kind: "server", message: "no" } as const
  expect(end({ type: "failure", failure })).toMatchObject({
    content: "a",
    state: "failed",
    failure,
  })
  expect(draft.end).toBeUndefined()
})

test("pieces of calls join by their number", () => {
  let draft = newDraft(0)
  const piece = (index: number, text: string, id?: string, name?: string): void => {
    const named = id === undefined || name === undefined ? {} : { id, name }
    draft = applyEvent(draft, { type: "call", index, arguments: text, ...named }, 1)
  }
  piece(0, "", "a", "f")
  piece(0, '{"x"')
  piece(1, "", "b", "g")
  piece(0, ": 1}")
  expect(fillMessage(message, draft).calls).toEqual([
    { id: "a", name: "f", arguments: '{"x": 1}' },
    { id: "b", name: "g", arguments: "" },
  ])
})

test("an answer that goes on adds to what it had cost", () => {
  let first = applyEvent(newDraft(0), { type: "text", text: "a" }, 100)
  first = applyEvent(first, { type: "text", text: "b" }, 300)
  first = applyEvent(first, { type: "usage", usage: { promptTokens: 10, answerTokens: 2 } }, 300)
  const stopped = fillMessage(message, { ...first, end: "stopped" })
  let draft = newDraft(1000, stopped)
  expect(draftStats(draft)).toEqual(stopped.stats)
  draft = applyEvent(draft, { type: "text", text: "c" }, 1100)
  draft = applyEvent(draft, { type: "usage", usage: { promptTokens: 12, answerTokens: 1 } }, 1100)
  expect(fillMessage(stopped, draft)).toMatchObject({
    content: "abc",
    stats: { firstTokenMs: 100, generationMs: 200, promptTokens: 10, answerTokens: 3 },
  })
})
