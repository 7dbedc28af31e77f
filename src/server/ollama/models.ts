import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import { type App, checkModel, document, jsonContent, type ServerContext } from "../context.ts"
import { readBody } from "../request.ts"
import { errorSchema, showRequestSchema } from "./schema.ts"

/** Ollama's API as of this version is what the routes follow; clients compare it for features. */
const API_VERSION = "0.6.4"

const anyObject = z.record(z.string(), z.unknown())

/** What the one loaded model looks like to Ollama's clients. */
export function addOllamaModels(app: App, context: ServerContext): void {
  document(app, {
    method: "get",
    path: "/api/tags",
    summary: "The models there are",
    tags: ["Ollama"],
    responses: { 200: jsonContent(z.object({ models: z.array(anyObject) }), "A list of one") },
  })
  app.get("/api/tags", (c) =>
    c.json({ models: [{ ...entry(context), modified_at: modifiedAt(context) }] }),
  )

  document(app, {
    method: "get",
    path: "/api/ps",
    summary: "The models that are loaded",
    tags: ["Ollama"],
    responses: { 200: jsonContent(z.object({ models: z.array(anyObject) }), "A list of one") },
  })
  app.get("/api/ps", (c) => {
    const { info } = context.client
    const sizeVram = info.device === "cpu" ? 0 : info.weightBytes
    const loadedModel = {
      ...entry(context),
      size: info.weightBytes + info.kvCacheBytes,
      size_vram: sizeVram,
      context_length: info.contextLength,
      // The model stays while the server runs.
      expires_at: "9999-12-31T23:59:59Z",
    }
    return c.json({ models: [loadedModel] })
  })

  document(app, {
    method: "post",
    path: "/api/show",
    summary: "One model's details",
    tags: ["Ollama"],
    request: { body: jsonContent(showRequestSchema, "Which model") },
    responses: {
      200: jsonContent(anyObject, "Template, details, metadata and capabilities"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/api/show", async (c) => {
    const body = await readBody(c, showRequestSchema)
    const name = body.model ?? body.name
    if (!name) {
      throw new RequestError(400, "model: this field is required", {
        code: "invalid_value",
        param: "model",
      })
    }
    checkModel(context, name)
    return c.json(shown(context))
  })

  document(app, {
    method: "get",
    path: "/api/version",
    summary: "The version of Ollama's API that is spoken",
    tags: ["Ollama"],
    responses: { 200: jsonContent(z.object({ version: z.string() }), "The version") },
  })
  app.get("/api/version", (c) => c.json({ version: API_VERSION }))

  app.get("/", (c) => c.text("Ollama is running"))
}

function entry(context: ServerContext): Record<string, unknown> {
  const { model } = context
  return {
    name: model.name,
    model: model.name,
    size: model.sizeBytes,
    digest: model.digest,
    details: details(context),
  }
}

function details(context: ServerContext): Record<string, unknown> {
  const { format, family, parameterSize, quantization } = context.model.details
  return {
    parent_model: "",
    format,
    family,
    families: [family],
    parameter_size: parameterSize,
    quantization_level: quantization,
  }
}

function modifiedAt(context: ServerContext): string {
  return new Date(context.model.created * 1000).toISOString()
}

function shown(context: ServerContext): Record<string, unknown> {
  const { model, client, config } = context
  const template = model.chatTemplate ?? ""
  const { temperature, topK, topP, minP, repetitionPenalty } = config.defaults
  return {
    modelfile: `FROM ${model.name}\n`,
    parameters: [
      `temperature ${temperature}`,
      `top_k ${topK}`,
      `top_p ${topP}`,
      `min_p ${minP}`,
      `repeat_penalty ${repetitionPenalty}`,
    ].join("\n"),
    template,
    details: details(context),
    model_info: {
      "general.architecture": client.info.architecture,
      "general.parameter_count": client.info.parameters,
      [`${client.info.architecture}.context_length`]: client.info.trainedContextLength,
      ...model.info,
    },
    // Tools are rendered where the template knows them.
    capabilities: ["completion", ...(/\btools\b/.test(template) ? ["tools"] : [])],
    modified_at: modifiedAt(context),
  }
}
