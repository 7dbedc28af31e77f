import type { z } from "@hono/zod-openapi"

import { chatPrompt } from "../chat.ts"
import { type App, document, jsonContent, type ServerRoot, useModel } from "../context.ts"
import { sequenceLimit } from "../generate.ts"
import { templateMessage } from "../openai/messages.ts"
import { errorSchema } from "../openai/schema.ts"
import { readBody } from "../request.ts"
import { samplingFields } from "../sampling.ts"
import { checkIds, textOfIds } from "../token-ids.ts"
import type { ServerTokenizer } from "../types.ts"
import {
  detokenizeRequestSchema,
  detokenizeResponseSchema,
  propsSchema,
  templateRequestSchema,
  templateResponseSchema,
  tokenizeRequestSchema,
  tokenizeResponseSchema,
} from "./schema.ts"

/** /tokenize, /detokenize, /apply-template, /props. */
export function addTokens(app: App, root: ServerRoot): void {
  const describe = (path: string, summary: string, request: z.ZodType, response: z.ZodType): void =>
    document(app, {
      method: "post",
      path,
      summary,
      tags: ["llama.cpp"],
      request: { body: jsonContent(request, summary) },
      responses: {
        200: jsonContent(response, "Done"),
        "4XX": jsonContent(errorSchema, "Why the request is refused"),
      },
    })

  describe("/tokenize", "Text to tokens", tokenizeRequestSchema, tokenizeResponseSchema)
  app.post("/tokenize", async (c) => {
    const body = await readBody(c, tokenizeRequestSchema)
    const { tokenizer } = await useModel(root, c, body.model, { anyKind: true })
    const ids = idsOf(tokenizer, body.content, "content", {
      addSpecial: body.add_special === true,
      parseSpecial: body.parse_special !== false,
    })
    if (body.with_pieces !== true) return c.json({ tokens: [...ids] })
    return c.json({ tokens: Array.from(ids, (id) => ({ id, piece: piece(tokenizer, id) })) })
  })

  describe("/detokenize", "Tokens to text", detokenizeRequestSchema, detokenizeResponseSchema)
  app.post("/detokenize", async (c) => {
    const { tokens, model } = await readBody(c, detokenizeRequestSchema)
    const { tokenizer } = await useModel(root, c, model, { anyKind: true })
    checkIds(tokenizer, tokens, "tokens")
    return c.json({ content: textOfIds(tokenizer, tokens) })
  })

  describe(
    "/apply-template",
    "Messages to the prompt",
    templateRequestSchema,
    templateResponseSchema,
  )
  app.post("/apply-template", async (c) => {
    const body = await readBody(c, templateRequestSchema)
    const context = await useModel(root, c, body.model)
    const { text } = chatPrompt(context, body.messages.map(templateMessage), {
      tools: body.tools,
      reasoning: context.config.reasoningFormat,
      ...(body.chat_template_kwargs ? { vars: body.chat_template_kwargs } : {}),
    })
    return c.json({ prompt: text })
  })

  document(app, {
    method: "get",
    path: "/props",
    summary: "The model's and the server's settings",
    tags: ["llama.cpp"],
    responses: { 200: jsonContent(propsSchema, "They are") },
  })
  app.get("/props", async (c) => {
    const context = await useModel(root, c, c.req.query("model"), { anyKind: true })
    const { defaults } = context.config
    const { info } = context.client
    return c.json({
      default_generation_settings: {
        n_ctx: sequenceLimit(context.client),
        params: {
          ...samplingFields(defaults),
          n_predict: defaults.maxTokens ?? -1,
        },
      },
      total_slots: info.maxBatchSize,
      model_alias: context.model.name,
      chat_template: context.model.chatTemplate ?? "",
      modalities: { vision: false, audio: false },
      is_sleeping: false,
    })
  })
}

/** Parts one after the other; the start token only before the first. */
export function idsOf(
  tokenizer: ServerTokenizer,
  content: string | readonly (string | number)[],
  param: string,
  { addSpecial, parseSpecial }: { addSpecial: boolean; parseSpecial: boolean },
): Int32Array {
  if (typeof content === "string") return tokenizer.encode(content, { addSpecial, parseSpecial })
  const ids: number[] = []
  for (const [i, part] of content.entries()) {
    if (typeof part === "number") ids.push(part)
    else ids.push(...tokenizer.encode(part, { addSpecial: addSpecial && i === 0, parseSpecial }))
  }
  checkIds(tokenizer, ids, param)
  return Int32Array.from(ids)
}

/** Bytes where they are no text of their own. */
function piece(tokenizer: ServerTokenizer, id: number): string | number[] {
  const bytes = tokenizer.tokenBytes(id)
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return [...bytes]
  }
}
