import { chatPrompt } from "../chat-prompt.ts"
import { type App, checkModel, document, jsonContent, type ServerContext } from "../context.ts"
import { readBody } from "../request.ts"
import type { RenderOptions, TemplateMessage } from "../types.ts"
import { loaded, respond, type TextField } from "./answer.ts"
import { chatRequestSchema, chatResponseSchema, errorSchema, type OllamaMessage } from "./schema.ts"

const field: TextField = (text) => ({ message: { role: "assistant", content: text } })

export function addChat(app: App, context: ServerContext): void {
  document(app, {
    method: "post",
    path: "/api/chat",
    summary: "Answer a conversation",
    tags: ["Ollama"],
    request: { body: jsonContent(chatRequestSchema, "Messages and options") },
    responses: {
      200: jsonContent(chatResponseSchema, "Lines of JSON, or with stream: false one object"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/api/chat", async (c) => {
    const body = await readBody(c, chatRequestSchema)
    checkModel(context, body.model)
    const messages = body.messages ?? []
    if (messages.length === 0) return loaded(body, field)
    const options: RenderOptions = {
      ...(body.tools && body.tools.length > 0 ? { tools: body.tools } : {}),
      ...(body.think === false ? { vars: { enable_thinking: false } } : {}),
    }
    const prompt = chatPrompt(
      context.tokenizer,
      messages.map(templateMessage),
      options,
      context.config,
    )
    return respond(context, c, body, { ...prompt, param: "messages" }, field)
  })
}

function templateMessage(message: OllamaMessage): TemplateMessage {
  const name = message.tool_name
  return {
    role: message.role,
    content: message.content ?? "",
    ...(name ? { name } : {}),
    ...(message.tool_call_id ? { tool_call_id: message.tool_call_id } : {}),
    ...(message.thinking ? { reasoning_content: message.thinking } : {}),
    ...(message.tool_calls
      ? {
          tool_calls: message.tool_calls.map((call) => ({
            type: "function" as const,
            function: { name: call.function.name, arguments: call.function.arguments },
          })),
        }
      : {}),
  }
}
