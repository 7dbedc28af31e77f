import { type KeptDatabase, MAX_AGE_MS } from "./kept-database.ts"

/** Responses that are kept; the oldest leave. */
const MAX_RESPONSES = 10_000

export interface StoredResponse {
  /** The response object as it was sent. */
  readonly response: Readonly<Record<string, unknown>> & {
    readonly output?: readonly unknown[]
    readonly status?: string
  }
  /** The items the model was given, those of earlier responses included, then its output. */
  readonly items: readonly unknown[]
  /** Of these, how many were this request's own input, and where they begin. */
  readonly inputStart: number
  readonly inputCount: number
}

/** Responses by id. */
export class ResponseStore {
  readonly #kept: KeptDatabase

  constructor(kept: KeptDatabase) {
    this.#kept = kept
  }

  put(id: string, stored: StoredResponse): void {
    const body = JSON.stringify(stored)
    const { db } = this.#kept
    db.transaction(() => {
      db.query(
        "INSERT OR REPLACE INTO responses (id, created, bytes, body) VALUES (?, ?, ?, ?)",
      ).run(id, Date.now(), body.length, body)
      const item = db.query("INSERT OR REPLACE INTO response_items (id, response) VALUES (?, ?)")
      for (const output of stored.response.output ?? []) item.run((output as { id: string }).id, id)
    })()
    this.#kept.trim("responses", MAX_RESPONSES)
  }

  get(id: string): StoredResponse | undefined {
    const row = this.#kept.db
      .query<{ body: string }, [string, number]>(
        "SELECT body FROM responses WHERE id = ? AND created > ?",
      )
      .get(id, Date.now() - MAX_AGE_MS)
    return row === null ? undefined : (JSON.parse(row.body) as StoredResponse)
  }

  /** An item that some response has put out. */
  item(id: string): unknown {
    const owner = this.#kept.db
      .query<{ response: string }, [string]>("SELECT response FROM response_items WHERE id = ?")
      .get(id)
    const output = owner === null ? [] : (this.get(owner.response)?.response.output ?? [])
    return output.find((item) => (item as { id: string }).id === id)
  }

  /** False when there was none. */
  delete(id: string): boolean {
    return this.#kept.db.query("DELETE FROM responses WHERE id = ?").run(id).changes > 0
  }
}
