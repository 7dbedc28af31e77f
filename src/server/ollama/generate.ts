import { RequestError } from "../../errors.ts"
import { type ChatPrompt, chatPrompt } from "../chat-prompt.ts"
import { type App, checkModel, document, jsonContent, type ServerContext } from "../context.ts"
import { readBody } from "../request.ts"
import type { TemplateMessage } from "../types.ts"
import { loaded, respond, type TextField } from "./answer.ts"
import { errorSchema, generateRequestSchema, generateResponseSchema } from "./schema.ts"

const field: TextField = (text) => ({ response: text })

export function addGenerate(app: App, context: ServerContext): void {
  document(app, {
    method: "post",
    path: "/api/generate",
    summary: "Answer one prompt",
    tags: ["Ollama"],
    request: { body: jsonContent(generateRequestSchema, "Prompt and options") },
    responses: {
      200: jsonContent(generateResponseSchema, "Lines of JSON, or with stream: false one object"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/api/generate", async (c) => {
    const body = await readBody(c, generateRequestSchema)
    checkModel(context, body.model)
    const text = body.prompt ?? ""
    if (text === "") return loaded(body, field)
    if (body.raw === true && body.system) {
      throw new RequestError(400, "system: a raw prompt has no template to put it into", {
        code: "invalid_value",
        param: "system",
      })
    }
    const prompt =
      body.raw === true
        ? rawPrompt(context, text)
        : templated(context, text, body.system ?? "", body.think === false)
    return respond(context, c, body, { ...prompt, param: "prompt" }, field)
  })
}

function rawPrompt(context: ServerContext, text: string): ChatPrompt {
  return {
    ids: context.tokenizer.encode(text, { addSpecial: true, parseSpecial: true }),
    prefix: "",
  }
}

function templated(
  context: ServerContext,
  text: string,
  system: string,
  noThinking: boolean,
): ChatPrompt {
  const messages: TemplateMessage[] = [{ role: "user", content: text }]
  if (system !== "") messages.unshift({ role: "system", content: system })
  const options = noThinking ? { vars: { enable_thinking: false } } : {}
  return chatPrompt(context.tokenizer, messages, options, context.config)
}
