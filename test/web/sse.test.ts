import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { MAX_EVENT_CHARS, readEvents, SseParser } from "../../src/web/sse.ts"

function parse(pieces: readonly string[]): string[] {
  const parser = new SseParser()
  return [...pieces.flatMap((piece) => parser.push(piece)), ...parser.end()]
}

describe("SseParser", () => {
  test("reads events, skips comments and other fields", () => {
    const text = ': heartbeat\n\nevent: x\nid: 1\ndata: {"a":1}\nretry: 5\n\ndata:[DONE]\n\n'
    expect(parse([text])).toEqual(['{"a":1}', "[DONE]"])
  })

  test("joins data lines and keeps all but one leading space", () => {
    expect(parse(["data: a\ndata:  b\ndata\n\n"])).toEqual(["a\n b\n"])
  })

  test("does not take other fields that begin with data", () => {
    expect(parse(["database: x\n\n"])).toEqual([])
  })

  test("reads LF, CR and CRLF", () => {
    expect(parse(["data: a\r\n\r\ndata: b\r\rdata: c\n\n"])).toEqual(["a", "b", "c"])
  })

  test("gives the last event when the stream closes without a blank line", () => {
    expect(parse(["data: [DONE]"])).toEqual(["[DONE]"])
    expect(parse(["data: a\r"])).toEqual(["a"])
  })

  test("gives the same events wherever the stream is cut", () => {
    const text = ': hi\r\n\r\ndata: {"t":"über"}\r\n\r\ndata: x\ndata: y\n\ndata: [DONE]\n\n'
    const whole = parse([text])
    fc.assert(
      fc.property(fc.array(fc.nat(text.length)), (cuts) => {
        const places = [0, ...cuts.sort((a, b) => a - b), text.length]
        const pieces = places.slice(1).map((end, i) => text.slice(places[i], end))
        expect(parse(pieces)).toEqual(whole)
      }),
    )
  })

  test("refuses an event without end", () => {
    const parser = new SseParser()
    const piece = "x".repeat(1_000_000)
    const fill = (): void => {
      for (let i = 0; i <= MAX_EVENT_CHARS / piece.length; i++) parser.push(piece)
    }
    expect(fill).toThrow("event too long")
  })
})

test("readEvents joins characters that are cut between bytes", async () => {
  const bytes = new TextEncoder().encode("data: grün 漢字 🙂\n\n")
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const byte of bytes) controller.enqueue(Uint8Array.of(byte))
      controller.close()
    },
  })
  expect(await Array.fromAsync(readEvents(body))).toEqual(["grün 漢字 🙂"])
})
