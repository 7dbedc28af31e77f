import { z } from "@hono/zod-openapi"

import { type App, document, jsonContent, type ServerRoot } from "./context.ts"
import { engineStats } from "./operations.ts"

const moduleSchema = z.object({
  path: z.string(),
  operator: z
    .string()
    .openapi({ description: "Its class, an operator's where a rule replaced it" }),
  device: z.string(),
  packed: z.boolean().openapi({ description: "In the kernels' own layout" }),
  types: z.record(z.string(), z.int()).openapi({ description: "Bytes by type" }),
})

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
})

const machineSchema = z
  .object({
    memory: z.object({ resident: z.int() }),
    queue: z.object({ active: z.int(), waiting: z.int() }),
    models: z.array(modelSchema),
  })
  .openapi("Machine")

/** What runs where: for the page's view of the machine. */
export function addMachine(app: App, root: ServerRoot): void {
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
          modules: (details?.modules ?? []).map(({ path, operator, device, isPacked, types }) => ({
            path,
            operator,
            device,
            packed: isPacked,
            types: Object.fromEntries(types),
          })),
          experts: details?.experts ?? [],
        }
      }),
    )
    const { active, waiting } = root.workload
    return c.json({
      memory: { resident: process.memoryUsage.rss() },
      queue: { active, waiting },
      models,
    })
  })
}
