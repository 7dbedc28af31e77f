import { z } from "@hono/zod-openapi"

import { type App, document, jsonContent, type ServerRoot } from "../context.ts"
import { capabilitiesOf } from "../models/capabilities.ts"
import type { KnownModel } from "../models/library.ts"
import { errorSchema, modelListSchema, modelSchema } from "./schema.ts"

export function addModels(app: App, root: ServerRoot): void {
  document(app, {
    method: "get",
    path: "/v1/models",
    summary: "The models that can be served",
    tags: ["OpenAI"],
    responses: {
      200: jsonContent(
        modelListSchema,
        "Loaded ones say so; others are loaded when a request names them",
      ),
    },
  })
  app.get("/v1/models", async (c) => {
    const { models } = root
    await models.library.prepare?.()
    // clients that are told of no model take the first
    const rank = (model: KnownModel): number => (models.isDefault(model) ? 0 : 1)
    const listed = models.library.list().toSorted((a, b) => rank(a) - rank(b))
    return c.json({ object: "list", data: listed.map((model) => modelObject(root, model)) })
  })

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
  app.get("/v1/models/:id{.+}", async (c) => {
    const model = root.models.find(c.req.param("id"))
    await root.models.library.prepare?.([model])
    return c.json(modelObject(root, model))
  })
}

function modelObject({ models }: ServerRoot, model: KnownModel): z.infer<typeof modelSchema> {
  const { details } = model
  const info = models.loaded().find((entry) => entry.model.key === model.key)?.loaded.client.info
  return {
    id: model.name,
    object: "model",
    created: model.created,
    owned_by: "ktransformers",
    ...(info === undefined ? {} : { max_model_len: info.contextLength }),
    status: { value: statusOf(models.state(model).state) },
    meta: {
      ...(info === undefined
        ? {}
        : {
            n_vocab: info.vocabSize,
            n_ctx: info.contextLength,
            n_ctx_train: info.trainedContextLength,
            n_params: info.parameters,
          }),
      capabilities: capabilitiesOf(model, info),
      size: model.sizeBytes,
      architecture: info?.architecture ?? details.family,
      quantization: details.quantization,
    },
  }
}

/** The words that llama.cpp's server has for them. */
function statusOf(
  state: ReturnType<ServerRoot["models"]["state"]>["state"],
): "loaded" | "loading" | "unloaded" {
  if (state === "ready") return "loaded"
  return state === "loading" ? "loading" : "unloaded"
}
