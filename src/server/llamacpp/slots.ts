import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import { type App, document, jsonContent, type ServerRoot, useModel } from "../context.ts"
import { sequenceLimit } from "../generate.ts"
import { errorSchema } from "../openai/schema.ts"

const slotsSchema = z
  .array(
    z.object({
      id: z.int(),
      n_ctx: z.int(),
      speculative: z.literal(false),
      is_processing: z.boolean(),
    }),
  )
  .openapi("LlamaSlots")

const erasedSchema = z.object({ id_slot: z.int(), n_erased: z.int() }).openapi("LlamaSlotErased")

/**
 * llama.cpp's slots: places for sequences that run at once. The scheduler binds none to a client, so those that are
 * busy come first, and what one runs is not told.
 */
export function addSlots(app: App, root: ServerRoot): void {
  document(app, {
    method: "get",
    path: "/slots",
    summary: "Places for sequences that run at once",
    tags: ["llama.cpp"],
    responses: { 200: jsonContent(slotsSchema, "Busy ones first") },
  })
  app.get("/slots", async (c) => {
    const { client, admission } = await useModel(root, c, c.req.query("model"), { anyKind: true })
    // counted by the server: the engine's steps are not asked
    const slots = Array.from({ length: client.info.maxBatchSize }, (_, id) => ({
      id,
      n_ctx: sequenceLimit(client),
      speculative: false,
      is_processing: id < admission.active,
    }))
    return c.json(slots)
  })

  document(app, {
    method: "post",
    path: "/slots/{id}",
    summary: "Erase a slot; prefixes are kept without saving and restoring",
    tags: ["llama.cpp"],
    request: {
      params: z.object({ id: z.string() }),
      query: z.object({ action: z.enum(["save", "restore", "erase"]) }),
    },
    responses: {
      200: jsonContent(erasedSchema, "Nothing is bound to a slot"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/slots/:id", async (c) => {
    const { client } = await useModel(root, c, c.req.query("model"), { anyKind: true })
    const id = Number(c.req.param("id"))
    if (!(Number.isInteger(id) && id >= 0 && id < client.info.maxBatchSize))
      throw new RequestError(
        400,
        `id ${c.req.param("id")}: there are ${client.info.maxBatchSize} slots`,
        {
          code: "invalid_value",
          param: "id",
        },
      )
    const action = c.req.query("action")
    if (action === "erase") return c.json({ id_slot: id, n_erased: 0 })
    if (action === "save" || action === "restore")
      throw new RequestError(
        400,
        `action ${action}: prefixes of all sequences are kept by themselves, across restarts too where the server was started with --cache-dir`,
        { code: "unsupported_value", param: "action" },
      )
    throw new RequestError(400, "action: expected save, restore or erase", {
      code: "invalid_value",
      param: "action",
    })
  })
}
