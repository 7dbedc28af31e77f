import type { TemplateMessage, TemplateToolCall } from "../types.ts"
import type { ChatRequestMessage } from "./schema.ts"

/**
 * A request's message as templates know it: text content, `developer` as `system`, parsed tool
 * arguments.
 */
export function templateMessage(message: ChatRequestMessage): TemplateMessage {
  return {
    role: message.role === "developer" ? "system" : message.role,
    content: contentText(message.content),
    ...(message.name ? { name: message.name } : {}),
    ...(message.tool_calls ? { tool_calls: message.tool_calls.map(templateToolCall) } : {}),
    ...(message.tool_call_id ? { tool_call_id: message.tool_call_id } : {}),
    ...(message.reasoning_content ? { reasoning_content: message.reasoning_content } : {}),
  }
}

function contentText(content: ChatRequestMessage["content"]): string | null {
  if (content === undefined || content === null) return null
  if (typeof content === "string") return content
  return content.map((part) => part.text ?? part.refusal ?? "").join("\n")
}

/**
 * Templates write arguments with `tojson`, so they get the object; text that is not JSON stays
 * text.
 */
export function templateToolCall(
  call: NonNullable<ChatRequestMessage["tool_calls"]>[number],
): TemplateToolCall {
  let parsed: unknown = call.function.arguments
  try {
    parsed = JSON.parse(call.function.arguments)
  } catch {
    // Kept as text.
  }
  return {
    ...(call.id === undefined ? {} : { id: call.id }),
    type: "function",
    function: { name: call.function.name, arguments: parsed },
  }
}
