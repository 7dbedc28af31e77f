import { z } from "@hono/zod-openapi"

import { type App, document, jsonContent, type ServerRoot } from "../context.ts"
import { capabilitiesOf } from "./capabilities.ts"
import type { KnownModel } from "./library.ts"

const entrySchema = z
  .object({
    name: z.string(),
    size: z.int().openapi({ description: "Bytes of its files" }),
    state: z.enum(["unloaded", "loading", "loaded", "unloading"]),
    loading: z
      .object({ done: z.int(), total: z.int() })
      .nullable()
      .openapi({ description: "Bytes of weights, while it is being loaded" }),
    default: z.boolean().openapi({ description: "What requests mean that name no model" }),
    deletable: z.boolean().openapi({ description: "It was created or pulled here" }),
    parent: z.string().nullable().openapi({ description: "What a created model is made of" }),
    problem: z.string().nullable().openapi({ description: "Why it cannot be loaded" }),
    family: z.string(),
    parameters: z.string(),
    quantization: z.string(),
    capabilities: z.array(z.string()),
    context: z.int().nullable().openapi({ description: "Tokens, of a loaded model" }),
    memory: z.int().nullable().openapi({ description: "Bytes of weights and caches, if loaded" }),
    active: z.int().openapi({ description: "Sequences that run or wait" }),
    expires: z
      .string()
      .nullable()
      .openapi({ description: "When it will be unloaded; null for never", format: "date-time" }),
  })
  .openapi("ModelEntry")

const overviewSchema = z
  .object({
    models: z.array(entrySchema),
    limits: z.object({
      models: z.int().openapi({ description: "Loaded at once" }),
      memory: z
        .int()
        .nullable()
        .openapi({ description: "Bytes that all of them may take; null: what is free" }),
      used: z.int(),
    }),
    can_change: z.boolean().openapi({ description: "Whether models are pulled, made and deleted" }),
  })
  .openapi("ModelOverview")

/**
 * What the page's view of the models shows. It loads with an empty /api/generate, unloads with keep_alive 0, and pulls
 * and deletes as Ollama's clients do.
 */
export function addModelOverview(app: App, root: ServerRoot): void {
  document(app, {
    method: "get",
    path: "/api/models",
    summary: "The models, what they do and what they take",
    tags: ["Operations"],
    responses: { 200: jsonContent(overviewSchema, "By name") },
  })
  app.get("/api/models", async (c) => {
    const { models } = root
    const { library, limits } = models
    await library.prepare?.()
    return c.json({
      models: library.list().map((model) => entry(root, model)),
      limits: {
        models: limits.maxModels,
        memory: Number.isFinite(limits.memoryBytes) ? limits.memoryBytes : null,
        used: limits.usedBytes,
      },
      can_change: library.store !== undefined,
    } satisfies z.infer<typeof overviewSchema>)
  })
}

function entry({ models }: ServerRoot, model: KnownModel): z.infer<typeof entrySchema> {
  const { details, settings, problem } = model
  const { state, done, total } = models.state(model)
  const loaded = models.loaded().find((one) => one.model.key === model.key)
  const info = loaded?.loaded.client.info
  const names = {
    none: "unloaded",
    loading: "loading",
    ready: "loaded",
    leaving: "unloading",
  } as const
  const expiresMs = loaded?.expiresMs ?? Number.POSITIVE_INFINITY
  return {
    name: model.name,
    size: model.sizeBytes,
    state: names[state],
    loading: state === "loading" ? { done, total } : null,
    default: models.isDefault(model),
    deletable: models.library.store?.isOurs(model) === true,
    parent: settings?.parent || null,
    problem: problem ?? null,
    family: details.family,
    parameters: details.parameterSize,
    quantization: details.quantization,
    capabilities: problem === undefined ? capabilitiesOf(models.library.describe(model), info) : [],
    context: info?.contextLength ?? null,
    memory:
      info === undefined
        ? null
        : info.weightBytes + info.kvCacheBytes + info.cacheRamBytes + info.draftBytes,
    active: loaded?.active ?? 0,
    expires: Number.isFinite(expiresMs) ? new Date(expiresMs).toISOString() : null,
  }
}
