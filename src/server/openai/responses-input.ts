import { RequestError } from "../../errors.ts"
import type { ChatOptions } from "../chat.ts"
import { randomId } from "../ids.ts"
import { type AnswerFormat, jsonFormat } from "../tools/answer-grammar.ts"
import type { TemplateMessage } from "../types.ts"
import { templateToolCall } from "./messages.ts"
import { type ResponseTools, toolName } from "./response-tools.ts"
import type { InputItem, ResponseRequest } from "./responses-schema.ts"

/** An item of a request or an answer, with its id. */
export type KnownItem = Exclude<InputItem, { readonly type: "item_reference" }> & {
  readonly id: string
}

/** Items with ids; references are replaced by what `find` knows under them. RequestError 404 where it knows nothing. */
export function inputItems(
  input: ResponseRequest["input"],
  find: (id: string) => unknown,
): KnownItem[] {
  const items: readonly InputItem[] =
    typeof input === "string"
      ? [{ type: "message", role: "user", content: [{ type: "input_text", text: input }] }]
      : input
  return items.map((item, i) => {
    if (item.type === "item_reference") {
      const known = find(item.id)
      if (known !== undefined) return known as KnownItem
      throw new RequestError(404, `input[${i}].id ${item.id}: there is no such item`, {
        code: "item_not_found",
        param: `input[${i}].id`,
      })
    }
    const known = { ...item, id: item["id"] ?? `msg_${randomId()}` }
    return ("role" in known ? { ...known, type: "message" } : known) as KnownItem
  })
}

/** Messages for the template. Instructions come first and are this request's alone. */
export function responseMessages(
  items: readonly KnownItem[],
  instructions: string | null | undefined,
): TemplateMessage[] {
  const messages = joined(items.flatMap(templateMessages))
  if (instructions) messages.unshift({ role: "system", content: instructions })
  return messages
}

/** Items as templates have them: a call belongs to the assistant's message before it. */
function templateMessages(item: KnownItem): TemplateMessage[] {
  switch (item.type) {
    case "function_call":
      return [called(item, item.arguments)]
    case "custom_tool_call":
      return [called(item, JSON.stringify({ input: item.input }))]
    case "function_call_output":
    case "custom_tool_call_output":
      return [{ role: "tool", content: textOf(item.output), tool_call_id: item.call_id }]
    // what was thought is not said again
    case "reasoning":
      return []
    default:
      return [
        { role: item.role === "developer" ? "system" : item.role, content: textOf(item.content) },
      ]
  }
}

function called(
  item: { readonly call_id: string; readonly name: string; readonly namespace?: unknown },
  args: string,
): TemplateMessage {
  const namespace = typeof item.namespace === "string" ? item.namespace : undefined
  const call = { name: toolName(item.name, namespace), arguments: args }
  return {
    role: "assistant",
    content: "",
    tool_calls: [templateToolCall({ id: item.call_id, function: call })],
  }
}

/** Text and calls of one turn are one message in templates. */
function joined(messages: readonly TemplateMessage[]): TemplateMessage[] {
  const out: TemplateMessage[] = []
  for (const message of messages) {
    const last = out.at(-1)
    if (last?.role !== "assistant" || message.role !== "assistant" || !message.tool_calls) {
      out.push(message)
      continue
    }
    const calls = [...(last.tool_calls ?? []), ...message.tool_calls]
    out[out.length - 1] = { ...last, tool_calls: calls }
  }
  return out
}

function textOf(
  content: string | readonly { text?: string | undefined; refusal?: string | undefined }[],
): string {
  if (typeof content === "string") return content
  return content.map(({ text, refusal }) => text ?? refusal ?? "").join("\n")
}

export function responseOptions(
  body: ResponseRequest,
  { tools }: ResponseTools,
  reasoning: "auto" | "none",
): ChatOptions {
  const { tool_choice: choice } = body
  return {
    tools: choice === "none" ? [] : tools,
    ...(choice === "required" ? { toolChoice: "required" } : {}),
    ...(typeof choice === "object" && choice !== null ? { toolChoice: { name: choice.name } } : {}),
    strictTools: body.tools?.some((tool) => tool["strict"] === true) === true,
    content: contentOf(body),
    ...(body.reasoning?.effort ? { vars: { reasoning_effort: body.reasoning.effort } } : {}),
    reasoning,
  }
}

function contentOf({ text }: ResponseRequest): AnswerFormat | undefined {
  if (text?.format?.type === "json_object") return jsonFormat({ type: "object" })
  return text?.format?.type === "json_schema" ? jsonFormat(text.format.schema) : undefined
}
