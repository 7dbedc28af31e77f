import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import type { RequestContext } from "../context.ts"

const DEFAULT_LIMIT = 20
const MAX_LIMIT = 100

const querySchema = z.object({
  limit: z.coerce.number().int().min(1).max(MAX_LIMIT).default(DEFAULT_LIMIT),
  order: z.enum(["asc", "desc"]).default("desc"),
  after: z.string().optional(),
})

export const itemListSchema = z
  .object({
    object: z.literal("list"),
    data: z.array(z.looseObject({ id: z.string() })),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.boolean(),
  })
  .openapi("ItemList")
export type ItemList = z.infer<typeof itemListSchema>

interface HasId extends Readonly<Record<string, unknown>> {
  readonly id: string
}

export function itemList(data: readonly HasId[], hasMore = false): ItemList {
  return {
    object: "list",
    data: [...data],
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: hasMore,
  }
}

/** The part of `items` (oldest first) that `?limit=&order=&after=` asks for. RequestError 400 where these make no sense. */
export function itemPage(c: RequestContext, items: readonly HasId[]): ItemList {
  const query = querySchema.safeParse(c.req.query())
  if (!query.success) {
    const { path, message } = query.error.issues[0] ?? { path: [], message: "" }
    const param = String(path[0])
    throw new RequestError(400, `${param} ${c.req.query(param) ?? ""}: ${message}`, {
      code: "invalid_value",
      param,
    })
  }
  const { limit, order, after } = query.data
  const ordered = order === "asc" ? items : items.toReversed()
  const start = after === undefined ? 0 : ordered.findIndex(({ id }) => id === after) + 1
  if (after !== undefined && start === 0)
    throw new RequestError(400, `after ${after}: there is no such item`, {
      code: "invalid_value",
      param: "after",
    })
  return itemList(ordered.slice(start, start + limit), start + limit < ordered.length)
}
