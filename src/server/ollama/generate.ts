import { RequestError } from "../../errors.ts"
import { type ChatPrompt, chatPrompt, plainPrompt } from "../chat.ts"
import {
  type App,
  document,
  jsonContent,
  type ServerContext,
  type ServerRoot,
  useModel,
} from "../context.ts"
import { infillPrompt } from "../infill.ts"
import { readBody } from "../request.ts"
import type { TemplateMessage } from "../types.ts"
import { type AnswerField, contentOf, loadOrUnload, respond, thinking } from "./answer.ts"
import {
  errorSchema,
  type GenerateRequest,
  generateRequestSchema,
  generateResponseSchema,
  isPlainTemplate,
} from "./schema.ts"

const field: AnswerField = ({ content, reasoning }) => ({
  response: content,
  ...(reasoning === "" ? {} : { thinking: reasoning }),
})

export function addGenerate(app: App, root: ServerRoot): void {
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
    const text = body.prompt ?? ""
    if (text === "") return loadOrUnload(root, c, body, field)
    if (isRaw(body) && body.system) {
      throw new RequestError(400, "system: a raw prompt has no template to put it into", {
        code: "invalid_value",
        param: "system",
      })
    }
    const context = await useModel(root, c, body.model, { keepAlive: body.keep_alive })
    const prompt = promptOf(context, text, body)
    return respond(context, c, body, prompt, "prompt", field)
  })
}

function promptOf(context: ServerContext, text: string, body: GenerateRequest): ChatPrompt {
  if (body.suffix) {
    const maxTokens = body.options?.num_predict ?? undefined
    const ids = infillPrompt(context, {
      prefix: text,
      suffix: body.suffix,
      maxTokens: maxTokens === undefined || maxTokens < 1 ? undefined : maxTokens,
      param: "suffix",
    })
    return plainPrompt(ids, contentOf(body.format))
  }
  return isRaw(body) ? rawPrompt(context, text, body) : templated(context, text, body)
}

function isRaw(body: GenerateRequest): boolean {
  return body.raw === true || isPlainTemplate(body.template)
}

function rawPrompt(context: ServerContext, text: string, body: GenerateRequest): ChatPrompt {
  const ids = context.tokenizer.encode(text, { addSpecial: true, parseSpecial: true })
  return plainPrompt(ids, contentOf(body.format))
}

function templated(context: ServerContext, text: string, body: GenerateRequest): ChatPrompt {
  const messages: TemplateMessage[] = [{ role: "user", content: text }]
  if (body.system) messages.unshift({ role: "system", content: body.system })
  return chatPrompt(context, messages, {
    content: contentOf(body.format),
    ...thinking(body.think, context.config),
  })
}
