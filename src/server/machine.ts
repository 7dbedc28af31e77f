import { z } from "@hono/zod-openapi"

import { RequestError } from "../errors.ts"
import { type App, document, jsonContent, type ServerRoot } from "./context.ts"
import { errorSchema } from "./ollama/schema.ts"
import { engineStats } from "./operations.ts"
import { readBody } from "./request.ts"
import { Rooflines } from "./roofline.ts"

const moduleSchema = z.object({
  path: z.string(),
  operator: z
    .string()
    .openapi({ description: "Its class, an operator's where a rule replaced it" }),
  device: z.string(),
  rule: z.string().openapi({ description: "Which rule placed or replaced it; empty for none" }),
  packed: z.boolean().openapi({ description: "In the kernels' own layout" }),
  types: z.record(z.string(), z.int()).openapi({ description: "Bytes by type" }),
})

const phaseSchema = z
  .object({
    speed: z.number().openapi({ description: "Tokens/s while steps of this phase were computed" }),
    limit: z.number().openapi({ description: "Tokens/s that the machine allows for these steps" }),
    share: z.number().openapi({ description: "Of the limit; 1 is all of it" }),
  })
  .nullable()

const rooflineSchema = z
  .object({
    read_bytes: z.number().openapi({ description: "Bytes/s that are read from memory" }),
    generation: phaseSchema,
    prompt: phaseSchema,
  })
  .openapi("Roofline")

const modelSchema = z.object({
  name: z.string(),
  info: z.looseObject({ architecture: z.string(), threads: z.int(), isa: z.string() }),
  stats: z
    .looseObject({ running: z.int(), waiting: z.int() })
    .nullable()
    .openapi({ description: "null while a long step keeps the engine busy, and of a dead one" }),
  modules: z.array(moduleSchema),
  experts: z
    .array(z.object({ path: z.string(), counts: z.array(z.number()) }))
    .openapi({ description: "How often each expert of a layer was chosen" }),
  roofline: rooflineSchema.nullable().openapi({ description: "null until it has been measured" }),
})

const machineSchema = z
  .object({
    memory: z.object({ resident: z.int() }),
    queue: z.object({ active: z.int(), waiting: z.int() }),
    models: z.array(modelSchema),
    can_measure: z.boolean().openapi({ description: "Whether POST /api/machine/limits works" }),
  })
  .openapi("Machine")

const measureSchema = z.looseObject({ model: z.string().nullish() }).openapi("MeasureRequest")

/** What runs where: for the page's view of the machine. */
export function addMachine(app: App, root: ServerRoot): void {
  const rooflines = new Rooflines()
  document(app, {
    method: "get",
    path: "/api/machine",
    summary: "Loaded models: their modules, devices, use of experts and load",
    tags: ["Operations"],
    responses: { 200: jsonContent(machineSchema, "What runs where") },
  })
  app.get("/api/machine", async (c) => {
    const models = await Promise.all(
      root.models.loaded().map(async ({ model, loaded: { client } }) => {
        const stats = (await engineStats(client).catch(() => undefined)) ?? null
        // a busy engine answers after its step, a dead one not at all
        const details = stats === null ? undefined : await client.details().catch(() => undefined)
        const { modelPath: _, ...info } = client.info
        return {
          name: model.name,
          info,
          stats,
          modules: (details?.modules ?? []).map(
            ({ path, operator, device, rule, isPacked, types }) => ({
              path,
              operator,
              device,
              rule,
              packed: isPacked,
              types: Object.fromEntries(types),
            }),
          ),
          experts: details?.experts ?? [],
          roofline: rooflines.of(client, stats),
        }
      }),
    )
    const { active, waiting } = root.workload
    return c.json({
      memory: { resident: process.memoryUsage.rss() },
      queue: { active, waiting },
      models,
      can_measure: root.models.library.limits !== undefined,
    })
  })

  document(app, {
    method: "post",
    path: "/api/machine/limits",
    summary:
      "Measure what the machine could do with a loaded model, which takes all threads for seconds",
    tags: ["Operations"],
    request: { body: jsonContent(measureSchema, "Which model") },
    responses: {
      200: jsonContent(rooflineSchema, "Shares come with what is computed from now on"),
      "4XX": jsonContent(
        errorSchema,
        "Requests run, the model is not loaded, or it cannot be done",
      ),
    },
  })
  app.post("/api/machine/limits", async (c) => {
    const body = await readBody(c, measureSchema)
    const { key, name } = root.models.find(body.model)
    const entry = root.models.loaded().find(({ model }) => model.key === key)
    if (entry === undefined)
      throw new RequestError(409, `model "${name}" is not loaded`, { code: "not_loaded" })
    await rooflines.measure(root, entry)
    const stats = (await engineStats(entry.loaded.client).catch(() => undefined)) ?? null
    return c.json(rooflines.of(entry.loaded.client, stats))
  })
}
