import { fenced } from "./attachments.ts"
import { t } from "./language.ts"
import { splitThinking } from "./think.ts"
import {
  type Conversation,
  type Message,
  newId,
  type Settings,
  type TextFile,
  type Versions,
} from "./types.ts"

/** Longer titles do not fit the list. */
export const MAX_TITLE_CHARS = 60

/** The title of a conversation from its first message: the first line with anything in it, cut at a word. */
export function titleFrom(text: string): string {
  const line = text
    .split("\n")
    .map((part) => part.replace(/^[#>\s*`-]+/, "").trim())
    .find((part) => part !== "")
  if (line === undefined) return t("newChat")
  if (line.length <= MAX_TITLE_CHARS) return line
  const cut = line.slice(0, MAX_TITLE_CHARS - 1)
  const space = cut.lastIndexOf(" ")
  return `${(space > MAX_TITLE_CHARS / 2 ? cut.slice(0, space) : cut).trimEnd()}…`
}

export function newConversation(settings: Settings, now: number): Conversation {
  return {
    id: newId(),
    title: "",
    createdAt: now,
    updatedAt: now,
    settings: { ...settings },
    messages: [],
  }
}

/** Adds what the user wrote; the first message also names the conversation. */
export function addUserMessage(
  conversation: Conversation,
  content: string,
  now: number,
  files: readonly TextFile[] = [],
): Conversation {
  const message: Message = { id: newId(), role: "user", content, createdAt: now }
  if (files.length > 0) message.files = [...files]
  return {
    ...conversation,
    title: conversation.title === "" ? titleOf(message) : conversation.title,
    updatedAt: now,
    messages: [...conversation.messages, message],
  }
}

function titleOf({ content, files }: Message): string {
  return titleFrom(content.trim() === "" ? (files?.[0]?.name ?? "") : content)
}

/** Adds what the calls of the last answer gave, in their order. */
export function addResults(
  conversation: Conversation,
  results: readonly string[],
  now: number,
): Conversation {
  const calls = conversation.messages.at(-1)?.calls ?? []
  const messages = calls.map((call, index): Message => ({
    id: newId(),
    role: "tool",
    content: results[index] ?? "",
    callId: call.id,
    createdAt: now,
  }))
  return { ...conversation, updatedAt: now, messages: [...conversation.messages, ...messages] }
}

/** Adds the empty answer that a stream will fill; `versions` are what it stands beside. */
export function addAnswer(
  conversation: Conversation,
  model: string | undefined,
  now: number,
  versions?: Versions,
): Conversation {
  const message: Message = {
    id: newId(),
    role: "assistant",
    content: "",
    createdAt: now,
    state: "streaming",
    ...(model === undefined ? {} : { model }),
    ...(versions === undefined ? {} : { versions }),
  }
  return { ...conversation, updatedAt: now, messages: [...conversation.messages, message] }
}

/** Replaces one message; unknown ids change nothing. */
export function putMessage(conversation: Conversation, message: Message): Conversation {
  if (!conversation.messages.some((each) => each.id === message.id)) return conversation
  return {
    ...conversation,
    messages: conversation.messages.map((each) => (each.id === message.id ? message : each)),
  }
}

/** Without a message; one that has other versions goes with what follows it, and a neighbour shows. */
export function removeMessage(conversation: Conversation, messageId: string): Conversation {
  const versions = conversation.messages.find((each) => each.id === messageId)?.versions
  if (versions !== undefined) {
    const before = truncateBefore(conversation, messageId)
    return withTail(before, versions.others, Math.min(versions.at, versions.others.length - 1))
  }
  return {
    ...conversation,
    messages: conversation.messages.filter((each) => each.id !== messageId),
  }
}

/** A conversation of its own with all up to a message, as it is shown now; other versions stay behind. */
export function branchAt(
  conversation: Conversation,
  messageId: string,
  title: string,
  now: number,
): Conversation | undefined {
  const at = conversation.messages.findIndex((each) => each.id === messageId)
  if (at < 0) return undefined
  const messages = conversation.messages
    .slice(0, at + 1)
    .map(({ versions: _, ...message }): Message => message)
  return { ...conversation, id: newId(), title, createdAt: now, updatedAt: now, messages }
}

/** Drops an answer and everything after it, so that it can be generated again. */
export function truncateBefore(conversation: Conversation, messageId: string): Conversation {
  const index = conversation.messages.findIndex((each) => each.id === messageId)
  if (index < 0) return conversation
  return { ...conversation, messages: conversation.messages.slice(0, index) }
}

/** The conversation before a message, and all versions of what comes from there on, with room for one more. */
export function setAside(
  conversation: Conversation,
  messageId: string,
): { before: Conversation; versions: Versions } | undefined {
  const index = conversation.messages.findIndex((each) => each.id === messageId)
  const old = conversation.messages[index]
  if (old === undefined) return undefined
  const before = { ...conversation, messages: conversation.messages.slice(0, index) }
  // An answer of which nothing came is no version of it.
  const isNothing =
    old.state === "failed" && isEmpty(old) && index === conversation.messages.length - 1
  const all = isNothing ? [...(old.versions?.others ?? [])] : tails(conversation, index)
  return { before, versions: { at: all.length, others: all } }
}

function isEmpty(message: Message): boolean {
  return message.content === "" && message.reasoning === undefined && message.calls === undefined
}

/** All versions of what comes from a message on, in their order. */
function tails(conversation: Conversation, index: number): Message[][] {
  const [first, ...rest] = conversation.messages.slice(index)
  if (first === undefined) return []
  const { versions, ...message } = first
  const all = [...(versions?.others ?? [])]
  all.splice(versions?.at ?? 0, 0, [message, ...rest])
  return all
}

/** Ends a conversation with one of several tails and keeps the others as its versions. */
function withTail(before: Conversation, all: readonly Message[][], at: number): Conversation {
  const [first, ...rest] = all[at] ?? []
  if (first === undefined) return before
  const others = all.filter((_, index) => index !== at)
  const shown = others.length === 0 ? first : { ...first, versions: { at, others } }
  return { ...before, messages: [...before.messages, shown, ...rest] }
}

/** Shows another version of a message, from 0, with what followed that one; unknown ones change nothing. */
export function switchVersion(
  conversation: Conversation,
  messageId: string,
  to: number,
): Conversation {
  const index = conversation.messages.findIndex((each) => each.id === messageId)
  const all = index < 0 ? [] : tails(conversation, index)
  if (all[to] === undefined) return conversation
  return withTail(truncateBefore(conversation, messageId), all, to)
}

/** All messages, those of versions that are not shown too. */
export function* allMessages(messages: readonly Message[]): Generator<Message> {
  for (const message of messages) {
    yield message
    for (const tail of message.versions?.others ?? []) yield* allMessages(tail)
  }
}

/** Rewrites a user message as a version beside the old one. The title follows while it is still the one made from that message. */
export function editUserMessage(
  conversation: Conversation,
  messageId: string,
  content: string,
  now: number,
): Conversation {
  const index = conversation.messages.findIndex(
    (each) => each.id === messageId && each.role === "user",
  )
  const old = conversation.messages[index]
  const aside = old === undefined ? undefined : setAside(conversation, messageId)
  if (old === undefined || aside === undefined) return conversation
  const isTitled = index === 0 && conversation.title === titleOf(old)
  const { before, versions } = aside
  const message: Message = { ...old, id: newId(), content, createdAt: now, versions }
  return {
    ...before,
    title: isTitled ? titleOf(message) : conversation.title,
    updatedAt: now,
    messages: [...before.messages, message],
  }
}

/** A streaming answer of a page that was closed will never end; it counts as stopped. */
export function settle(conversation: Conversation): Conversation {
  if (!conversation.messages.some((each) => each.state === "streaming")) return conversation
  return {
    ...conversation,
    messages: conversation.messages.map((each) =>
      each.state === "streaming" ? { ...each, state: "stopped" } : each,
    ),
  }
}

/** A message of the user, or a tool's result, is last. */
export function lacksAnswer(conversation: Conversation): boolean {
  const role = conversation.messages.at(-1)?.role
  return role === "user" || role === "tool"
}

export interface RequestMessage {
  role: "system" | "user" | "assistant" | "tool"
  content: string | null
  reasoning_content?: string
  tool_calls?: { id: string; type: "function"; function: { name: string; arguments: string } }[]
  tool_call_id?: string
}

/** What a user message says, its files first, each in a fence with its name. */
export function messageText({ content, files = [] }: Message): string {
  return [...files.map(({ name, text }) => fenced(name, text)), content]
    .filter((text) => text !== "")
    .join("\n\n")
}

/** The messages as the server gets them: the system prompt first, reasoning and empty answers left out. */
export function requestMessages(conversation: Conversation): RequestMessage[] {
  const messages: RequestMessage[] = []
  const system = conversation.settings.system.trim()
  if (system !== "") messages.push({ role: "system", content: system })
  for (const message of conversation.messages) {
    if (message.role === "user") {
      messages.push({ role: "user", content: messageText(message) })
    } else if (message.role === "tool") {
      const { content, callId = "" } = message
      messages.push({ role: "tool", content, tool_call_id: callId })
    } else {
      const content = splitThinking(message.content).answer
      const { calls = [] } = message
      if (calls.length > 0)
        messages.push({
          role: "assistant",
          content: content.trim() === "" ? null : content,
          tool_calls: calls.map(({ id, name, arguments: text }) => ({
            id,
            type: "function",
            function: { name, arguments: text },
          })),
        })
      else if (content.trim() !== "") messages.push({ role: "assistant", content })
    }
  }
  return messages
}

/** The same for an answer that goes on: it comes last as far as it is written, its reasoning too. */
export function continuedMessages(conversation: Conversation, answer: Message): RequestMessage[] {
  const before = requestMessages(truncateBefore(conversation, answer.id))
  const { content, reasoning } = answer
  return [
    ...before,
    {
      role: "assistant",
      content,
      ...(reasoning === undefined ? {} : { reasoning_content: reasoning }),
    },
  ]
}

/** An answer that ended early can go on. */
export function canContinue(conversation: Conversation, message: Message): boolean {
  const { state, role, calls } = message
  return (
    role === "assistant" &&
    (state === "stopped" || state === "length" || state === "failed") &&
    !isEmpty(message) &&
    calls === undefined &&
    conversation.messages.at(-1)?.id === message.id
  )
}

/** Conversations whose title or text holds every word of the query, whatever the case. */
export function searchConversations(
  conversations: readonly Conversation[],
  query: string,
): readonly Conversation[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean)
  if (words.length === 0) return conversations
  return conversations.filter((conversation) => {
    const text = [
      conversation.title,
      ...Array.from(allMessages(conversation.messages), (each) => each.content),
    ]
      .join("\n")
      .toLowerCase()
    return words.every((word) => text.includes(word))
  })
}

/** Tokens that the conversation held after its last answer, `undefined` before the first. */
export function contextTokens(conversation: Conversation): number | undefined {
  const stats = conversation.messages.findLast((each) => (each.stats?.promptTokens ?? 0) > 0)?.stats
  return stats === undefined ? undefined : stats.promptTokens + stats.answerTokens
}
