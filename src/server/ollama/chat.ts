import { type ChatMessage, chatPrompt } from "../chat.ts"
import { type App, document, jsonContent, type ServerRoot, useModel } from "../context.ts"
import { endsUnfinished } from "../continue.ts"
import { readBody } from "../request.ts"
import type { TemplateMessage } from "../types.ts"
import { type AnswerField, contentOf, loadOrUnload, respond, thinking } from "./answer.ts"
import {
  chatRequestSchema,
  chatResponseSchema,
  errorSchema,
  type OllamaMessage,
  type OllamaOptions,
} from "./schema.ts"

const field: AnswerField = ({ content, reasoning, calls }) => ({
  message: {
    role: "assistant",
    content,
    ...(reasoning === "" ? {} : { thinking: reasoning }),
    ...(calls.length === 0 ? {} : { tool_calls: calls.map(toolCall) }),
  },
})

function toolCall(call: ChatMessage["calls"][number], index: number): unknown {
  const { name, arguments: text } = call
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch {
    // what the model wrote is no JSON: the client sees it as it is
    parsed = text
  }
  return { function: { index, name, arguments: parsed } }
}

export function addChat(app: App, root: ServerRoot): void {
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
    const messages = body.messages ?? []
    if (messages.length === 0) return loadOrUnload(root, c, body, field)
    const context = await useModel(root, c, body.model, { keepAlive: body.keep_alive })
    const said = messages.map(templateMessage)
    if (body.system && said[0]?.role !== "system")
      said.unshift({ role: "system", content: body.system })
    const prompt = chatPrompt(context, said, {
      tools: body.tools,
      content: contentOf(body.format),
      continues: endsUnfinished(said),
      ...thinking(body.think, context.config),
    })
    const options = { num_predict: body.num_predict, ...withoutNulls(body.options) }
    return respond(context, c, { ...body, options }, prompt, "messages", field)
  })
}

function withoutNulls(options: OllamaOptions | null | undefined): OllamaOptions {
  const entries = Object.entries(options ?? {}).filter(([, value]) => value !== null)
  return Object.fromEntries(entries) as OllamaOptions
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
