import type { ChatFormat, ReasoningFormat, ToolCallFormat } from "../../tokenizer/chat-formats.ts"
import { partialEnd } from "../../tokenizer/detokenizer.ts"
import { type AnswerParser, type AnswerParserOptions, type AnswerPart } from "./answer.ts"
import { type CallReader, callReader } from "./call-reader.ts"
import { HarmonyParser } from "./harmony.ts"

/** A parser for a model's format; what is not in that format is content. */
export function answerParser(format: ChatFormat, options: AnswerParserOptions = {}): AnswerParser {
  if (format.reasoning?.name === "harmony") return new HarmonyParser(options)
  const calls = options.tools === undefined ? undefined : format.toolCalls
  return new TagParser(format.reasoning, calls, options)
}

/** Texts that mean something to the parser of a format; control tokens that are part of one must reach it. */
export function isMarker(format: ChatFormat, text: string): boolean {
  const { reasoning, toolCalls } = format
  const between = reasoning?.name === "harmony" ? "<|start|>" : undefined
  return [reasoning?.open, reasoning?.close, toolCalls?.example, between].some(
    (marker) => marker !== undefined && text !== "" && marker.includes(text),
  )
}

class TagParser implements AnswerParser {
  readonly #reasoning: ReasoningFormat | undefined
  readonly #format: ToolCallFormat | undefined
  readonly #reader: CallReader | undefined
  /** Markers that end a stretch of content. */
  readonly #openers: readonly string[]
  #state: "start" | "reasoning" | "content" | "section" | "call"
  #buffer = ""
  /** Spaces between parts belong to neither, so those within content are sent with what follows them. */
  #skipSpace: boolean
  #spaces = ""
  /** Calls of earlier bodies, and what has been sent of the current body's. */
  #numCalls = 0
  #sent: { name: boolean; length: number }[] = []

  constructor(
    reasoning: ReasoningFormat | undefined,
    format: ToolCallFormat | undefined,
    { tools, reasoningOpen = false }: AnswerParserOptions,
  ) {
    this.#reasoning = reasoning
    this.#format = format
    if (format !== undefined) this.#reader = callReader(format, tools ?? new Map())
    this.#state = reasoningOpen ? "reasoning" : "start"
    this.#skipSpace = reasoningOpen
    const call = format === undefined ? undefined : (format.section?.open ?? format.open)
    this.#openers = [call, reasoning?.open.trimEnd()].filter(
      (m) => m !== undefined && m !== "",
    ) as string[]
  }

  push(text: string): AnswerPart[] {
    this.#buffer += text
    const parts: AnswerPart[] = []
    while (this.#step(parts, false));
    return parts
  }

  flush(): AnswerPart[] {
    const parts: AnswerPart[] = []
    while (this.#step(parts, true));
    return parts
  }

  /** False when more text is needed. */
  #step(parts: AnswerPart[], isEnd: boolean): boolean {
    switch (this.#state) {
      case "start":
        return this.#start(isEnd)
      case "reasoning":
        return this.#reason(parts, isEnd)
      case "content":
        return this.#content(parts, isEnd)
      case "section":
        return this.#section(isEnd)
      case "call":
        return this.#call(parts, isEnd)
    }
  }

  /** Of an answer or of what follows reasoning: is it all one call? */
  #start(isEnd: boolean): boolean {
    const text = this.#buffer.trimStart()
    if (text === "" && !isEnd) return false
    const open = this.#reasoning?.open.trimEnd()
    if (open !== undefined && !isEnd && text.length < open.length && open.startsWith(text))
      return false
    if (this.#reader?.wholeAnswer !== undefined) {
      const verdict = this.#reader.wholeAnswer(text)
      if (verdict === undefined && !isEnd) return false
      if (verdict === true) {
        this.#buffer = text
        this.#state = "call"
        return true
      }
    }
    this.#state = "content"
    return true
  }

  #reason(parts: AnswerPart[], isEnd: boolean): boolean {
    const close = this.#reasoning?.close ?? ""
    const at = this.#buffer.indexOf(close)
    if (at < 0) {
      const text = this.#take(
        isEnd ? this.#buffer.length : this.#buffer.length - partialEnd(this.#buffer, [close]),
      )
      this.#emit(parts, "reasoning", text, isEnd)
      return false
    }
    this.#emit(parts, "reasoning", this.#take(at), true)
    this.#take(close.length)
    this.#skipSpace = true
    this.#state = "start"
    return true
  }

  #content(parts: AnswerPart[], isEnd: boolean): boolean {
    let at = -1
    let found = ""
    for (const opener of this.#openers) {
      const position = this.#buffer.indexOf(opener)
      if (position >= 0 && (at < 0 || position < at)) {
        at = position
        found = opener
      }
    }
    if (at < 0) {
      const held = isEnd ? 0 : partialEnd(this.#buffer, this.#openers)
      this.#emit(
        parts,
        "content",
        this.#take(this.#buffer.length - held),
        isEnd && !this.#anything(parts),
      )
      return false
    }
    this.#emit(parts, "content", this.#take(at), false)
    this.#spaces = ""
    this.#skipSpace = true
    this.#take(found.length)
    if (found === this.#reasoning?.open.trimEnd()) this.#state = "reasoning"
    else this.#state = this.#format?.section === undefined ? "call" : "section"
    return true
  }

  /** Between the calls of a section. */
  #section(isEnd: boolean): boolean {
    const { section, open } = this.#format as ToolCallFormat & { section: { close: string } }
    const close = this.#buffer.indexOf(section.close)
    const next = this.#buffer.indexOf(open)
    if (next >= 0 && (close < 0 || next < close)) {
      this.#take(next + open.length)
      this.#state = "call"
      return true
    }
    if (close >= 0) {
      this.#take(close + section.close.length)
      this.#state = "content"
      return true
    }
    if (isEnd) this.#buffer = ""
    return false
  }

  #call(parts: AnswerPart[], isEnd: boolean): boolean {
    const format = this.#format as ToolCallFormat
    const { calls, end } = (this.#reader as CallReader).read(this.#buffer, isEnd)
    for (const [i, call] of calls.entries()) {
      const sent = (this.#sent[i] ??= { name: false, length: 0 })
      const index = this.#numCalls + i
      if (call.name === undefined) continue
      if (!sent.name) parts.push({ type: "call", index, id: call.id, name: call.name })
      sent.name = true
      const more = call.arguments.slice(sent.length)
      if (more !== "") parts.push({ type: "arguments", index, text: more })
      sent.length = call.arguments.length
    }
    if (end < 0 && !isEnd) return false
    if (!this.#sent.some(({ name }) => name)) {
      // not a call after all
      const text = format.open + this.#buffer
      this.#buffer = ""
      this.#skipSpace = false
      this.#emit(parts, "content", text, isEnd)
      this.#state = "content"
      return false
    }
    this.#numCalls += this.#sent.length
    this.#sent = []
    this.#take(end < 0 ? this.#buffer.length : end)
    this.#skipSpace = true
    this.#state = format.section === undefined ? "start" : "section"
    return this.#buffer !== ""
  }

  #anything(parts: readonly AnswerPart[]): boolean {
    return this.#numCalls > 0 || parts.some(({ type }) => type === "call")
  }

  #take(length: number): string {
    const text = this.#buffer.slice(0, length)
    this.#buffer = this.#buffer.slice(length)
    return text
  }

  /** Without the spaces around a part; `isLast` says that no more of it comes. */
  #emit(parts: AnswerPart[], type: "reasoning" | "content", text: string, isLast: boolean): void {
    let whole = this.#spaces + text
    this.#spaces = ""
    if (this.#skipSpace) whole = whole.trimStart()
    if (type === "reasoning" || (!isLast && this.#openers.length > 0)) {
      const trimmed = whole.trimEnd()
      if (!isLast) this.#spaces = whole.slice(trimmed.length)
      whole = trimmed
    }
    if (whole === "") return
    this.#skipSpace = false
    parts.push({ type, text: whole })
  }
}
