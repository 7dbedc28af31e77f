import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import { type App, document, jsonContent } from "../context.ts"
import { readBody } from "../request.ts"
import type { Conversation, ConversationItem, ConversationStore } from "./conversation-store.ts"
import { itemList, itemListSchema, itemPage } from "./item-page.ts"
import type { ResponseStore } from "./response-store.ts"
import { inputItems } from "./responses-input.ts"
import { inputItem, metadataSchema } from "./responses-schema.ts"
import { errorSchema } from "./schema.ts"

/** Items that one request may add, as OpenAI has it. */
const MAX_ITEMS = 20

const createSchema = z
  .looseObject({ items: z.array(inputItem).max(MAX_ITEMS).nullish(), metadata: metadataSchema })
  .openapi("ConversationCreate")
const updateSchema = z.looseObject({ metadata: metadataSchema }).openapi("ConversationUpdate")
const itemsSchema = z
  .looseObject({ items: z.array(inputItem).min(1).max(MAX_ITEMS) })
  .openapi("ConversationItems")
const conversationSchema = z
  .object({
    id: z.string(),
    object: z.literal("conversation"),
    created_at: z.int(),
    metadata: z.record(z.string(), z.string()),
  })
  .openapi("Conversation")
const deletedSchema = z
  .object({ id: z.string(), object: z.literal("conversation.deleted"), deleted: z.literal(true) })
  .openapi("ConversationDeleted")

/** RequestError 404 where it is not there. */
export function knownConversation(store: ConversationStore, id: string): Conversation {
  const known = store.get(id)
  if (known !== undefined) return known
  throw new RequestError(404, `conversation "${id}" not found`, {
    code: "not_found",
    param: "conversation",
  })
}

/** The Conversations API: items that responses read and add to. */
export function addConversations(
  app: App,
  store: ConversationStore,
  responses: ResponseStore,
): void {
  const wrong = { "4XX": jsonContent(errorSchema, "Why the request is refused") }
  const tags = ["OpenAI"]
  const one = { 200: jsonContent(conversationSchema, "The conversation"), ...wrong }
  const find = (id: string): unknown => responses.item(id)

  document(app, {
    method: "post",
    path: "/v1/conversations",
    summary: "Begin a conversation",
    tags,
    request: { body: jsonContent(createSchema, "First items and metadata") },
    responses: one,
  })
  app.post("/v1/conversations", async (c) => {
    const { items, metadata } = await readBody(c, createSchema)
    const first = inputItems(items ?? [], find)
    const made = store.create(metadata ?? {})
    store.add(made.id, first)
    return Response.json(made)
  })

  const path = "/v1/conversations/{id}"
  document(app, { method: "get", path, summary: "A conversation", tags, responses: one })
  app.get("/v1/conversations/:id", (c) => {
    return Response.json(knownConversation(store, c.req.param("id")))
  })
  document(app, {
    method: "post",
    path,
    summary: "Change a conversation's metadata",
    tags,
    request: { body: jsonContent(updateSchema, "All metadata") },
    responses: one,
  })
  app.post("/v1/conversations/:id", async (c) => {
    const { metadata } = await readBody(c, updateSchema)
    const { id } = knownConversation(store, c.req.param("id"))
    store.setMetadata(id, metadata ?? {})
    return Response.json(knownConversation(store, id))
  })
  document(app, {
    method: "delete",
    path,
    summary: "Forget a conversation",
    tags,
    responses: { 200: jsonContent(deletedSchema, "It is gone"), ...wrong },
  })
  app.delete("/v1/conversations/:id", (c) => {
    const { id } = knownConversation(store, c.req.param("id"))
    store.delete(id)
    return Response.json({ id, object: "conversation.deleted", deleted: true })
  })

  const list = { 200: jsonContent(itemListSchema, "Items, newest first unless asked"), ...wrong }
  document(app, {
    method: "get",
    path: `${path}/items`,
    summary: "A conversation's items",
    tags,
    responses: list,
  })
  app.get("/v1/conversations/:id/items", (c) => {
    const { id } = knownConversation(store, c.req.param("id"))
    return Response.json(itemPage(c, store.items(id)))
  })
  document(app, {
    method: "post",
    path: `${path}/items`,
    summary: "Add items to a conversation",
    tags,
    request: { body: jsonContent(itemsSchema, "The items") },
    responses: list,
  })
  app.post("/v1/conversations/:id/items", async (c) => {
    const { items } = await readBody(c, itemsSchema)
    const { id } = knownConversation(store, c.req.param("id"))
    const added = inputItems(items, find)
    store.add(id, added)
    return Response.json(itemList(added))
  })

  const knownItem = (id: string, item: string): ConversationItem => {
    const known = store.item(knownConversation(store, id).id, item)
    if (known !== undefined) return known
    throw new RequestError(404, `item "${item}" not found in ${id}`, {
      code: "not_found",
      param: "item_id",
    })
  }
  document(app, {
    method: "get",
    path: `${path}/items/{item}`,
    summary: "One item",
    tags,
    responses: { 200: jsonContent(inputItem, "The item"), ...wrong },
  })
  app.get("/v1/conversations/:id/items/:item", (c) => {
    return Response.json(knownItem(c.req.param("id"), c.req.param("item")))
  })
  document(app, {
    method: "delete",
    path: `${path}/items/{item}`,
    summary: "Take an item out of its conversation",
    tags,
    responses: one,
  })
  app.delete("/v1/conversations/:id/items/:item", (c) => {
    const id = c.req.param("id")
    store.deleteItem(id, knownItem(id, c.req.param("item")).id)
    return Response.json(knownConversation(store, id))
  })
}
