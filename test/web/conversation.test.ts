import { describe, expect, test } from "bun:test"

import {
  addAnswer,
  addUserMessage,
  contextTokens,
  editUserMessage,
  MAX_TITLE_CHARS,
  newConversation,
  putMessage,
  removeMessage,
  requestMessages,
  searchConversations,
  settle,
  titleFrom,
  truncateBefore,
} from "../../src/web/conversation.ts"
import { type Conversation, EMPTY_SETTINGS, type Message } from "../../src/web/types.ts"

function talk(...turns: string[]): Conversation {
  let conversation = newConversation(EMPTY_SETTINGS, 1)
  turns.forEach((text, index) => {
    if (index % 2 === 0) {
      conversation = addUserMessage(conversation, text, index)
      return
    }
    conversation = addAnswer(conversation, "m", index)
    const message = conversation.messages.at(-1)
    if (message !== undefined)
      conversation = putMessage(conversation, { ...message, content: text, state: "done" })
  })
  return conversation
}

const texts = (conversation: Conversation): string[] =>
  conversation.messages.map((message) => message.content)

const at = (conversation: Conversation, index: number): Message => {
  const message = conversation.messages[index]
  if (message === undefined) throw new Error(`no message ${index}`)
  return message
}

describe("titles", () => {
  test("take the first line with anything in it", () => {
    expect(titleFrom("\n  \n## Hello there\nmore")).toBe("Hello there")
    expect(titleFrom("```\n")).toBe("New chat")
  })

  test("are cut at a word", () => {
    const title = titleFrom("word ".repeat(40))
    expect(title.length).toBeLessThanOrEqual(MAX_TITLE_CHARS)
    expect(title).toEndWith("word…")
    expect(titleFrom("x".repeat(200)).length).toBe(MAX_TITLE_CHARS)
  })

  test("come from the first message only", () => {
    expect(talk("First", "answer", "Second").title).toBe("First")
  })
})

describe("changes", () => {
  test("leave the old conversation as it was", () => {
    const before = talk("a", "b")
    addUserMessage(before, "c", 5)
    editUserMessage(before, at(before, 0).id, "z", 5)
    removeMessage(before, at(before, 1).id)
    expect(texts(before)).toEqual(["a", "b"])
  })

  test("editing drops what followed and renames while the title is the message's", () => {
    const before = talk("a", "b", "c", "d")
    const first = editUserMessage(before, at(before, 0).id, "new", 9)
    expect(texts(first)).toEqual(["new"])
    expect(first.title).toBe("new")
    const second = editUserMessage({ ...before, title: "Mine" }, at(before, 2).id, "new", 9)
    expect(texts(second)).toEqual(["a", "b", "new"])
    expect(second.title).toBe("Mine")
    expect(editUserMessage(before, at(before, 1).id, "answers are not edited", 9)).toBe(before)
  })

  test("regenerating drops the answer and what followed", () => {
    const before = talk("a", "b", "c", "d")
    expect(texts(truncateBefore(before, at(before, 1).id))).toEqual(["a"])
    expect(truncateBefore(before, "unknown")).toBe(before)
  })

  test("an answer left streaming by a closed page counts as stopped", () => {
    const settled = settle(addAnswer(talk("a"), undefined, 2))
    expect(settled.messages.at(-1)?.state).toBe("stopped")
  })
})

describe("requestMessages", () => {
  test("puts the system prompt first and leaves reasoning and empty answers out", () => {
    const conversation = addAnswer(talk("a", "<think>hm</think>\n\nb", "c"), "m", 3)
    conversation.settings.system = " Be brief. "
    expect(requestMessages(conversation)).toEqual([
      { role: "system", content: "Be brief." },
      { role: "user", content: "a" },
      { role: "assistant", content: "b" },
      { role: "user", content: "c" },
    ])
  })
})

test("search needs every word, in title or text, whatever the case", () => {
  const list = [talk("Bread recipe", "Use flour"), talk("Bread board", "Use oak")]
  expect(searchConversations(list, "bread FLOUR")).toEqual([list[0] as Conversation])
  expect(searchConversations(list, " ")).toBe(list)
  expect(searchConversations(list, "iron")).toEqual([])
})

test("context is that of the last answer whose prompt was counted", () => {
  const conversation = talk("a", "b", "c", "d")
  expect(contextTokens(conversation)).toBeUndefined()
  const stats = {
    firstTokenMs: 1,
    generationMs: 1,
    promptTokens: 10,
    cachedTokens: 0,
    answerTokens: 5,
    tokensPerSecond: 1,
  }
  const counted = putMessage(conversation, { ...at(conversation, 1), stats })
  const failed = { ...at(conversation, 3), stats: { ...stats, promptTokens: 0 } }
  expect(contextTokens(putMessage(counted, failed))).toBe(15)
})
