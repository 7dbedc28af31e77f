import { t } from "./language.ts"
import { splitThinking } from "./think.ts"
import { type Conversation, type Message, newId, type Settings } from "./types.ts"

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
): Conversation {
  const message: Message = { id: newId(), role: "user", content, createdAt: now }
  return {
    ...conversation,
    title: conversation.title === "" ? titleFrom(content) : conversation.title,
    updatedAt: now,
    messages: [...conversation.messages, message],
  }
}

/** Adds the empty answer that a stream will fill. */
export function addAnswer(
  conversation: Conversation,
  model: string | undefined,
  now: number,
): Conversation {
  const message: Message = {
    id: newId(),
    role: "assistant",
    content: "",
    createdAt: now,
    state: "streaming",
    ...(model === undefined ? {} : { model }),
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

export function removeMessage(conversation: Conversation, messageId: string): Conversation {
  return {
    ...conversation,
    messages: conversation.messages.filter((each) => each.id !== messageId),
  }
}

/** Drops an answer and everything after it, so that it can be generated again. */
export function truncateBefore(conversation: Conversation, messageId: string): Conversation {
  const index = conversation.messages.findIndex((each) => each.id === messageId)
  if (index < 0) return conversation
  return { ...conversation, messages: conversation.messages.slice(0, index) }
}

/** Rewrites a user message and drops what followed it. The title follows while it is still the one made from that message. */
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
  if (old === undefined) return conversation
  const isTitled = index === 0 && conversation.title === titleFrom(old.content)
  return {
    ...conversation,
    title: isTitled ? titleFrom(content) : conversation.title,
    updatedAt: now,
    messages: [...conversation.messages.slice(0, index), { ...old, content }],
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

export interface RequestMessage {
  role: "system" | "user" | "assistant"
  content: string
}

/** The messages as the server gets them: the system prompt first, reasoning and empty answers left out. */
export function requestMessages(conversation: Conversation): RequestMessage[] {
  const messages: RequestMessage[] = []
  const system = conversation.settings.system.trim()
  if (system !== "") messages.push({ role: "system", content: system })
  for (const message of conversation.messages) {
    const content =
      message.role === "assistant" ? splitThinking(message.content).answer : message.content
    if (message.role === "assistant" && content.trim() === "") continue
    messages.push({ role: message.role, content })
  }
  return messages
}

/** Conversations whose title or text holds every word of the query, whatever the case. */
export function searchConversations(
  conversations: readonly Conversation[],
  query: string,
): readonly Conversation[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean)
  if (words.length === 0) return conversations
  return conversations.filter((conversation) => {
    const text = [conversation.title, ...conversation.messages.map((each) => each.content)]
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
