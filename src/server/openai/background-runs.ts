import type { NamedEvent } from "../stream.ts"

/** Finished runs whose events can still be read; older ones have their response in the store. */
const MAX_FINISHED = 64

/** A response that is computed whether or not a client waits for it. */
export class BackgroundRun {
  readonly #events: NamedEvent[] = []
  readonly #cancel: () => void
  #ended = false
  #cancelled = false
  #waiting: (() => void)[] = []

  constructor(cancel: () => void) {
    this.#cancel = cancel
  }

  get ended(): boolean {
    return this.#ended
  }

  get cancelled(): boolean {
    return this.#cancelled
  }

  /** Ends it; the response is stored as cancelled. */
  cancel(): void {
    if (this.#ended) return
    this.#cancelled = true
    this.#cancel()
  }

  /** Resolves when the run has ended. */
  async done(): Promise<void> {
    while (!this.#ended) await this.#change()
  }

  /** Events from number `start` on, as they come. */
  async *events(start = 0): AsyncGenerator<NamedEvent> {
    for (let i = start; ; i++) {
      while (i >= this.#events.length) {
        if (this.#ended) return
        await this.#change()
      }
      yield this.#events[i] as NamedEvent
    }
  }

  /** Reads the run to its end; a failure is in its events and in what its writer stores. */
  async follow(events: AsyncIterable<NamedEvent>): Promise<void> {
    try {
      for await (const event of events) {
        this.#events.push(event)
        this.#wake()
      }
    } finally {
      this.#ended = true
      this.#wake()
    }
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
  }
}

/** Background responses of this process by id. */
export class BackgroundRuns {
  readonly #runs = new Map<string, BackgroundRun>()

  get(id: string): BackgroundRun | undefined {
    return this.#runs.get(id)
  }

  add(id: string, run: BackgroundRun): void {
    this.#runs.set(id, run)
    const finished = [...this.#runs].filter(([, { ended }]) => ended)
    for (const [old] of finished.slice(0, -MAX_FINISHED)) this.#runs.delete(old)
  }
}
