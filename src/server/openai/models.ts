import { z } from "@hono/zod-openapi"

import { type App, checkModel, document, jsonContent, type ServerContext } from "../context.ts"
import { errorSchema, modelListSchema, modelSchema } from "./schema.ts"

export function addModels(app: App, context: ServerContext): void {
  document(app, {
    method: "get",
    path: "/v1/models",
    summary: "The model that is served",
    tags: ["OpenAI"],
    responses: { 200: jsonContent(modelListSchema, "A list of one") },
  })
  app.get("/v1/models", (c) => c.json({ object: "list", data: [modelObject(context)] }))

  document(app, {
    method: "get",
    path: "/v1/models/{id}",
    summary: "One model",
    tags: ["OpenAI"],
    request: { params: z.object({ id: z.string() }) },
    responses: {
      200: jsonContent(modelSchema, "The model"),
      404: jsonContent(errorSchema, "No such model"),
    },
  })
  // Names may hold slashes: org/name.
  app.get("/v1/models/:id{.+}", (c) => {
    checkModel(context, c.req.param("id"))
    return c.json(modelObject(context))
  })
}

function modelObject(context: ServerContext): z.infer<typeof modelSchema> {
  const { model, client } = context
  return {
    id: model.name,
    object: "model",
    created: model.created,
    owned_by: "ktransformers",
    meta: {
      n_vocab: client.info.vocabSize,
      n_ctx: client.info.contextLength,
      n_ctx_train: client.info.trainedContextLength,
      n_params: client.info.parameters,
      size: model.sizeBytes,
      architecture: client.info.architecture,
      quantization: model.details.quantization,
    },
  }
}
