import { partialEnd } from "../../tokenizer/detokenizer.ts"
import { type AnswerParser, type AnswerParserOptions, type AnswerPart } from "./answer.ts"

/**
 * OpenAI's harmony format: messages on channels, `<|channel|>analysis<|message|>…<|end|><|start|>assistant…`. Analysis is
 * reasoning; commentary with a recipient is a call; final, and commentary without one, are content.
 * Source: the harmony response format guide of gpt-oss.
 */
export class HarmonyParser implements AnswerParser {
  readonly #callsAreText: boolean
  #buffer = ""
  #state: "header" | "message"
  #kind: "reasoning" | "content" | "call" = "reasoning"
  #numCalls = 0

  constructor({ tools, reasoningOpen = false }: AnswerParserOptions) {
    this.#callsAreText = tools === undefined
    this.#state = reasoningOpen ? "message" : "header"
  }

  push(text: string): AnswerPart[] {
    return this.#run(text, false)
  }

  flush(): AnswerPart[] {
    return this.#run("", true)
  }

  #run(text: string, isEnd: boolean): AnswerPart[] {
    this.#buffer += text
    const parts: AnswerPart[] = []
    while (this.#state === "header" ? this.#header(parts, isEnd) : this.#message(parts, isEnd));
    return parts
  }

  #header(parts: AnswerPart[], isEnd: boolean): boolean {
    const mark = "<|message|>"
    const at = this.#buffer.indexOf(mark)
    if (at < 0) {
      // text outside of any message: a model that does not keep to the format
      const plain = this.#buffer.trimStart()
      if (plain !== "" && !plain.startsWith("<") && !/^(assistant|to=)/.test(plain)) {
        if (!isEnd && "assistant".startsWith(plain)) return false
        this.#kind = "content"
        this.#state = "message"
        return true
      }
      if (isEnd) this.#buffer = ""
      return false
    }
    const header = this.#buffer.slice(0, at)
    this.#buffer = this.#buffer.slice(at + mark.length)
    const channel = /<\|channel\|>\s*(\w+)/.exec(header)?.[1]
    const recipient = /to=(?:functions\.)?([^\s<]+)/.exec(header)?.[1]
    if (recipient !== undefined && !this.#callsAreText) {
      this.#kind = "call"
      parts.push({ type: "call", index: this.#numCalls, id: undefined, name: recipient })
    } else {
      this.#kind = channel === "analysis" ? "reasoning" : "content"
    }
    this.#state = "message"
    return true
  }

  #message(parts: AnswerPart[], isEnd: boolean): boolean {
    const ends = ["<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"]
    let at = -1
    let mark = ""
    for (const end of ends) {
      const position = this.#buffer.indexOf(end)
      if (position >= 0 && (at < 0 || position < at)) {
        at = position
        mark = end
      }
    }
    const length = at >= 0 ? at : this.#buffer.length - (isEnd ? 0 : partialEnd(this.#buffer, ends))
    const text = this.#buffer.slice(0, length)
    if (text !== "") {
      if (this.#kind === "call") parts.push({ type: "arguments", index: this.#numCalls, text })
      else parts.push({ type: this.#kind, text })
    }
    const begins = mark === "<|channel|>" || mark === "<|start|>"
    this.#buffer = this.#buffer.slice(length + (begins ? 0 : mark.length))
    if (at < 0 && !isEnd) return false
    if (this.#kind === "call") this.#numCalls++
    this.#state = "header"
    return this.#buffer !== ""
  }
}
