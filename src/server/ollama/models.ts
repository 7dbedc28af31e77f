import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import { type App, document, jsonContent, type ServerRoot } from "../context.ts"
import { capabilitiesOf } from "../models/capabilities.ts"
import type { KnownModel, ModelSettings } from "../models/library.ts"
import { withParameters } from "../models/parameters.ts"
import { readBody } from "../request.ts"
import type { ServerConfig } from "../types.ts"
import { errorSchema, showRequestSchema } from "./schema.ts"

/** Ollama's API as of this version is what the routes follow; clients compare it for features. */
const API_VERSION = "0.6.4"

/** A year that no clock here reaches. */
const NEVER = "9999-12-31T23:59:59Z"

const anyObject = z.record(z.string(), z.unknown())

/** What the models look like to Ollama's clients. */
export function addOllamaModels(app: App, root: ServerRoot): void {
  const { models } = root
  document(app, {
    method: "get",
    path: "/api/tags",
    summary: "The models there are",
    tags: ["Ollama"],
    responses: { 200: jsonContent(z.object({ models: z.array(anyObject) }), "By name") },
  })
  app.get("/api/tags", async (c) => {
    await models.library.prepare?.()
    return c.json({
      models: models.library
        .list()
        .map((model) => ({ ...entry(model), modified_at: modifiedAt(model) })),
    })
  })

  document(app, {
    method: "get",
    path: "/api/ps",
    summary: "The models that are loaded",
    tags: ["Ollama"],
    responses: { 200: jsonContent(z.object({ models: z.array(anyObject) }), "Used last first") },
  })
  app.get("/api/ps", (c) =>
    c.json({
      models: models.loaded().map(({ model, loaded, expiresMs }) => {
        const { info } = loaded.client
        return {
          ...entry(model),
          size: info.weightBytes + info.kvCacheBytes,
          size_vram: info.device === "cpu" ? 0 : info.weightBytes,
          context_length: info.contextLength,
          expires_at: Number.isFinite(expiresMs) ? new Date(expiresMs).toISOString() : NEVER,
        }
      }),
    }),
  )

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
    return c.json(shown(root, models.find(modelField(body))))
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

/** Ollama's older clients say `name`. RequestError 400 where there is neither. */
export function modelField(body: {
  readonly model?: string | null | undefined
  readonly name?: string | null | undefined
}): string {
  const name = body.model || body.name
  if (name) return name
  throw new RequestError(400, "model: this field is required", {
    code: "invalid_value",
    param: "model",
  })
}

/**
 * As Ollama lists it. Its clients put ":latest" behind a name without a tag and look for that in the lists; requests may
 * leave it out.
 */
function tagged(name: string): string {
  return name.slice(name.lastIndexOf("/") + 1).includes(":") ? name : `${name}:latest`
}

function entry(model: KnownModel): Record<string, unknown> {
  const name = tagged(model.name)
  return {
    name,
    model: name,
    size: model.sizeBytes,
    digest: model.digest,
    details: details(model),
  }
}

function details({ details: known, settings }: KnownModel): Record<string, unknown> {
  return {
    parent_model: settings?.parent ?? "",
    format: known.format,
    family: known.family,
    families: [known.family],
    parameter_size: known.parameterSize,
    quantization_level: known.quantization,
  }
}

function modifiedAt(model: KnownModel): string {
  return new Date(model.created * 1000).toISOString()
}

function shown({ models, config }: ServerRoot, found: KnownModel): Record<string, unknown> {
  const model = models.library.describe(found)
  const { settings } = model
  const loaded = models.loaded().find((one) => one.model.key === model.key)?.loaded
  const info = loaded?.client.info
  const canInfill = loaded?.tokenizer.fim !== undefined
  const template = settings?.template ?? model.chatTemplate ?? ""
  const architecture = info?.architecture ?? model.details.family
  const parameters = modelParameters(withParameters(config, settings?.parameters ?? {}), settings)
  if (info !== undefined) parameters.push(`num_ctx ${info.contextLength}`)
  return {
    modelfile: modelfile(model, template),
    parameters: parameters.join("\n"),
    // Ollama's own templates name .Suffix where a model can fill in: editors look for it
    template: canInfill ? `${template}{#- .Suffix -#}` : template,
    ...(settings?.system === undefined ? {} : { system: settings.system }),
    ...(settings?.license === undefined ? {} : { license: settings.license.join("\n") }),
    ...(settings?.messages === undefined ? {} : { messages: settings.messages }),
    details: details(model),
    model_info: {
      "general.architecture": architecture,
      ...(info === undefined
        ? {}
        : {
            "general.parameter_count": info.parameters,
            [`${architecture}.context_length`]: info.trainedContextLength,
          }),
      ...model.info,
    },
    capabilities: [...capabilitiesOf(model, info), ...(canInfill ? ["insert"] : [])],
    modified_at: modifiedAt(model),
  }
}

/** A created model's own, else what the server takes where a request says nothing. */
function modelParameters(config: ServerConfig, settings: ModelSettings | undefined): string[] {
  const { temperature, topK, topP, minP, repetitionPenalty } = config.defaults
  const all: Record<string, unknown> = {
    temperature,
    top_k: topK,
    top_p: topP,
    min_p: minP,
    repeat_penalty: repetitionPenalty,
    ...settings?.parameters,
  }
  return Object.entries(all).flatMap(([key, value]) =>
    (Array.isArray(value) ? value : [value]).map(
      (one) => `${key} ${typeof one === "string" ? JSON.stringify(one) : String(one)}`,
    ),
  )
}

/** What would make the same model again. */
function modelfile({ name, settings }: KnownModel, template: string): string {
  const quoted = (text: string): string => `"""${text}"""`
  const own = settings?.parameters ?? {}
  const lines = Object.entries(own).flatMap(([key, value]) =>
    (Array.isArray(value) ? value : [value]).map(
      (one) => `PARAMETER ${key} ${typeof one === "string" ? JSON.stringify(one) : String(one)}`,
    ),
  )
  return [
    `FROM ${settings?.parent ?? name}`,
    ...(template === "" ? [] : [`TEMPLATE ${quoted(template)}`]),
    ...(settings?.system === undefined ? [] : [`SYSTEM ${quoted(settings.system)}`]),
    ...lines,
    ...(settings?.messages ?? []).map(({ role, content }) => `MESSAGE ${role} ${content ?? ""}`),
    ...(settings?.license ?? []).map((text) => `LICENSE ${quoted(text)}`),
    "",
  ].join("\n")
}
