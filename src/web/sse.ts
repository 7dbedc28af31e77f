/** An event longer than this is not a chat chunk; reading on would only fill memory. */
export const MAX_EVENT_CHARS = 8_000_000

/**
 * Server-sent events, fed in pieces cut anywhere. Only `data` matters to chat completions; comments (heartbeats), `event`,
 * `id` and `retry` are skipped. See https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */
export class SseParser {
  private buffer = ""
  private data: string[] = []
  private dataChars = 0

  /** Takes the next piece of text and returns the data of each event that it completes. */
  push(text: string): string[] {
    this.buffer += text
    const events: string[] = []
    let start = 0
    for (;;) {
      const end = this.lineEnd(start)
      if (end === undefined) break
      this.line(this.buffer.slice(start, end.at), events)
      start = end.next
    }
    this.buffer = this.buffer.slice(start)
    if (this.buffer.length > MAX_EVENT_CHARS) throw new RangeError("event too long")
    return events
  }

  /** Ends the stream. The standard drops an event without its blank line, but some servers close right after `[DONE]`. */
  end(): string[] {
    const events: string[] = []
    if (this.buffer !== "") this.line(this.buffer.replace(/\r$/, ""), events)
    this.buffer = ""
    this.line("", events)
    return events
  }

  /** Lines end in LF, CR or CRLF. A CR at the very end waits, since an LF may follow in the next piece. */
  private lineEnd(start: number): { at: number; next: number } | undefined {
    for (let at = start; at < this.buffer.length; at++) {
      const char = this.buffer[at]
      if (char === "\n") return { at, next: at + 1 }
      if (char !== "\r") continue
      if (at + 1 === this.buffer.length) return undefined
      return { at, next: this.buffer[at + 1] === "\n" ? at + 2 : at + 1 }
    }
    return undefined
  }

  private line(line: string, events: string[]): void {
    if (line === "") {
      if (this.data.length > 0) events.push(this.data.join("\n"))
      this.data = []
      this.dataChars = 0
      return
    }
    if (!line.startsWith("data")) return
    if (line.length > 4 && line[4] !== ":") return
    const value = line.slice(5)
    this.dataChars += value.length
    if (this.dataChars > MAX_EVENT_CHARS) throw new RangeError("event too long")
    this.data.push(value.startsWith(" ") ? value.slice(1) : value)
  }
}

/** The data of each event of a response body, in order. */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const parser = new SseParser()
  const decoder = new TextDecoder()
  const reader = body.getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      yield* parser.push(decoder.decode(value, { stream: true }))
    }
    yield* parser.push(decoder.decode())
    yield* parser.end()
  } finally {
    // Whoever stops reading early also ends the request; a stream that has failed has nothing to cancel.
    await reader.cancel().catch(() => undefined)
  }
}
