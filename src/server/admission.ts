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

/** All work of the server, whatever model does it: what stopping waits for, and ends. */
export class Workload {
  #active = 0
  #waiting = 0
  #draining = false
  readonly #abort = new AbortController()
  #onIdle: (() => void)[] = []

  /** Sequences, and requests that wait for a model, which are not finished. */
  get active(): number {
    return this.#active
  }

  /** Sequences beyond those that can run at once. */
  get waiting(): number {
    return this.#waiting
  }

  get draining(): boolean {
    return this.#draining
  }

  /** Aborted when the server gives up on running work. */
  get signal(): AbortSignal {
    return this.#abort.signal
  }

  /** Counts `active` and `waiting` more, or less; RequestError 503 for more while the server drains. */
  add(active: number, waiting: number): void {
    if (active > 0 && this.#draining) {
      throw new RequestError(503, "the server is shutting down", {
        code: "shutting_down",
        retryAfterSeconds: 5,
      })
    }
    this.#active += active
    this.#waiting += waiting
    if (this.#active === 0) for (const wake of this.#onIdle.splice(0)) wake()
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
}

/**
 * The bounded queue in front of one engine: counts sequences, refuses with 429 when the queue is
 * full and with 503 while the server drains.
 */
export class Admission {
  readonly maxRunning: number
  readonly maxQueue: number
  readonly #workload: Workload
  readonly #onIdle: () => void
  #active = 0
  #meanSeconds = 1

  /** @param onIdle Called whenever the last sequence has ended */
  constructor(
    maxRunning: number,
    maxQueue: number,
    workload: Workload = new Workload(),
    onIdle: () => void = () => {},
  ) {
    this.maxRunning = maxRunning
    this.maxQueue = maxQueue
    this.#workload = workload
    this.#onIdle = onIdle
  }

  /** Sequences admitted and not finished. */
  get active(): number {
    return this.#active
  }

  get waiting(): number {
    return Math.max(0, this.#active - this.maxRunning)
  }

  /** Takes a place for `count` sequences; RequestError 429 or 503 when there is none. */
  enter(count: number): Ticket {
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
    this.#change(count)
    const started = performance.now()
    let released = false
    return {
      signal: this.#workload.signal,
      release: () => {
        if (released) return
        released = true
        const seconds = (performance.now() - started) / 1000
        this.#meanSeconds += MEAN_WEIGHT * (seconds - this.#meanSeconds)
        this.#change(-count)
        if (this.#active === 0) this.#onIdle()
      },
    }
  }

  #change(count: number): void {
    const before = this.waiting
    const waiting = Math.max(0, this.#active + count - this.maxRunning)
    this.#workload.add(count, waiting - before)
    this.#active += count
  }

  #retryAfter(): number {
    const rounds = Math.max(1, this.waiting / this.maxRunning)
    return Math.min(MAX_RETRY_SECONDS, Math.max(1, Math.ceil(this.#meanSeconds * rounds)))
  }
}
