import { type ToolCallFormat, toolCallFormats } from "../../tokenizer/chat-formats.ts"
import type { TemplateMessage } from "../types.ts"

/** How models are asked to write calls whose templates know no tools; many were trained on something like it. */
export const GENERIC_FORMAT: ToolCallFormat = toolCallFormats().find(
  ({ name }) => name === "hermes",
) as ToolCallFormat

/** Adds the tools to the system message. */
export function describeTools(
  messages: readonly TemplateMessage[],
  tools: readonly unknown[],
): TemplateMessage[] {
  const lines = tools.map((tool) => JSON.stringify(tool)).join("\n")
  const { open, close } = GENERIC_FORMAT
  const text = `You can call these functions:
${lines}

To call one, write a JSON object with its name and arguments between tags and nothing after it:
${open}
{"name": "<function name>", "arguments": {"<argument>": <value>}}
${close}
Otherwise answer in plain words.`
  const [first, ...rest] = messages
  if (first?.role !== "system") return [{ role: "system", content: text }, ...messages]
  return [{ ...first, content: `${first.content ?? ""}\n\n${text}`.trimStart() }, ...rest]
}

/** Calls and their results as text, for templates that know neither. */
export function withoutToolRoles(messages: readonly TemplateMessage[]): TemplateMessage[] {
  const out: TemplateMessage[] = []
  for (const { tool_calls, tool_call_id: _, name, ...message } of messages) {
    if (message.role === "tool") {
      const result = `<tool_response>\n${message.content ?? ""}\n</tool_response>`
      const last = out.at(-1)
      // templates want user and assistant in turns
      if (last?.role === "user")
        out[out.length - 1] = { ...last, content: `${last.content}\n${result}` }
      else out.push({ role: "user", content: result })
      continue
    }
    const calls = (tool_calls ?? []).map(({ function: { name: called, arguments: args } }) => {
      const call = JSON.stringify({ name: called, arguments: args })
      return `${GENERIC_FORMAT.open}\n${call}\n${GENERIC_FORMAT.close}`
    })
    const content = [message.content ?? "", ...calls].filter((text) => text !== "").join("\n")
    out.push({ ...message, content, ...(name === undefined ? {} : { name }) })
  }
  return out
}
