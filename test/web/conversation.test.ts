import { describe, expect, test } from "bun:test"

import {
  addAnswer,
  addResults,
  addUserMessage,
  allMessages,
  canContinue,
  contextTokens,
  continuedMessages,
  editUserMessage,
  MAX_TITLE_CHARS,
  newConversation,
  putMessage,
  removeMessage,
  requestMessages,
  searchConversations,
  setAside,
  settle,
  switchVersion,
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

describe("versions", () => {
  /** "a" was answered "b" and went on with "c"; then "a" was rewritten. */
  const edited = (): Conversation => {
    const before = talk("a", "b", "c")
    return addAnswer(editUserMessage(before, at(before, 0).id, "A", 9), "m", 9)
  }

  test("an edited message keeps the earlier one with what followed it", () => {
    const after = edited()
    expect(texts(after)).toEqual(["A", ""])
    expect(at(after, 0).versions?.at).toBe(1)
    const back = switchVersion(after, at(after, 0).id, 0)
    expect(texts(back)).toEqual(["a", "b", "c"])
    expect(at(back, 0).versions).toMatchObject({ at: 0, others: [[{ content: "A" }, {}]] })
    expect(switchVersion(back, at(back, 0).id, 1)).toEqual(after)
    expect(switchVersion(back, at(back, 0).id, 2)).toBe(back)
    expect(Array.from(allMessages(back.messages), (each) => each.content).sort()).toEqual([
      "",
      "A",
      "a",
      "b",
      "c",
    ])
    expect(searchConversations([after], "b")).toEqual([after])
  })

  test("stand side by side also within versions", () => {
    const first = talk("a", "b")
    const aside = setAside(first, at(first, 1).id)
    if (aside === undefined) throw new Error("no such message")
    const second = addAnswer(aside.before, "m", 4, aside.versions)
    expect(at(second, 1).versions).toMatchObject({ at: 1, others: [[{ content: "b" }]] })
    const third = editUserMessage(second, at(second, 0).id, "A", 5)
    const back = switchVersion(third, at(third, 0).id, 0)
    expect(texts(switchVersion(back, at(back, 1).id, 0))).toEqual(["a", "b"])
  })

  test("a deleted one shows its neighbour, the last one has no versions", () => {
    const after = edited()
    const left = removeMessage(after, at(after, 0).id)
    expect(texts(left)).toEqual(["a", "b", "c"])
    expect(at(left, 0)).not.toHaveProperty("versions")
  })

  test("an answer of which nothing came is none", () => {
    const failed = addAnswer(talk("a"), "m", 2)
    const message = { ...at(failed, 1), state: "failed" as const }
    const aside = setAside(putMessage(failed, message), message.id)
    expect(aside?.versions).toEqual({ at: 0, others: [] })
  })
})

test("an answer goes on as it was written, its reasoning too", () => {
  const conversation = talk("a", "<think>hm</think>b")
  const stopped = { ...at(conversation, 1), reasoning: "so", state: "stopped" as const }
  const changed = putMessage(conversation, stopped)
  expect(canContinue(changed, stopped)).toBe(true)
  expect(continuedMessages(changed, stopped)).toEqual([
    { role: "user", content: "a" },
    { role: "assistant", content: "<think>hm</think>b", reasoning_content: "so" },
  ])
  expect(canContinue(conversation, at(conversation, 1))).toBe(false)
})

test("calls, their results and files are sent as the server knows them", () => {
  const start = addUserMessage(newConversation(EMPTY_SETTINGS, 1), "look", 1, [
    { name: "a.md", text: "```js\nx\n```" },
  ])
  const asked = addAnswer(start, "m", 2)
  const calls = [{ id: "c1", name: "f", arguments: "{}" }]
  const called = putMessage(asked, { ...at(asked, 1), calls, state: "done" })
  expect(requestMessages(addResults(called, ["42"], 3))).toEqual([
    { role: "user", content: "````a.md\n```js\nx\n```\n````\n\nlook" },
    {
      role: "assistant",
      content: null,
      tool_calls: [{ id: "c1", type: "function", function: { name: "f", arguments: "{}" } }],
    },
    { role: "tool", content: "42", tool_call_id: "c1" },
  ])
  const nameless = addUserMessage(newConversation(EMPTY_SETTINGS, 1), "", 1, [
    { name: "a.md", text: "x" },
  ])
  expect(nameless.title).toBe("a.md")
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
