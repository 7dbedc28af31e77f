import { RequestError } from "../errors.ts"
import type { ReasoningFormat } from "../tokenizer/chat-formats.ts"
import type { AnswerParser, AnswerPart } from "./tools/answer.ts"
import type { TemplateMessage } from "./types.ts"

/** An answer that ended early, as the request gives it back. */
interface Unfinished {
  readonly thought: string
  readonly content: string
}

/** Whether a conversation ends with the beginning of an answer, which Anthropic's and Ollama's clients have go on. */
export function endsUnfinished(messages: readonly TemplateMessage[]): boolean {
  const last = messages.at(-1)
  return last?.role === "assistant" && (last.tool_calls?.length ?? 0) === 0
}

/**
 * The answer that goes on: the last message. Undefined where it holds no text yet. RequestError 400 where it is none, or
 * ends in calls.
 */
export function unfinishedAnswer(messages: readonly TemplateMessage[]): Unfinished | undefined {
  const last = messages.at(-1)
  const refuse = (reason: string): RequestError =>
    new RequestError(400, `continue_final_message: ${reason}`, {
      code: "invalid_value",
      param: "continue_final_message",
    })
  if (last?.role !== "assistant")
    throw refuse(`the last message's role is "${last?.role}", not "assistant"`)
  if ((last.tool_calls?.length ?? 0) > 0) throw refuse("the last message ends in tool calls")
  const thought = last.reasoning_content ?? ""
  const content = typeof last.content === "string" ? last.content : ""
  return thought === "" && content === "" ? undefined : { thought, content }
}

/**
 * What the model had written behind the beginning of an answer, reasoning in its marks. `format` is undefined where
 * reasoning stays in the content; `isOpen` tells that the prompt has opened it.
 */
export function writtenText(
  { thought, content }: Unfinished,
  format: ReasoningFormat | undefined,
  isOpen: boolean,
): string {
  if (format === undefined) return content
  const isHarmony = format.name === "harmony"
  const final = `${isHarmony ? "<|channel|>final<|message|>" : ""}${content}`
  if (thought === "" && !isOpen) return final
  const reasoning = (isOpen ? "" : format.start) + thought
  if (content === "") return reasoning
  return `${reasoning}${closingText(format)}${content}`
}

/** What ends a model's reasoning, and goes before the content: tags are put on lines of their own. */
export function closingText(format: ReasoningFormat): string {
  if (format.name === "harmony")
    return `${format.close}<|start|>assistant<|channel|>final<|message|>`
  return format.name === "think" ? `\n${format.close}\n\n` : format.close
}

/** A parser that has read `written` already and gives the parts of what follows only. */
export function goingOn(written: string, parser: () => AnswerParser): AnswerParser {
  const own = parser()
  if (written === "") return own
  // What the parser holds back until it sees more (spaces, the beginning of a marker) is not sent a second time.
  const twin = parser()
  const whole = [...twin.push(`${written}.`), ...twin.flush()]
  let held = textLength(whole) - 1 - textLength(own.push(written))
  const rest = (parts: AnswerPart[]): AnswerPart[] =>
    parts.flatMap((part): AnswerPart[] => {
      if (held === 0) return [part]
      if (part.type !== "content" && part.type !== "reasoning") {
        held = 0
        return [part]
      }
      const text = part.text.slice(held)
      held -= part.text.length - text.length
      return text === "" ? [] : [{ ...part, text }]
    })
  return {
    push: (text) => rest(own.push(text)),
    flush: () => rest(own.flush()),
  }
}

function textLength(parts: readonly AnswerPart[]): number {
  return parts.reduce((sum, part) => ("text" in part ? sum + part.text.length : sum), 0)
}
