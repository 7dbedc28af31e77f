import type { ChatEvent, ChatPrompt } from "../chat.ts"
import { asRequestError, type ChoiceUsage } from "../generate.ts"
import { randomId } from "../ids.ts"
import type { NamedEvent } from "../stream.ts"
import type { AnswerPart } from "../tools/answer.ts"
import { customInput, type KnownTool } from "./response-tools.ts"

/** What a response says of its request. */
export interface ResponseBase extends Readonly<Record<string, unknown>> {
  readonly id: string
}

export interface FinishedResponse extends ResponseBase {
  readonly status: string
  readonly output: readonly unknown[]
}

interface Item {
  readonly id: string
  readonly kind: "reasoning" | "message" | "function_call" | "custom_tool_call"
  readonly callId: string
  readonly name: string
  readonly namespace: string | undefined
  text: string
}

const ID_PREFIX = {
  reasoning: "rs",
  message: "msg",
  function_call: "fc",
  custom_tool_call: "ctc",
} as const

/** An answer as a response's items, and as the events that build them. */
export class ResponseWriter {
  readonly #base: ResponseBase
  readonly #prompt: ChatPrompt
  readonly #tools: ReadonlyMap<string, KnownTool>
  readonly #output: unknown[] = []
  #sequence = 0
  #item: Item | undefined
  #reasoningPieces = 0
  #response: FinishedResponse | undefined

  constructor(base: ResponseBase, prompt: ChatPrompt, tools: ReadonlyMap<string, KnownTool>) {
    this.#base = base
    this.#tools = tools
    this.#prompt = prompt
  }

  /** Once the events have ended. */
  get response(): FinishedResponse {
    if (this.#response === undefined) throw new RangeError("the response has no end")
    return this.#response
  }

  /** Before its first token. */
  begun(): FinishedResponse {
    return this.#as("in_progress", null)
  }

  /**
   * @param finish Called with the whole response, failed and cancelled ones too, before its last event is sent
   * @param isCancelled Whether an answer that ends early was meant to
   */
  async *events(
    answer: AsyncIterable<ChatEvent>,
    finish: (response: FinishedResponse) => void,
    isCancelled: () => boolean = () => false,
  ): AsyncGenerator<NamedEvent> {
    const begun = this.begun()
    yield this.#event("response.created", { response: begun })
    yield this.#event("response.in_progress", { response: begun })
    if (this.#prompt.prefix !== "")
      yield* this.#part({ type: "content", text: this.#prompt.prefix })
    try {
      for await (const event of answer) {
        if (event.type === "parts") {
          for (const part of event.parts) yield* this.#part(part)
          continue
        }
        const status = event.finishReason === "length" ? "incomplete" : "completed"
        yield* this.#close(status)
        const details = status === "incomplete" ? { reason: "max_output_tokens" } : null
        this.#response = {
          ...this.#as(status, event.usage),
          incomplete_details: details,
        }
        finish(this.#response)
        yield this.#event(`response.${status}`, { response: this.#response })
      }
      if (this.#response === undefined && isCancelled()) yield* this.#cancelled(finish)
    } catch (error) {
      if (isCancelled()) {
        yield* this.#cancelled(finish)
        return
      }
      const { message, code } = asRequestError(error)
      const failed = {
        ...this.#as("failed", null),
        error: { code: code ?? "server_error", message },
      }
      finish(failed)
      yield this.#event("response.failed", { response: failed })
      throw error
    }
  }

  *#cancelled(finish: (response: FinishedResponse) => void): Generator<NamedEvent> {
    yield* this.#close("incomplete")
    this.#response = this.#as("cancelled", null)
    finish(this.#response)
    yield this.#event("response.cancelled", { response: this.#response })
  }

  #as(status: string, usage: ChoiceUsage | null): FinishedResponse {
    return {
      ...this.#base,
      status,
      output: [...this.#output],
      usage: usage === null ? null : this.#usage(usage),
    }
  }

  #usage({ promptTokens, cachedTokens, completionTokens }: ChoiceUsage): unknown {
    return {
      input_tokens: promptTokens,
      input_tokens_details: { cached_tokens: cachedTokens },
      output_tokens: completionTokens,
      output_tokens_details: {
        reasoning_tokens: Math.min(this.#reasoningPieces, completionTokens),
      },
      total_tokens: promptTokens + completionTokens,
    }
  }

  #event(type: string, data: Record<string, unknown>): NamedEvent {
    return { event: type, data: { type, sequence_number: this.#sequence++, ...data } }
  }

  get #place(): { item_id: string; output_index: number } {
    return { item_id: (this.#item as Item).id, output_index: this.#output.length }
  }

  *#part(part: AnswerPart): Generator<NamedEvent> {
    if (part.type === "arguments") {
      const item = this.#item
      if (item === undefined) return
      item.text += part.text
      // a custom tool's text is whole only when its JSON is
      if (item.kind === "custom_tool_call") return
      yield this.#event("response.function_call_arguments.delta", {
        ...this.#place,
        delta: part.text,
      })
      return
    }
    const kind =
      part.type === "call"
        ? this.#callKind(part)
        : part.type === "content"
          ? "message"
          : "reasoning"
    if (part.type === "call" || this.#item?.kind !== kind) {
      yield* this.#close("completed")
      yield* this.#open(kind, part)
    }
    if (part.type === "call") return
    const item = this.#item as Item
    item.text += part.text
    if (kind === "reasoning") this.#reasoningPieces++
    const name = kind === "message" ? "output_text" : "reasoning_text"
    const logprobs = kind === "message" ? { logprobs: [] } : {}
    yield this.#event(`response.${name}.delta`, {
      ...this.#place,
      content_index: 0,
      delta: part.text,
      ...logprobs,
    })
  }

  #callKind({ name }: AnswerPart & { readonly type: "call" }): Item["kind"] {
    return this.#tools.get(name)?.kind === "custom" ? "custom_tool_call" : "function_call"
  }

  *#open(kind: Item["kind"], part: AnswerPart): Generator<NamedEvent> {
    const prefix = ID_PREFIX[kind]
    const call = part.type === "call" ? part : undefined
    const tool = call === undefined ? undefined : this.#tools.get(call.name)
    this.#item = {
      id: `${prefix}_${randomId()}`,
      kind,
      callId: call === undefined ? "" : this.#prompt.callId(call.id),
      name: tool?.name ?? call?.name ?? "",
      namespace: tool?.namespace,
      text: "",
    }
    yield this.#event("response.output_item.added", {
      output_index: this.#output.length,
      item: itemOf(this.#item, "in_progress"),
    })
    if (call === undefined)
      yield this.#event("response.content_part.added", {
        ...this.#place,
        content_index: 0,
        part: contentOf(this.#item),
      })
  }

  *#close(status: "completed" | "incomplete"): Generator<NamedEvent> {
    const item = this.#item
    if (item === undefined) return
    const { text, name, kind } = item
    if (kind === "custom_tool_call") {
      const input = customInput(text)
      yield this.#event("response.custom_tool_call_input.delta", { ...this.#place, delta: input })
      yield this.#event("response.custom_tool_call_input.done", { ...this.#place, input })
    } else if (kind === "function_call") {
      yield this.#event("response.function_call_arguments.done", {
        ...this.#place,
        name,
        arguments: text,
      })
    } else {
      const done = kind === "message" ? "output_text" : "reasoning_text"
      const logprobs = kind === "message" ? { logprobs: [] } : {}
      yield this.#event(`response.${done}.done`, {
        ...this.#place,
        content_index: 0,
        text,
        ...logprobs,
      })
      yield this.#event("response.content_part.done", {
        ...this.#place,
        content_index: 0,
        part: contentOf(item),
      })
    }
    const finished = itemOf(item, status)
    yield this.#event("response.output_item.done", {
      output_index: this.#output.length,
      item: finished,
    })
    this.#output.push(finished)
    this.#item = undefined
  }
}

function contentOf({ kind, text }: Item): unknown {
  if (kind === "reasoning") return { type: "reasoning_text", text }
  return { type: "output_text", text, annotations: [], logprobs: [] }
}

function itemOf(item: Item, status: string): unknown {
  const { id, kind, callId, name, text } = item
  const namespace = item.namespace === undefined ? {} : { namespace: item.namespace }
  if (kind === "function_call")
    return { id, type: kind, status, call_id: callId, name, arguments: text, ...namespace }
  if (kind === "custom_tool_call")
    return { id, type: kind, status, call_id: callId, name, input: customInput(text), ...namespace }
  const content = status === "in_progress" ? [] : [contentOf(item)]
  if (kind === "reasoning") return { id, type: kind, status, summary: [], content }
  return { id, type: kind, status, role: "assistant", content }
}
