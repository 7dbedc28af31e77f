import { writeFileSync } from "node:fs"

import { FormatError, KtError } from "../errors.ts"
import { chatPrompt } from "../server/chat.ts"
import type { ModelSettings } from "../server/models/library.ts"
import {
  DEFAULT_SERVER_CONFIG,
  type SamplingDefaults,
  type TemplateMessage,
} from "../server/types.ts"
import { answer, speedLine } from "./answer.ts"
import { similar } from "./args/suggest.ts"
import { readJson } from "./files.ts"
import { reasonOf } from "./kt-config.ts"
import { formatBytes } from "./output.ts"
import type { Session } from "./session.ts"

/** How the next answers are drawn. */
export interface Drawing {
  readonly sampling: SamplingDefaults
  readonly seed: number | undefined
}

export interface ChatOptions extends Drawing {
  /** Changes one of them by its flag's name; `undefined` for a name that is none. @throws KtError in words */
  readonly set?: (name: string, value: string) => Drawing | undefined
  /** Texts that end an answer. */
  readonly stops?: readonly string[]
  /** A created model's own. */
  readonly settings?: ModelSettings | undefined
  readonly forceThink: boolean
  readonly system: string | undefined
  readonly messages: readonly TemplateMessage[]
  /** The answers. */
  readonly out: (text: string) => void
  /** Everything else: speed, errors, answers to commands. */
  readonly note: (text: string) => void
}

const HELP = `/help            this list
/system [TEXT]   set the system prompt, or take it away
/set NAME VALUE  draw answers otherwise: temperature, top-k, seed, max-tokens and the like
/retry           answer the last message again
/undo            forget the last message and its answer
/clear           forget the conversation
/info            model, context and what is used of it
/save FILE.json  write the conversation
/load FILE.json  go on with one that was written
/quit            leave
"""              begins and ends a message of several lines`

/** In the order in which they are completed. */
export const CHAT_COMMANDS: readonly string[] = [
  ...["/help", "/system", "/set", "/retry", "/undo", "/clear", "/info", "/save", "/load"],
  ...["/quit", "/exit", "/bye"],
]

/** A conversation: its messages, and what each line of input does to it. */
export class ChatSession {
  readonly #session: Session
  readonly #options: ChatOptions
  #system: string | undefined
  #messages: TemplateMessage[]
  #running: AbortController | undefined
  #usedTokens = 0
  #drawing: Drawing

  constructor(session: Session, options: ChatOptions) {
    this.#session = session
    this.#options = options
    this.#drawing = options
    const { system, messages } = apart(options.messages)
    this.#system = options.system ?? system
    this.#messages = messages
  }

  /** A saved conversation. @throws FormatError naming the message that is none */
  static parse(file: string, json: unknown): TemplateMessage[] {
    if (!Array.isArray(json)) throw new FormatError(file, "is not a JSON array of messages")
    return json.map((message: unknown, i) => {
      const { role, content } = (message ?? {}) as { role?: unknown; content?: unknown }
      if (typeof role !== "string" || typeof content !== "string")
        throw new FormatError(file, `message ${i} has no "role" and "content" of text`)
      return { role, content }
    })
  }

  get messages(): TemplateMessage[] {
    const system = this.#system === undefined ? [] : [{ role: "system", content: this.#system }]
    return [...system, ...this.#messages]
  }

  /** Stops the answer that is being written; false if there is none. */
  stop(): boolean {
    if (this.#running === undefined || this.#running.signal.aborted) return false
    this.#running.abort()
    return true
  }

  /** A line of input: a command or a message. False when it ends the conversation. */
  async enter(line: string): Promise<boolean> {
    if (!line.startsWith("/")) {
      if (line.trim() !== "") await this.say(line)
      return true
    }
    const [command = "", ...words] = line.trim().split(/\s+/)
    const text = line.trim().slice(command.length).trim()
    switch (command) {
      case "/quit":
      case "/exit":
      case "/bye":
        return false
      case "/help":
        this.#options.note(HELP)
        return true
      case "/clear":
        this.#messages = []
        this.#usedTokens = 0
        this.#options.note("the conversation is forgotten")
        return true
      case "/system":
        this.#system = text === "" ? undefined : text
        this.#options.note(text === "" ? "no system prompt" : "the system prompt is set")
        return true
      case "/set":
        this.#set(words[0] ?? "", words.slice(1).join(" "))
        return true
      case "/undo":
        this.#undo()
        return true
      case "/load":
        this.#load(text)
        return true
      case "/retry":
        await this.#retry()
        return true
      case "/info":
        this.#info()
        return true
      case "/save":
        this.#save(words[0] === undefined ? "" : text)
        return true
    }
    const [near] = similar(command, CHAT_COMMANDS)
    this.#options.note(
      `unknown command ${command}${near === undefined ? "; /help lists them" : `; did you mean ${near}?`}`,
    )
    return true
  }

  /** A message of the user's, and the model's answer. A failure is a note: the conversation goes on without the message. */
  async say(text: string): Promise<void> {
    this.#messages.push({ role: "user", content: text })
    const controller = new AbortController()
    this.#running = controller
    const { client, tokenizer } = this.#session
    const { stops = [], settings, forceThink, out, note } = this.#options
    const { sampling, seed } = this.#drawing
    try {
      const config = { ...DEFAULT_SERVER_CONFIG, forceThink }
      const context = { tokenizer, config, settings }
      const prompt = chatPrompt(context, this.messages, { reasoning: "none" })
      if (prompt.prefix !== "") out(prompt.prefix)
      const result = await answer(
        this.#session,
        prompt.ids,
        { sampling, seed, stops, signal: controller.signal },
        out,
      )
      out("\n")
      this.#messages.push({ role: "assistant", content: prompt.prefix + result.text })
      this.#usedTokens = result.promptTokens + result.tokens
      const cut =
        result.finish === "length"
          ? "; cut at the length limit"
          : result.finish === "abort"
            ? "; stopped"
            : ""
      note(`[${speedLine(result)}${cut}; context ${this.#usedTokens}/${client.info.contextLength}]`)
    } catch (error) {
      if (!(error instanceof KtError)) throw error
      this.#messages.pop()
      note(`kt: ${error.message}${error.hint === undefined ? "" : `\n    ${error.hint}`}`)
    } finally {
      this.#running = undefined
    }
  }

  async #retry(): Promise<void> {
    const last = this.#messages.findLastIndex(({ role }) => role === "user")
    if (last < 0) return this.#options.note("there is nothing to answer again")
    const { content } = this.#messages[last] as TemplateMessage
    this.#messages = this.#messages.slice(0, last)
    await this.say(content ?? "")
  }

  #set(name: string, value: string): void {
    const { set, note } = this.#options
    if (name === "" || value === "")
      return note("/set needs a name and a value: /set temperature 0.7")
    try {
      const changed = set?.(name.replace(/^--/, "").replaceAll("_", "-"), value)
      if (changed === undefined)
        return note(`${name} cannot be set; kt chat --help lists what can under SAMPLING`)
      this.#drawing = changed
      note(`${name} is ${value} from now on`)
    } catch (error) {
      if (!(error instanceof KtError)) throw error
      note(`kt: ${error.message}`)
    }
  }

  #undo(): void {
    const last = this.#messages.findLastIndex(({ role }) => role === "user")
    if (last < 0) return this.#options.note("there is nothing to undo")
    this.#messages = this.#messages.slice(0, last)
    this.#options.note(`forgotten; ${this.#messages.length} messages are left`)
  }

  #load(file: string): void {
    const { note } = this.#options
    if (file === "") return note("/load needs a file's name")
    try {
      const { system, messages } = apart(ChatSession.parse(file, readJson(file)))
      this.#system = system
      this.#messages = messages
      this.#usedTokens = 0
      note(
        `${file}: ${messages.length} messages${system === undefined ? "" : " and a system prompt"}`,
      )
    } catch (error) {
      if (!(error instanceof KtError)) throw error
      note(`kt: ${error.message}`)
    }
  }

  #info(): void {
    const { info } = this.#session.client
    const { name, details } = this.#session.metadata
    this.#options.note(
      [
        `model    ${name} (${info.architecture}, ${details.parameterSize}, ${details.quantization})`,
        `context  ${this.#usedTokens} of ${info.contextLength} tokens`,
        `KV cache ${formatBytes(info.kvCacheBytes)}`,
        `CPU      ${info.threads} threads, ${info.isa}, precision ${info.precision}`,
        `messages ${this.#messages.length}${this.#system === undefined ? "" : ", system prompt set"}`,
      ].join("\n"),
    )
  }

  #save(file: string): void {
    if (file === "") return this.#options.note("/save needs a file's name")
    try {
      writeFileSync(file, `${JSON.stringify(this.messages, undefined, 2)}\n`)
      this.#options.note(`${file}: ${this.messages.length} messages`)
    } catch (error) {
      this.#options.note(`kt: ${file}: ${reasonOf(error)}`)
    }
  }
}

/** Messages without the system prompt that they may begin with, and that. */
function apart(all: readonly TemplateMessage[]): {
  readonly system: string | undefined
  readonly messages: TemplateMessage[]
} {
  const [first, ...rest] = all
  if (first?.role !== "system") return { system: undefined, messages: [...all] }
  return { system: first.content ?? undefined, messages: rest }
}
