import { RequestError } from "../errors.ts"
import { asRequestError } from "./generate.ts"

export interface StreamOptions {
  /**
   * Silence after which an SSE comment is sent; 0 for never. NDJSON has no comments and sends none.
   */
  readonly heartbeatMs: number
  /** An error after the first byte, in the API's shape. */
  readonly errorBody: (error: RequestError) => unknown
  /** Called once, when the stream has ended in any way; aborts the work that is still under way. */
  readonly onClose: () => void
}

const encoder = new TextEncoder()
const HEARTBEAT = encoder.encode(": keep-alive\n\n")

/** Server-sent events: one `data:` line an item, `[DONE]` at the end. */
export function sseResponse(items: AsyncIterator<unknown>, options: StreamOptions): Response {
  return respond(items, options, {
    contentType: "text/event-stream; charset=utf-8",
    frame: (item) => `data: ${JSON.stringify(item)}\n\n`,
    last: "data: [DONE]\n\n",
    heartbeatMs: options.heartbeatMs,
  })
}

/** An item of a stream whose events have names, or none. */
export interface NamedEvent {
  readonly event?: string
  readonly data: unknown
}

/** Server-sent events with names, as Anthropic has them; the last is the items' own. */
export function eventResponse(items: AsyncIterator<NamedEvent>, options: StreamOptions): Response {
  return respond(items, options, {
    contentType: "text/event-stream; charset=utf-8",
    frame: (item) => {
      // errors come as bodies alone
      const { event, data } = isNamed(item) ? item : { event: "error", data: item }
      return `${event === undefined ? "" : `event: ${event}\n`}data: ${JSON.stringify(data)}\n\n`
    },
    last: undefined,
    heartbeatMs: options.heartbeatMs,
  })
}

function isNamed(item: unknown): item is NamedEvent {
  return typeof item === "object" && item !== null && "data" in item
}

/** One JSON object a line. */
export function ndjsonResponse(items: AsyncIterator<unknown>, options: StreamOptions): Response {
  return respond(items, options, {
    contentType: "application/x-ndjson",
    frame: (item) => `${JSON.stringify(item)}\n`,
    last: undefined,
    heartbeatMs: 0,
  })
}

interface Format {
  readonly contentType: string
  readonly frame: (item: unknown) => string
  readonly last: string | undefined
  readonly heartbeatMs: number
}

/**
 * The body is pulled: nothing is read from `items` while a slow client's buffers are full.
 */
function respond(items: AsyncIterator<unknown>, options: StreamOptions, format: Format): Response {
  let pending: Promise<IteratorResult<unknown>> | undefined
  let closed = false
  const silence = new Silence(format.heartbeatMs)
  const close = (): void => {
    if (closed) return
    closed = true
    silence.stop()
    options.onClose()
  }
  const body = new ReadableStream<Uint8Array>({
    async pull(stream) {
      try {
        pending ??= items.next()
        const result = await silence.race(pending)
        if (closed) return
        if (result === undefined) {
          stream.enqueue(HEARTBEAT)
          return
        }
        pending = undefined
        if (result.done !== true) {
          stream.enqueue(encoder.encode(format.frame(result.value)))
          return
        }
        if (format.last !== undefined) stream.enqueue(encoder.encode(format.last))
      } catch (error) {
        if (closed) return
        stream.enqueue(encoder.encode(format.frame(options.errorBody(asRequestError(error)))))
      }
      close()
      stream.close()
    },
    cancel() {
      close()
    },
  })
  return new Response(body, {
    headers: {
      "content-type": format.contentType,
      "cache-control": "no-cache, no-transform",
      // Asks buffering proxies (nginx) to pass chunks on at once.
      "x-accel-buffering": "no",
    },
  })
}

/** Tells when nothing came for a while; one timer for the whole stream, since one a token costs more than the token. */
class Silence {
  readonly #ms: number
  #timer: ReturnType<typeof setTimeout> | undefined
  #since = 0
  #wake: (() => void) | undefined

  constructor(ms: number) {
    this.#ms = ms
  }

  /** The promise's value, or undefined when it takes longer than the silence allowed. */
  race<T>(promise: Promise<T>): Promise<T | undefined> {
    if (this.#ms <= 0) return promise
    this.#since = performance.now()
    this.#timer ??= setTimeout(() => this.#check(), this.#ms)
    return new Promise((resolve, reject) => {
      this.#wake = () => resolve(undefined)
      promise.then(resolve, reject)
    })
  }

  stop(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  #check(): void {
    const left = this.#ms - (performance.now() - this.#since)
    // timers may be a little early
    this.#timer = left > 1 ? setTimeout(() => this.#check(), left) : undefined
    if (left <= 1) this.#wake?.()
  }
}
