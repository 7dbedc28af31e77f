import type { ChatEvent, Usage } from "./api.ts"
import { type Failure, type Message, newId, type Stats, type ToolCall } from "./types.ts"

/** An answer while it arrives. Times are performance.now() in ms. */
export interface Draft {
  content: string
  reasoning: string
  calls: readonly ToolCall[]
  /** What the answer had cost before it was continued. */
  before: Stats | undefined
  startedAt: number
  firstAt: number | undefined
  lastAt: number | undefined
  /** Chunks with text so far: about one token each, exact counts come with `usage`. */
  chunks: number
  usage: Usage
  end: "done" | "length" | "stopped" | Failure | undefined
}

/** A draft of a new answer, or of one that goes on where it ended. */
export function newDraft(now: number, unfinished?: Message): Draft {
  return {
    content: unfinished?.content ?? "",
    reasoning: unfinished?.reasoning ?? "",
    calls: unfinished?.calls ?? [],
    before: unfinished?.stats,
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
    case "reasoning":
    case "call": {
      const seen = {
        ...draft,
        firstAt: draft.firstAt ?? now,
        lastAt: now,
        chunks: draft.chunks + 1,
      }
      if (event.type === "call") return { ...seen, calls: addToCall(draft.calls, event) }
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

/** Pieces of a call join by its number; a piece of one that is not there begins the next. */
function addToCall(
  calls: readonly ToolCall[],
  piece: ChatEvent & { type: "call" },
): readonly ToolCall[] {
  const old = calls[piece.index]
  if (old === undefined)
    return [
      ...calls,
      { id: piece.id ?? newId(), name: piece.name ?? "", arguments: piece.arguments },
    ]
  const { id, name } = old
  const call = { id, name: piece.name ?? name, arguments: old.arguments + piece.arguments }
  return calls.with(piece.index, call)
}

/** What the answer cost so far, `undefined` before its first token. The server's own figures win over the page's clock. */
export function draftStats(draft: Draft): Stats | undefined {
  const { before } = draft
  if (draft.firstAt === undefined || draft.lastAt === undefined) return before
  const generationMs = draft.lastAt - draft.firstAt
  const answerTokens = draft.usage.answerTokens ?? draft.chunks
  const measured = generationMs > 0 ? ((answerTokens - 1) * 1000) / generationMs : 0
  const tokensPerSecond = draft.usage.tokensPerSecond ?? Math.max(0, measured)
  if (before !== undefined)
    return {
      ...before,
      generationMs: before.generationMs + generationMs,
      // What was written before is part of the prompt now.
      promptTokens:
        draft.usage.promptTokens === undefined
          ? before.promptTokens
          : Math.max(0, draft.usage.promptTokens - before.answerTokens),
      answerTokens: before.answerTokens + answerTokens,
      tokensPerSecond,
    }
  return {
    firstTokenMs: draft.firstAt - draft.startedAt,
    generationMs,
    promptTokens: draft.usage.promptTokens ?? 0,
    cachedTokens: draft.usage.cachedTokens ?? 0,
    answerTokens,
    tokensPerSecond,
  }
}

/** The message with what has arrived written into it. */
export function fillMessage(message: Message, draft: Draft): Message {
  const filled: Message = { ...message, content: draft.content }
  if (draft.reasoning !== "") filled.reasoning = draft.reasoning
  if (draft.calls.length > 0) filled.calls = [...draft.calls]
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
