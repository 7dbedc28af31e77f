import type { ChatEvent, Usage } from "./api.ts"
import type { Failure, Message, Stats } from "./types.ts"

/** An answer while it arrives. Times are performance.now() in ms. */
export interface Draft {
  content: string
  reasoning: string
  startedAt: number
  firstAt: number | undefined
  lastAt: number | undefined
  /** Chunks with text so far: about one token each, exact counts come with `usage`. */
  chunks: number
  usage: Usage
  end: "done" | "length" | "stopped" | Failure | undefined
}

export function newDraft(now: number): Draft {
  return {
    content: "",
    reasoning: "",
    startedAt: now,
    firstAt: undefined,
    lastAt: undefined,
    chunks: 0,
    usage: {},
    end: undefined,
  }
}

/** The draft after one event; pure, the old one is unchanged. */
export function applyEvent(draft: Draft, event: ChatEvent, now: number): Draft {
  switch (event.type) {
    case "text":
    case "reasoning": {
      const seen = {
        ...draft,
        firstAt: draft.firstAt ?? now,
        lastAt: now,
        chunks: draft.chunks + 1,
      }
      return event.type === "text"
        ? { ...seen, content: draft.content + event.text }
        : { ...seen, reasoning: draft.reasoning + event.text }
    }
    case "usage":
      return { ...draft, usage: { ...draft.usage, ...event.usage } }
    case "end":
      return { ...draft, end: event.reason }
    case "failure":
      return { ...draft, end: event.failure }
  }
}

/** What the answer cost so far, `undefined` before its first token. The server's own figures win over the page's clock. */
export function draftStats(draft: Draft): Stats | undefined {
  if (draft.firstAt === undefined || draft.lastAt === undefined) return undefined
  const generationMs = draft.lastAt - draft.firstAt
  const answerTokens = draft.usage.answerTokens ?? draft.chunks
  const measured = generationMs > 0 ? ((answerTokens - 1) * 1000) / generationMs : 0
  return {
    firstTokenMs: draft.firstAt - draft.startedAt,
    generationMs,
    promptTokens: draft.usage.promptTokens ?? 0,
    cachedTokens: draft.usage.cachedTokens ?? 0,
    answerTokens,
    tokensPerSecond: draft.usage.tokensPerSecond ?? Math.max(0, measured),
  }
}

/** The message with what has arrived written into it. */
export function fillMessage(message: Message, draft: Draft): Message {
  const filled: Message = { ...message, content: draft.content }
  if (draft.reasoning !== "") filled.reasoning = draft.reasoning
  const stats = draftStats(draft)
  if (stats !== undefined) filled.stats = stats
  if (draft.end === undefined) filled.state = "streaming"
  else if (typeof draft.end === "string") filled.state = draft.end
  else {
    filled.state = "failed"
    filled.failure = draft.end
  }
  return filled
}
