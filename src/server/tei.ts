import { z } from "@hono/zod-openapi"

import { version } from "../../package.json" with { type: "json" }
import { type App, document, jsonContent, type ServerRoot, useModel } from "./context.ts"
import { checkTexts, defaultPooling, MAX_TEXTS, poolTexts } from "./embed.ts"
import { sequenceLimit } from "./generate.ts"
import { errorSchema } from "./openai/schema.ts"
import { readBody } from "./request.ts"
import { accepted } from "./schema.ts"

const embedSchema = z
  .looseObject({
    model: z.string().nullish().openapi({ description: "Extension; which of several" }),
    inputs: z.union([z.string(), z.array(z.string()).min(1).max(MAX_TEXTS)]),
    normalize: z.boolean().nullish().openapi({ description: "Vectors of length 1; the default" }),
    truncate: z.boolean().nullish().openapi({ description: "Texts are cut to the context" }),
    truncation_direction: accepted("texts are cut at their ends"),
  })
  .openapi("TeiEmbedRequest")

const infoSchema = z
  .looseObject({
    model_id: z.string(),
    max_input_length: z.int(),
    max_client_batch_size: z.int(),
    version: z.string(),
  })
  .openapi("TeiInfo")

/** What clients of text-embeddings-inference ask besides /rerank. */
export function addTei(app: App, root: ServerRoot): void {
  const wrong = { "4XX": jsonContent(errorSchema, "Why the request is refused") }
  document(app, {
    method: "get",
    path: "/info",
    summary: "The model and its limits, as text-embeddings-inference tells them",
    tags: ["Embeddings"],
    responses: { 200: jsonContent(infoSchema, "Of the model that is asked by default"), ...wrong },
  })
  app.get("/info", async (c) => {
    const context = await useModel(root, c, undefined, { anyKind: true })
    const { model, client } = context
    const pooling = defaultPooling(context)
    return c.json({
      model_id: model.name,
      model_dtype: model.details.quantization,
      model_type: { embedding: { pooling } },
      max_concurrent_requests: root.config.maxQueue,
      max_input_length: sequenceLimit(client),
      max_client_batch_size: MAX_TEXTS,
      auto_truncate: false,
      version,
    })
  })

  document(app, {
    method: "post",
    path: "/embed",
    summary: "Vectors of texts, as text-embeddings-inference makes them",
    tags: ["Embeddings"],
    request: { body: jsonContent(embedSchema, "Texts") },
    responses: {
      200: jsonContent(z.array(z.array(z.number())), "A vector each, in their order"),
      ...wrong,
    },
  })
  app.post("/embed", async (c) => {
    const body = await readBody(c, embedSchema)
    const context = await useModel(root, c, body.model, { anyKind: true })
    const { tokenizer, client } = context
    const texts = typeof body.inputs === "string" ? [body.inputs] : body.inputs
    const limit = sequenceLimit(client)
    const ids = texts.map((text) => {
      const all = tokenizer.encode(text, { addSpecial: true })
      return body.truncate === true ? tokenizer.truncate(all, limit) : all
    })
    checkTexts(context, ids, "inputs")
    const params = { pooling: defaultPooling(context), normalize: body.normalize !== false }
    const works = ids.map((one) => ({ ids: one, params }))
    const results = await poolTexts(context, c, works, "inputs")
    return c.json(results.map(({ values }) => [...values]))
  })
}
