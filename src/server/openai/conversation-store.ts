import { randomId } from "../ids.ts"
import { type KeptDatabase, MAX_AGE_MS } from "./kept-database.ts"

/** Conversations that are kept; those used longest ago leave. */
const MAX_CONVERSATIONS = 10_000

export interface Conversation {
  readonly id: string
  readonly object: "conversation"
  /** Seconds since 1970. */
  readonly created_at: number
  readonly metadata: Readonly<Record<string, string>>
}

export interface ConversationItem extends Readonly<Record<string, unknown>> {
  readonly id: string
}

interface Row {
  readonly id: string
  readonly made: number
  readonly metadata: string
}

/** Items of OpenAI's conversations, in the order in which they were said. */
export class ConversationStore {
  readonly #kept: KeptDatabase

  constructor(kept: KeptDatabase) {
    this.#kept = kept
  }

  create(metadata: Readonly<Record<string, string>>): Conversation {
    const made = Math.floor(Date.now() / 1000)
    const id = `conv_${randomId()}`
    this.#kept.db
      .query(
        "INSERT INTO conversations (id, made, created, bytes, metadata) VALUES (?, ?, ?, 0, ?)",
      )
      .run(id, made, Date.now(), JSON.stringify(metadata))
    this.#kept.trim("conversations", MAX_CONVERSATIONS)
    return { id, object: "conversation", created_at: made, metadata }
  }

  get(id: string): Conversation | undefined {
    const row = this.#kept.db
      .query<Row, [string, number]>(
        "SELECT id, made, metadata FROM conversations WHERE id = ? AND created > ?",
      )
      .get(id, Date.now() - MAX_AGE_MS)
    if (row === null) return undefined
    const metadata = JSON.parse(row.metadata) as Conversation["metadata"]
    return { id, object: "conversation", created_at: row.made, metadata }
  }

  setMetadata(id: string, metadata: Readonly<Record<string, string>>): void {
    this.#kept.db
      .query("UPDATE conversations SET metadata = ? WHERE id = ?")
      .run(JSON.stringify(metadata), id)
  }

  delete(id: string): void {
    this.#kept.db.query("DELETE FROM conversations WHERE id = ?").run(id)
  }

  /** Adds at the end; an item with an id that is there already stays where it is. A conversation that is gone takes none. */
  add(id: string, items: readonly ConversationItem[]): void {
    const { db } = this.#kept
    db.transaction(() => {
      if (this.get(id) === undefined) return
      const insert = db.query(
        "INSERT OR IGNORE INTO conversation_items (conversation, id, body) VALUES (?, ?, ?)",
      )
      let bytes = 0
      for (const item of items) {
        const body = JSON.stringify(item)
        if (insert.run(id, item.id, body).changes > 0) bytes += body.length
      }
      // what is used stays
      db.query("UPDATE conversations SET bytes = bytes + ?, created = ? WHERE id = ?").run(
        bytes,
        Date.now(),
        id,
      )
    })()
    this.#kept.trim("conversations", MAX_CONVERSATIONS)
  }

  items(id: string): readonly ConversationItem[] {
    return this.#kept.db
      .query<{ body: string }, [string]>(
        "SELECT body FROM conversation_items WHERE conversation = ? ORDER BY place",
      )
      .all(id)
      .map(({ body }) => JSON.parse(body) as ConversationItem)
  }

  item(id: string, item: string): ConversationItem | undefined {
    const row = this.#kept.db
      .query<{ body: string }, [string, string]>(
        "SELECT body FROM conversation_items WHERE conversation = ? AND id = ?",
      )
      .get(id, item)
    return row === null ? undefined : (JSON.parse(row.body) as ConversationItem)
  }

  /** False when there was none. */
  deleteItem(id: string, item: string): boolean {
    const { db } = this.#kept
    return db.transaction(() => {
      const body = this.item(id, item)
      if (body === undefined) return false
      db.query("DELETE FROM conversation_items WHERE conversation = ? AND id = ?").run(id, item)
      db.query("UPDATE conversations SET bytes = bytes - ? WHERE id = ?").run(
        JSON.stringify(body).length,
        id,
      )
      return true
    })()
  }
}
