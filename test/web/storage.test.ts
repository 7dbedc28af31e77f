import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { addUserMessage, newConversation } from "../../src/web/conversation.ts"
import {
  conversationChars,
  excess,
  MAX_CONVERSATION_CHARS,
  MAX_CONVERSATIONS,
  MAX_MESSAGES,
  MAX_TOTAL_CHARS,
  readConversation,
} from "../../src/web/storage.ts"
import { exportConversations, importConversations } from "../../src/web/transfer.ts"
import { type Conversation, EMPTY_SETTINGS, type Message } from "../../src/web/types.ts"

function conversation(id: string, updatedAt: number, text = "hi"): Conversation {
  return { ...addUserMessage(newConversation(EMPTY_SETTINGS, 0), text, updatedAt), id }
}

const many = (count: number): Conversation[] =>
  Array.from({ length: count }, (_, index) => conversation(`c${index}`, index))

describe("excess", () => {
  test("keeps everything up to the limit", () => {
    expect(excess(many(MAX_CONVERSATIONS), null)).toEqual([])
  })

  test("drops the oldest beyond it, never the one on screen", () => {
    const list = many(MAX_CONVERSATIONS + 2).reverse()
    expect(excess(list, null)).toEqual(["c0", "c1"])
    expect(excess(list, "c0")).toEqual(["c1", "c2"])
  })

  test("counts characters too", () => {
    const third = "x".repeat(MAX_TOTAL_CHARS / 4)
    const list = [1, 2, 3, 4].map((n) => conversation(`c${n}`, n, third))
    expect(excess(list, null)).toEqual(["c1"])
    expect(excess(list.slice(1), null)).toEqual([])
  })
})

describe("readConversation", () => {
  test("gives back what was stored", () => {
    const stored = conversation("a", 5)
    expect(readConversation(structuredClone(stored))).toEqual(stored)
  })

  test("keeps the model that was chosen, if it can be one", () => {
    const stored = conversation("a", 1)
    expect(readConversation({ ...stored, model: "org/name:q4" })).toEqual({
      ...stored,
      model: "org/name:q4",
    })
    for (const model of [7, null, "x".repeat(1000)])
      expect(readConversation({ ...stored, model })).toEqual(stored)
  })

  test("gives back versions, files, calls and results", () => {
    const stored = conversation("a", 5)
    const answer: Message = {
      id: "2",
      role: "assistant",
      content: "",
      createdAt: 1,
      calls: [{ id: "c", name: "f", arguments: "{}" }],
    }
    const result: Message = { id: "3", role: "tool", content: "1", callId: "c", createdAt: 2 }
    const old: Message = { id: "1", role: "user", content: "x", createdAt: 1 }
    stored.messages = [
      {
        ...old,
        files: [{ name: "f", text: "t" }],
        versions: { at: 1, others: [[old, answer, result]] },
      },
      answer,
      result,
    ]
    expect(readConversation(structuredClone(stored))).toEqual(stored)
    expect(conversationChars(stored)).toBe(2 + 1 + 2 + (0 + 3) + 1 + (1 + (0 + 3) + 1))
    const read = importConversations(exportConversations([stored]), [])
    expect(read).toEqual({ conversations: [stored], rejected: 0 })
  })

  test("refuses versions that are none, or too many messages within them", () => {
    const good = conversation("a", 5)
    const [first] = good.messages
    const versions = (others: unknown, at: unknown = 0): unknown =>
      readConversation({ ...good, messages: [{ ...first, versions: { at, others } }] })
    expect(versions([[first]])).toBeDefined()
    expect(versions([[first]], 2)).toBeUndefined()
    expect(versions([[first]], 0.5)).toBeUndefined()
    expect(versions([[]])).toBeUndefined()
    expect(versions([])).toBeUndefined()
    expect(versions([[{ role: "user" }]])).toBeUndefined()
    expect(versions([Array(MAX_MESSAGES).fill(first)])).toBeUndefined()
    let deep: unknown = first
    for (let i = 0; i < 3000; i++) deep = { ...first, versions: { at: 0, others: [[deep]] } }
    expect(versions([[deep]])).toBeUndefined()
  })

  test("never throws, whatever it is given", () => {
    fc.assert(
      fc.property(fc.anything(), (data) => {
        expect(readConversation(data)).toBeUndefined()
      }),
    )
  })

  test("refuses what is not a conversation or too large", () => {
    const good = conversation("a", 5)
    const bad = [
      { ...good, id: "" },
      { ...good, id: "x".repeat(65) },
      { ...good, title: 3 },
      { ...good, messages: "no" },
      { ...good, messages: [{ id: "1", role: "system", content: "x" }] },
      { ...good, messages: [{ id: "1", role: "user", content: 4 }] },
      { ...good, messages: Array(MAX_MESSAGES + 1).fill(good.messages[0]) },
      conversation("a", 5, "x".repeat(MAX_CONVERSATION_CHARS)),
    ]
    for (const data of bad) expect(readConversation(data)).toBeUndefined()
  })

  test("drops fields that are wrong and keeps the text", () => {
    const good = conversation("a", 5)
    const read = readConversation({
      ...good,
      createdAt: "yesterday",
      settings: { temperature: 99, top_p: 0.9, system: 7, evil: true },
      messages: [{ ...good.messages[0], state: "odd", stats: { firstTokenMs: -1 }, failure: 3 }],
    })
    expect(read?.createdAt).toBe(0)
    expect(read?.settings).toEqual({ ...EMPTY_SETTINGS, top_p: 0.9 })
    expect(read?.messages).toEqual(good.messages)
  })
})

test("conversationChars counts everything that takes room", () => {
  const one = conversation("a", 1, "12345")
  one.title = "12"
  one.settings.system = "123"
  expect(conversationChars(one)).toBe(10)
})

describe("export and import", () => {
  const list = [conversation("a", 1, "one"), conversation("b", 2, "two")]

  test("come back whole", () => {
    expect(importConversations(exportConversations(list), [])).toEqual({
      conversations: list,
      rejected: 0,
    })
  })

  test("leave out what is there already and overwrite nothing", () => {
    const changed = conversation("b", 9, "other")
    const result = importConversations(exportConversations(list), [
      list[0] as Conversation,
      changed,
    ])
    if (typeof result === "string") throw new Error(result)
    expect(result.conversations).toHaveLength(1)
    expect(result.conversations[0]?.id).not.toBe("b")
    expect(result.conversations[0]?.messages).toEqual((list[1] as Conversation).messages)
  })

  test("count entries that cannot be read", () => {
    const text = exportConversations(list).replace('"one"', "1")
    expect(importConversations(text, [])).toMatchObject({ rejected: 1 })
  })

  test.each([
    ["{", "not JSON"],
    ["[]", "was not exported"],
    ["3", "holds no conversations"],
    ['{"format":"ktransformers-conversations","version":2,"conversations":[]}', "version 2"],
  ])("say what is wrong with %s", (text, part) => {
    expect(importConversations(text, [])).toContain(part)
  })
})
