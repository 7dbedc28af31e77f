import { RequestError } from "../errors.ts"

/** Longest `retry-after` suggested: after a minute the client should simply look again. */
const MAX_RETRY_SECONDS = 60
/** Weight of the newest request in the running mean of durations. */
const MEAN_WEIGHT = 0.2

/** A place among the sequences that run or wait. */
export interface Ticket {
  /** Aborted when the server gives up on running work. */
  readonly signal: AbortSignal
  /** Gives the place back; later calls do nothing. */
  release(): void
}

/**
 * The bounded queue in front of the engine: counts sequences, refuses with 429 when the queue is
 * full and with 503 while the server drains, and knows when all work has ended.
 */
export class Admission {
  readonly maxRunning: number
  readonly maxQueue: number
  #active = 0
  #draining = false
  #meanSeconds = 1
  readonly #abort = new AbortController()
  #onIdle: (() => void)[] = []

  constructor(maxRunning: number, maxQueue: number) {
    this.maxRunning = maxRunning
    this.maxQueue = maxQueue
  }

  /** Sequences admitted and not finished. */
  get active(): number {
    return this.#active
  }

  get waiting(): number {
    return Math.max(0, this.#active - this.maxRunning)
  }

  get draining(): boolean {
    return this.#draining
  }

  /** Takes a place for `count` sequences; RequestError 429 or 503 when there is none. */
  enter(count: number): Ticket {
    if (this.#draining) {
      throw new RequestError(503, "the server is shutting down", {
        code: "shutting_down",
        retryAfterSeconds: 5,
      })
    }
    const capacity = this.maxRunning + this.maxQueue
    if (count > capacity) {
      throw new RequestError(
        400,
        `the request asks for ${count} sequences, but the server runs and queues at most ${capacity}`,
        { code: "too_many_sequences", param: "n" },
      )
    }
    if (this.#active + count > capacity) {
      throw new RequestError(
        429,
        `the queue is full: ${this.maxRunning} sequences run and ${this.maxQueue} may wait`,
        { code: "queue_full", retryAfterSeconds: this.#retryAfter() },
      )
    }
    this.#active += count
    const started = performance.now()
    let released = false
    return {
      signal: this.#abort.signal,
      release: () => {
        if (released) return
        released = true
        const seconds = (performance.now() - started) / 1000
        this.#meanSeconds += MEAN_WEIGHT * (seconds - this.#meanSeconds)
        this.#active -= count
        if (this.#active === 0) for (const wake of this.#onIdle.splice(0)) wake()
      },
    }
  }

  /** Refuses new work from now on. */
  drain(): void {
    this.#draining = true
  }

  /** Resolves when nothing runs. */
  idle(): Promise<void> {
    if (this.#active === 0) return Promise.resolve()
    return new Promise((resolve) => this.#onIdle.push(resolve))
  }

  /** Ends all running work; streams get an error in their API's shape. */
  abortAll(): void {
    this.#draining = true
    this.#abort.abort(
      new RequestError(503, "the server is shutting down", { code: "shutting_down" }),
    )
  }

  #retryAfter(): number {
    const rounds = Math.max(1, this.waiting / this.maxRunning)
    return Math.min(MAX_RETRY_SECONDS, Math.max(1, Math.ceil(this.#meanSeconds * rounds)))
  }
}
