import { afterEach, describe, expect, test } from "bun:test"

import { MAX_QUEUED_EVENTS, startEngine, type StartOptions } from "../../src/worker/client.ts"
import type { EngineClient, GenerateParams, TokenEvent } from "../../src/worker/protocol.ts"
import { expected, GREEDY, VOCAB } from "../engine/fake-runner.ts"

const worker = new URL("./fake-worker.ts", import.meta.url)
const open: EngineClient[] = []

async function start(
  options: Record<string, unknown> = {},
  hooks: StartOptions = {},
): Promise<EngineClient> {
  const client = await startEngine(options, { ...hooks, worker })
  open.push(client)
  return client
}

afterEach(async () => {
  for (const client of open.splice(0)) await client.close()
})

const prompt = (length: number): Int32Array =>
  Int32Array.from({ length }, (_, i) => (i * 7) % VOCAB)

async function all(stream: AsyncIterable<readonly TokenEvent[]>): Promise<TokenEvent[]> {
  const events: TokenEvent[] = []
  for await (const some of stream) events.push(...some)
  return events
}

describe("loading", () => {
  test("progress and log messages arrive before the client does", async () => {
    const seen: unknown[] = []
    const client = await start(
      {},
      { onProgress: (...args) => seen.push(args), onLog: (...args) => seen.push(args) },
    )
    expect(seen).toEqual([
      ["weights", 0, 10],
      ["weights", 10, 10],
      ["warning", "scalar kernels"],
    ])
    expect(client.info.vocabSize).toBe(VOCAB)
  })

  test("a failure is the error, with its hint, and leaves no thread", async () => {
    const error = await start({ fail: true }).catch((e: unknown) => e)
    expect(error).toMatchObject({ message: "not enough memory", hint: "--ctx 8 fits" })
  })

  test("a Worker that cannot start is an error", async () => {
    const missing = new URL("./no-such-worker.ts", import.meta.url)
    expect(startEngine({}, { worker: missing })).rejects.toThrow("the engine stopped")
  })
})

describe("streams", () => {
  test("sequences beside each other get their own tokens", async () => {
    const client = await start()
    const params: GenerateParams = { ...GREEDY, maxTokens: 50 }
    const results = await Promise.all(
      [3, 40, 17, 1, 29, 8].map((length) => all(client.generate(prompt(length), params))),
    )
    for (const [i, length] of [3, 40, 17, 1, 29, 8].entries()) {
      const events = results[i] as TokenEvent[]
      const want = expected([...prompt(length)], params, 4096)
      expect(events.map((event) => event.token)).toEqual(want)
      expect(events[0]?.first?.promptTokens).toBe(length)
      expect(events.at(-1)?.finish).toBe("length")
    }
    const stats = await client.stats()
    expect(stats).toMatchObject({ running: 0, waiting: 0, generatedTokensTotal: 300 })
    expect(stats.kvPagesFree).toBe(stats.kvPagesTotal)
  })

  test("the caller's ids stay the caller's", async () => {
    const client = await start()
    const ids = prompt(9)
    await all(client.generate(ids, GREEDY))
    expect(ids).toEqual(prompt(9))
  })

  test("tokens that come fast go out together, the first and the last at once", async () => {
    const client = await start({ stepMs: 2, streamIntervalMs: 50 })
    const batches: number[] = []
    for await (const events of client.generate(prompt(4), { ...GREEDY, maxTokens: 60 }))
      batches.push(events.length)
    expect(batches[0]).toBe(1)
    expect(batches.reduce((a, b) => a + b)).toBe(60)
    expect(batches.length).toBeLessThan(10)
    expect(Math.max(...batches)).toBeGreaterThan(5)
  })

  test("leaving the loop ends the sequence within one step", async () => {
    const client = await start({ stepMs: 5 })
    let seen = 0
    for await (const _ of client.generate(prompt(4), { ...GREEDY, maxTokens: 4000 }))
      if (++seen === 5) break
    const before = (await client.stats()).stepsTotal
    await Bun.sleep(50)
    const stats = await client.stats()
    expect(stats).toMatchObject({ running: 0, stepsTotal: before })
    expect(stats.generatedTokensTotal).toBeLessThanOrEqual(seen + 2)
    expect(stats.kvPagesFree).toBe(stats.kvPagesTotal)
  })

  test("a signal ends it at once, and one that was set before starts nothing", async () => {
    const client = await start({ stepMs: 20 })
    const controller = new AbortController()
    const reading = all(
      client.generate(prompt(4), { ...GREEDY, maxTokens: 4000 }, controller.signal),
    )
    await Bun.sleep(50)
    const asked = performance.now()
    controller.abort()
    const events = await reading
    expect(performance.now() - asked).toBeLessThan(15)
    expect(events.at(-1)).toMatchObject({ token: -1, finish: "abort" })
    await Bun.sleep(30)
    expect((await client.stats()).running).toBe(0)
    const none = await all(client.generate(prompt(4), GREEDY, controller.signal))
    expect(none).toMatchObject([{ finish: "abort" }])
  })

  test("an abort while others run does not touch them", async () => {
    const client = await start()
    const params = { ...GREEDY, maxTokens: 400 }
    const kept = all(client.generate(prompt(30), params))
    for await (const _ of client.generate(prompt(12), params)) break
    expect((await kept).map((event) => event.token)).toEqual(
      expected([...prompt(30)], params, 4096),
    )
  })
})

describe("refusals and failures", () => {
  test("empty and long prompts are refused before anything is sent", async () => {
    const client = await start()
    expect(() => client.generate(new Int32Array(0), GREEDY)).toThrow("the prompt is empty")
    expect(() => client.generate(prompt(4096), GREEDY)).toThrow("in the context of 4096")
    expect((await client.stats()).stepsTotal).toBe(0)
  })

  test("what the engine refuses or fails at ends that sequence with the reason", async () => {
    const client = await start()
    const wrong = await all(client.generate(Int32Array.of(VOCAB), GREEDY))
    expect(wrong).toMatchObject([{ finish: "error", error: expect.stringContaining("vocabulary") }])
    const thrown = await all(client.generate(prompt(3), { ...GREEDY, seed: 667 }))
    expect(thrown).toMatchObject([{ finish: "error", error: "no such thing" }])
    const failed = await all(client.generate(prompt(3), { ...GREEDY, seed: 668 }))
    expect(failed).toMatchObject([{ finish: "error", error: "the step failed" }])
    expect(await all(client.generate(prompt(3), GREEDY))).toHaveLength(16)
  })

  test("a dead Worker fails every stream, and what is asked later, with one sentence", async () => {
    const client = await start({ stepMs: 1 })
    const params = { ...GREEDY, maxTokens: 4000 }
    const streams = [10, 20].map((n) => all(client.generate(prompt(n), params)))
    const outcome = Promise.allSettled(streams)
    await Bun.sleep(10)
    const last = await all(client.generate(prompt(5), { ...params, seed: 666 })).catch((e) => e)
    expect(String(last)).toContain("the engine stopped")
    for (const { reason } of (await outcome) as PromiseRejectedResult[]) expect(reason).toBe(last)
    expect(() => client.generate(prompt(3), GREEDY)).toThrow("the engine stopped")
    expect(client.stats()).rejects.toThrow("the engine stopped")
  })

  test("a reader that stops reading loses its sequence, not the engine's memory", async () => {
    const client = await start()
    const params = { ...GREEDY, maxTokens: MAX_QUEUED_EVENTS + 2000 }
    const reader = client.generate(prompt(4), params)[Symbol.asyncIterator]()
    await reader.next()
    for (let i = 0; i < 500 && (await client.stats()).running > 0; i++) await Bun.sleep(20)
    const read = async (): Promise<number> => {
      for (let n = 1; ; n++) if ((await reader.next()).done) return n
    }
    expect(read()).rejects.toThrow(`${MAX_QUEUED_EVENTS} tokens behind`)
    expect(await all(client.generate(prompt(4), GREEDY))).toHaveLength(16)
  })

  test("close() aborts what runs, disposes of the engine, and can be called twice", async () => {
    const log: string[] = []
    const client = await start({ stepMs: 2 }, { onLog: (_, message) => log.push(message) })
    const reading = all(client.generate(prompt(8), { ...GREEDY, maxTokens: 4000 }))
    await Bun.sleep(20)
    await Promise.all([client.close(), client.close()])
    expect((await reading).at(-1)?.finish).toBe("abort")
    expect(log).toContain("disposed")
    expect(() => client.generate(prompt(3), GREEDY)).toThrow("the engine is closed")
  })
})
