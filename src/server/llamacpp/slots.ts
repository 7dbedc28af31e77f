import { z } from "@hono/zod-openapi"

import { EngineError, KtError, RequestError } from "../../errors.ts"
import type { EngineClient, PrefixAction, PrefixAnswer } from "../../worker/protocol.ts"
import { type App, document, jsonContent, type ServerRoot, useModel } from "../context.ts"
import { sequenceLimit } from "../generate.ts"
import { errorSchema } from "../openai/schema.ts"
import { readBody } from "../request.ts"
import { SlotFiles } from "../slot-files.ts"
import { type Slot, SlotBook } from "../slots.ts"

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

const actionSchema = z
  .object({ id_slot: z.int(), n_erased: z.int() })
  .or(
    z.object({
      id_slot: z.int(),
      filename: z.string(),
      n_saved: z.int().openapi({ description: "Tokens: those of whole blocks" }),
      n_written: z.int().openapi({ description: "Bytes" }),
      timings: z.object({ save_ms: z.number() }),
    }),
  )
  .or(
    z.object({
      id_slot: z.int(),
      filename: z.string(),
      n_restored: z.int(),
      n_read: z.int(),
      timings: z.object({ restore_ms: z.number() }),
    }),
  )
  .openapi("LlamaSlotAction")

const fileSchema = z.object({ filename: z.string() }).openapi("LlamaSlotFile")

/** Bytes of a file that are read at a time. */
const PIECE_BYTES = 16 * 2 ** 20

/** llama.cpp's slots: places for sequences that run at once. What one runs is not told. */
export function addSlots(app: App, root: ServerRoot): void {
  document(app, {
    method: "get",
    path: "/slots",
    summary: "Places for sequences that run at once",
    tags: ["llama.cpp"],
    responses: { 200: jsonContent(slotsSchema, "One for each sequence that may run") },
  })
  app.get("/slots", async (c) => {
    const { client, admission } = await useModel(root, c, c.req.query("model"), { anyKind: true })
    // counted by the server: the engine's steps are not asked
    const { slots } = SlotBook.of(client)
    const n_ctx = sequenceLimit(client)
    // of other routes' sequences none knows its slot
    let others = admission.active - slots.reduce((sum, { active }) => sum + active, 0)
    return c.json(
      slots.map(({ id, active }) => ({
        id,
        n_ctx,
        speculative: false,
        is_processing: active > 0 || others-- > 0,
      })),
    )
  })

  document(app, {
    method: "post",
    path: "/slots/{id}",
    summary: "Save a slot's prefix to a file, restore it, or erase it",
    tags: ["llama.cpp"],
    request: {
      params: z.object({ id: z.string() }),
      query: z.object({ action: z.enum(["save", "restore", "erase"]) }),
      body: jsonContent(
        fileSchema,
        "Not with erase: the file's name in the folder of --slot-save-path",
      ),
    },
    responses: {
      200: jsonContent(actionSchema, "What was done"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
      501: jsonContent(
        errorSchema,
        "The server has no folder for slots, or the model's cannot be kept",
      ),
      507: jsonContent(errorSchema, "Saved slots take all the bytes that they may"),
    },
  })
  app.post("/slots/:id", async (c) => {
    const { client } = await useModel(root, c, c.req.query("model"), { anyKind: true })
    const book = SlotBook.of(client)
    const slot = book.slots[Number(c.req.param("id"))]
    if (slot === undefined)
      throw new RequestError(400, `id ${c.req.param("id")}: there are ${book.slots.length} slots`, {
        code: "invalid_value",
        param: "id",
      })
    switch (c.req.query("action")) {
      case "erase":
        return c.json(await book.alone(() => erase(client, book, slot)))
      case "save":
      case "restore": {
        const files = filesOf(root)
        const { filename } = await readBody(c, fileSchema)
        const work = c.req.query("action") === "save" ? save : restore
        return c.json(await book.alone(() => work(client, slot, files, filename)))
      }
      default:
        throw new RequestError(400, "action: expected save, restore or erase", {
          code: "invalid_value",
          param: "action",
        })
    }
  })
}

function filesOf({ config }: ServerRoot): SlotFiles {
  if (config.slotFolder !== undefined)
    return new SlotFiles(config.slotFolder, config.slotLimitBytes)
  throw new RequestError(
    501,
    "this server saves no slots: --slot-save-path names a folder for them (known prefixes are kept by themselves, across restarts with --cache-dir)",
    { code: "not_supported" },
  )
}

/** RequestError 501 where the engine keeps no prefixes of this model. */
async function ask(client: EngineClient, action: PrefixAction): Promise<PrefixAnswer> {
  try {
    return await client.prefix(action)
  } catch (error) {
    if (error instanceof EngineError || !(error instanceof KtError)) throw error
    throw new RequestError(501, error.message, { code: "not_supported", cause: error })
  }
}

async function save(
  client: EngineClient,
  { id, tokens, promptLength }: Slot,
  files: SlotFiles,
  filename: string,
): Promise<object> {
  const started = performance.now()
  const ids = Int32Array.from(tokens)
  let saved = 0
  async function* pieces(): AsyncGenerator<Uint8Array> {
    for (let from = 0, isLast = false; !isLast;) {
      const answer = await ask(client, { type: "export", ids, promptLength, from })
      from += answer.blocks
      saved = from * answer.pageSize
      isLast = answer.isLast !== false
      if (answer.records !== undefined) yield answer.records
    }
  }
  const written = await files.write(filename, pieces())
  const timings = { save_ms: performance.now() - started }
  return { id_slot: id, filename, n_saved: saved, n_written: written, timings }
}

async function restore(
  client: EngineClient,
  slot: Slot,
  files: SlotFiles,
  filename: string,
): Promise<object> {
  const started = performance.now()
  const nothing = new Uint8Array(0)
  const { recordBytes } = await ask(client, { type: "import", records: nothing, isFirst: true })
  const pieceBytes = recordBytes * Math.max(1, Math.floor(PIECE_BYTES / recordBytes))
  const tokens: number[] = []
  let read = 0
  for await (const records of files.read(filename, pieceBytes)) {
    const answer = await ask(client, { type: "import", records, isFirst: read === 0 })
    read += records.length
    tokens.push(...(answer.tokens ?? []))
    if (answer.problem !== undefined)
      throw new RequestError(400, `filename ${filename}: ${answer.problem}`, {
        code: "invalid_value",
        param: "filename",
      })
    // what does not fit is computed again
    if (answer.isFull === true) break
  }
  slot.tokens = tokens
  slot.promptLength = tokens.length
  const timings = { restore_ms: performance.now() - started }
  return { id_slot: slot.id, filename, n_restored: tokens.length, n_read: read, timings }
}

/** What other slots begin with too stays known. */
async function erase(client: EngineClient, book: SlotBook, slot: Slot): Promise<object> {
  const { tokens, promptLength } = slot
  const ids = Int32Array.from(tokens)
  const { pageSize } = await ask(client, { type: "forget", ids, promptLength, from: tokens.length })
  const from = Math.floor(book.shared(slot) / pageSize)
  await ask(client, { type: "forget", ids, promptLength, from })
  slot.tokens = []
  slot.promptLength = 0
  return { id_slot: slot.id, n_erased: tokens.length }
}
