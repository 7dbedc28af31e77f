import { Database } from "bun:sqlite"
import { mkdirSync } from "node:fs"
import { dirname } from "node:path"

/** Bytes of JSON that one table may hold; its oldest rows leave. */
const MAX_BYTES = 256 * 1024 * 1024
/** OpenAI keeps responses for thirty days. */
export const MAX_AGE_MS = 30 * 24 * 60 * 60 * 1000

const SCHEMA = [
  "CREATE TABLE IF NOT EXISTS responses (id TEXT PRIMARY KEY, created INTEGER NOT NULL, bytes INTEGER NOT NULL, body TEXT NOT NULL)",
  // hold all that the bounds are checked by, so that no body is read for it
  "CREATE INDEX IF NOT EXISTS responses_bounds ON responses (created, bytes)",
  "CREATE TABLE IF NOT EXISTS response_items (id TEXT PRIMARY KEY, response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE) WITHOUT ROWID",
  "CREATE INDEX IF NOT EXISTS response_items_owner ON response_items (response)",
  "CREATE TABLE IF NOT EXISTS conversations (id TEXT PRIMARY KEY, made INTEGER NOT NULL, created INTEGER NOT NULL, bytes INTEGER NOT NULL, metadata TEXT NOT NULL)",
  "CREATE INDEX IF NOT EXISTS conversations_bounds ON conversations (created, bytes)",
  "CREATE TABLE IF NOT EXISTS conversation_items (place INTEGER PRIMARY KEY AUTOINCREMENT, conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE, id TEXT NOT NULL, body TEXT NOT NULL)",
  "CREATE UNIQUE INDEX IF NOT EXISTS conversation_items_owner ON conversation_items (conversation, id)",
]

/**
 * What OpenAI's stateful routes keep, in a SQLite file (or ":memory:"), bounded and expiring; a crash loses at most the
 * newest. The file is made when something is first kept; where that fails, `onFailure` is told once and memory keeps it.
 */
export class KeptDatabase implements Disposable {
  readonly #path: string
  readonly #onFailure: ((error: unknown) => void) | undefined
  #opened: Database | undefined

  constructor(path: string, onFailure?: (error: unknown) => void) {
    this.#path = path
    this.#onFailure = onFailure
  }

  get db(): Database {
    if (this.#opened !== undefined) return this.#opened
    try {
      if (this.#path !== ":memory:") mkdirSync(dirname(this.#path), { recursive: true })
      this.#opened = open(this.#path)
    } catch (error) {
      if (this.#onFailure === undefined) throw error
      this.#onFailure(error)
      this.#opened = open(":memory:")
    }
    return this.#opened
  }

  /** Drops the rows of `table` that are too old, and the oldest of those that are too many or too large. */
  trim(table: "responses" | "conversations", maxRows: number): void {
    this.db.query(`DELETE FROM ${table} WHERE created <= ?`).run(Date.now() - MAX_AGE_MS)
    const { count, bytes } = this.db
      .query<{ count: number; bytes: number }, []>(
        `SELECT COUNT(*) AS count, TOTAL(bytes) AS bytes FROM ${table}`,
      )
      .get() ?? { count: 0, bytes: 0 }
    if (count <= maxRows && bytes <= MAX_BYTES) return
    // sums from the newest on; what lies beyond the bounds is the oldest
    this.db
      .query(
        `DELETE FROM ${table} WHERE rowid IN (
          SELECT place FROM (
            SELECT rowid AS place, SUM(bytes) OVER newest AS total, ROW_NUMBER() OVER newest AS number
            FROM ${table} WINDOW newest AS (ORDER BY created DESC, rowid DESC)
          ) WHERE total > ? OR number > ?)`,
      )
      .run(MAX_BYTES, maxRows)
  }

  [Symbol.dispose](): void {
    this.#opened?.close()
  }
}

function open(path: string): Database {
  const db = new Database(path, { create: true })
  db.run("PRAGMA journal_mode = WAL")
  db.run("PRAGMA busy_timeout = 2000")
  db.run("PRAGMA foreign_keys = ON")
  for (const statement of SCHEMA) db.run(statement)
  return db
}
