import { Database } from "bun:sqlite"
import { mkdirSync } from "node:fs"
import { dirname } from "node:path"

/** Responses that are kept; the oldest leave. */
const MAX_RESPONSES = 10_000
/** Their JSON in all, in bytes. */
const MAX_BYTES = 256 * 1024 * 1024
/** OpenAI keeps responses for thirty days. */
const MAX_AGE_MS = 30 * 24 * 60 * 60 * 1000

export interface StoredResponse {
  /** The response object as it was sent. */
  readonly response: unknown
  /** The items the model was given, those of earlier responses included, then its output. */
  readonly items: readonly unknown[]
  /** Of these, how many were this request's own input, and where they begin. */
  readonly inputStart: number
  readonly inputCount: number
}

/**
 * Responses by id, in a SQLite file (or ":memory:"), bounded and expiring; a crash loses at most the newest. The file is
 * made with the first response; where that fails, `onFailure` is told once and responses are kept in memory.
 */
export class ResponseStore implements Disposable {
  readonly #path: string
  readonly #onFailure: ((error: unknown) => void) | undefined
  #opened: Database | undefined

  constructor(path: string, onFailure?: (error: unknown) => void) {
    this.#path = path
    this.#onFailure = onFailure
  }

  get #db(): Database {
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

  put(id: string, stored: StoredResponse): void {
    const body = JSON.stringify(stored)
    this.#db
      .query("INSERT OR REPLACE INTO responses (id, created, bytes, body) VALUES (?, ?, ?, ?)")
      .run(id, Date.now(), body.length, body)
    this.#trim()
  }

  get(id: string): StoredResponse | undefined {
    const row = this.#db
      .query<{ body: string }, [string, number]>(
        "SELECT body FROM responses WHERE id = ? AND created > ?",
      )
      .get(id, Date.now() - MAX_AGE_MS)
    return row === null ? undefined : (JSON.parse(row.body) as StoredResponse)
  }

  /** False when there was none. */
  delete(id: string): boolean {
    return this.#db.query("DELETE FROM responses WHERE id = ?").run(id).changes > 0
  }

  #trim(): void {
    this.#db.query("DELETE FROM responses WHERE created <= ?").run(Date.now() - MAX_AGE_MS)
    const { count, bytes } = this.#db
      .query<{ count: number; bytes: number }, []>(
        "SELECT COUNT(*) AS count, TOTAL(bytes) AS bytes FROM responses",
      )
      .get() ?? { count: 0, bytes: 0 }
    if (count <= MAX_RESPONSES && bytes <= MAX_BYTES) return
    // sums from the newest on; what lies beyond the bounds is the oldest
    this.#db
      .query(
        `DELETE FROM responses WHERE rowid IN (
          SELECT place FROM (
            SELECT rowid AS place, SUM(bytes) OVER newest AS total, ROW_NUMBER() OVER newest AS number
            FROM responses WINDOW newest AS (ORDER BY created DESC, rowid DESC)
          ) WHERE total > ? OR number > ?)`,
      )
      .run(MAX_BYTES, MAX_RESPONSES)
  }

  [Symbol.dispose](): void {
    this.#opened?.close()
  }
}

function open(path: string): Database {
  const db = new Database(path, { create: true })
  db.run("PRAGMA journal_mode = WAL")
  db.run("PRAGMA busy_timeout = 2000")
  db.run(
    "CREATE TABLE IF NOT EXISTS responses (id TEXT PRIMARY KEY, created INTEGER NOT NULL, bytes INTEGER NOT NULL, body TEXT NOT NULL)",
  )
  // holds all that the bounds are checked by, so that no response is read for it
  db.run("CREATE INDEX IF NOT EXISTS responses_bounds ON responses (created, bytes)")
  return db
}
