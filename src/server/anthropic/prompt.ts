import { type ChatOptions, type ChatPrompt, chatPrompt, type Tool } from "../chat.ts"
import { type RequestContext, type ServerContext, type ServerRoot, useModel } from "../context.ts"
import { endsUnfinished } from "../continue.ts"
import { jsonFormat } from "../tools/answer-grammar.ts"
import type { TemplateMessage } from "../types.ts"
import type { AnthropicMessage, CountRequest, MessagesRequest } from "./schema.ts"

/** Clients that know only Anthropic's models ask for one of them; this server's stands in. */
export function useAnthropicModel(
  root: ServerRoot,
  c: RequestContext,
  name: string,
): Promise<ServerContext> {
  return useModel(root, c, name, { orDefault: name.startsWith("claude") })
}

export function promptOf(context: ServerContext, body: CountRequest | MessagesRequest): ChatPrompt {
  const system = textOf(body.system ?? "")
  const messages = body.messages.flatMap(templateMessages)
  if (system !== "") messages.unshift({ role: "system", content: system })
  return chatPrompt(context, messages, { ...optionsOf(body), continues: endsUnfinished(messages) })
}

function optionsOf(body: CountRequest | MessagesRequest): ChatOptions {
  const { tool_choice: choice, thinking } = body
  const tools: Tool[] = (body.tools ?? []).map(({ name, description, input_schema, strict }) => ({
    type: "function",
    function: {
      name,
      ...(description ? { description } : {}),
      parameters: input_schema ?? { type: "object", properties: {} },
      ...(strict === true ? { strict } : {}),
    },
  }))
  const format = "output_format" in body ? (body as MessagesRequest).output_format : undefined
  return {
    tools: choice?.type === "none" ? [] : tools,
    ...(choice?.type === "any" ? { toolChoice: "required" } : {}),
    ...(choice?.type === "tool" ? { toolChoice: { name: choice.name } } : {}),
    strictTools: body.tools?.some(({ strict }) => strict === true) === true,
    ...(thinking ? { vars: { enable_thinking: thinking.type !== "disabled" } } : {}),
    ...(format ? { content: jsonFormat(format.schema) } : {}),
    reasoning: "auto",
    thinkingBudget:
      thinking?.type === "enabled" ? (thinking.budget_tokens ?? undefined) : undefined,
  }
}

/** Results of tools, which a user's message holds here, are messages of their own in templates. */
function templateMessages({ role, content }: AnthropicMessage): TemplateMessage[] {
  if (typeof content === "string") return [{ role, content }]
  const out: TemplateMessage[] = []
  const texts: string[] = []
  const calls: NonNullable<TemplateMessage["tool_calls"]>[number][] = []
  let reasoning = ""
  for (const block of content) {
    if (isBlock(block, "text")) texts.push(block.text)
    else if (isBlock(block, "thinking")) reasoning += block.thinking
    else if (isBlock(block, "tool_use")) {
      const { id, name, input } = block
      calls.push({ id, type: "function", function: { name, arguments: input } })
    } else if (isBlock(block, "tool_result")) {
      const text = textOf(block.content ?? "")
      const said = block.is_error === true ? `Error: ${text}` : text
      out.push({ role: "tool", content: said, tool_call_id: block.tool_use_id })
    }
  }
  if (texts.length > 0 || calls.length > 0 || out.length === 0) {
    out.push({
      role,
      content: texts.join("\n"),
      ...(calls.length > 0 ? { tool_calls: calls } : {}),
      ...(reasoning === "" ? {} : { reasoning_content: reasoning }),
    })
  }
  return out
}

type Block = Exclude<AnthropicMessage["content"], string>[number]

function isBlock<T extends "text" | "thinking" | "tool_use" | "tool_result">(
  block: Block,
  type: T,
): block is Extract<Block, { type: T }> {
  return block.type === type
}

function textOf(content: string | readonly { readonly type: string; text?: unknown }[]): string {
  if (typeof content === "string") return content
  return content.map(({ text }) => (typeof text === "string" ? text : "")).join("\n")
}
