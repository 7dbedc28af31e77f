import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { headerBytes } from "../../src/kvcache/block-record.ts"
import type { GenerateParams } from "../../src/worker/protocol.ts"
import { FakeDisk } from "../kvcache/fake-disk.ts"
import {
  collect,
  drain,
  expected,
  type FakeEngine,
  fakeEngine,
  type FakeOptions,
  GREEDY,
  VOCAB,
} from "./fake-runner.ts"

interface Request {
  readonly prompt: readonly number[]
  readonly params: GenerateParams
  /** Step before which it arrives. */
  readonly at: number
  /** Step before which it is aborted, if it still runs. */
  readonly abortAt: number | undefined
}

/** Few different tokens and common beginnings, so that prefixes are often shared. */
const prompts = fc
  .tuple(
    fc.integer({ min: 0, max: 3 }),
    fc.array(fc.integer({ min: 0, max: 2 }), { maxLength: 40 }),
  )
  .map(([shared, rest]) => [...Array.from({ length: shared * 7 }, (_, i) => i % 5), ...rest])

const requests: fc.Arbitrary<Request> = fc.record({
  prompt: prompts,
  params: fc
    .record({
      maxTokens: fc.integer({ min: 1, max: 30 }),
      stop: fc.integer({ min: 0, max: VOCAB }),
    })
    .map(({ maxTokens, stop }) => ({ ...GREEDY, maxTokens, stopTokens: [stop] })),
  at: fc.integer({ min: 0, max: 30 }),
  abortAt: fc.option(fc.integer({ min: 0, max: 40 }), { nil: undefined, freq: 4 }),
})

const options: fc.Arbitrary<FakeOptions> = fc.record({
  pages: fc.integer({ min: 1, max: 24 }),
  pageSize: fc.constantFrom(1, 2, 4, 8),
  maxBatchSize: fc.integer({ min: 1, max: 6 }),
  maxBatchTokens: fc.constantFrom(1, 2, 5, 16, 64),
  contextLength: fc.integer({ min: 2, max: 96 }),
  prefixCache: fc.boolean(),
  // a choice that changes with the length, as longrope's does
  ropeKey: fc.constantFrom(
    undefined,
    (length: number) => (length > 20 ? 1 : 0),
    (n: number) => n,
  ),
  // hashes that collide all the time must cost hits, never correctness
  hash: fc.constantFrom(
    undefined,
    () => 1,
    (_: number, tokens: Int32Array) => tokens[0] ?? 0,
  ),
  snapshots: fc.constantFrom(undefined, 0, 1, 2, 7),
})

/** Runs requests as they arrive and checks everything that must hold whatever the schedule was. */
function check(config: FakeOptions, all: readonly Request[]): FakeEngine {
  const engine = fakeEngine(config)
  const { core, scheduler, blocks } = engine
  const results = new Map<number, { tokens: number[]; finish?: string }>()
  const aborted = new Set<number>()
  const refused = new Set<number>()
  for (let step = 0; step <= 41; step++) {
    for (const [id, request] of all.entries()) {
      if (request.at === step) {
        try {
          core.add(id, Int32Array.from(request.prompt), request.params)
        } catch (error) {
          expect(String(error)).toMatch(/prompt is empty|leaves no room/)
          refused.add(id)
        }
      }
      if (request.abortAt === step && scheduler.get(id) !== undefined) {
        core.abort(id)
        expect(scheduler.get(id)).toBeUndefined()
        aborted.add(id)
      }
    }
    collect(core.step(), results)
  }
  drain(core, results)
  for (const [id, { prompt, params }] of all.entries()) {
    const tooLong = prompt.length === 0 || prompt.length >= scheduler.maxLength
    expect(refused.has(id)).toBe(tooLong)
    if (tooLong) continue
    const want = expected(prompt, params, scheduler.maxLength, config.ropeKey)
    const got = results.get(id)
    if (aborted.has(id)) {
      expect(got?.finish).toBe("abort")
      expect(got?.tokens ?? []).toEqual(want.slice(0, got?.tokens.length))
    } else {
      expect(got?.tokens).toEqual(want)
      const stopped = params.stopTokens.includes(want.at(-1) as number)
      expect(got?.finish).toBe(stopped ? "stop" : "length")
    }
  }
  expect(blocks.numFree).toBe(blocks.pages)
  for (let page = 0; page < blocks.pages; page++) expect(blocks.refCount(page)).toBe(0)
  expect(blocks.states?.numAvailable).toBe(blocks.states?.slots)
  return engine
}

describe("any requests under any limits", () => {
  test("every sequence gets the tokens it would get alone, ends, and leaves no page behind", () => {
    let preemptions = 0
    let cached = 0
    let cachedWithStates = 0
    fc.assert(
      fc.property(options, fc.array(requests, { maxLength: 10 }), (config, all) => {
        const { scheduler, core } = check(config, all)
        preemptions += scheduler.numPreemptions
        if (config.snapshots === undefined) cached += core.stats().cachedTokensTotal
        else cachedWithStates += core.stats().cachedTokensTotal
      }),
      { numRuns: 3000 },
    )
    // the generator reaches what the property is about
    expect(preemptions).toBeGreaterThan(50)
    expect(cached).toBeGreaterThan(500)
    expect(cachedWithStates).toBeGreaterThan(500)
  }, 60_000)

  test("other tiers change no token, however slow and unreliable they are, and give blocks back", () => {
    const tiers = fc.record({
      hostSlots: fc.integer({ min: 1, max: 40 }),
      disk: fc.option(
        fc.record({
          delay: fc.integer({ min: 0, max: 4 }),
          badRead: fc.constantFrom(0, 2, 5),
          badWrite: fc.constantFrom(0, 1, 7),
          dropEvery: fc.constantFrom(0, 3, 40),
        }),
        { nil: undefined },
      ),
    })
    const totals = { hostHits: 0, diskHits: 0, diskFailures: 0, diskDrops: 0, restarted: 0 }
    fc.assert(
      fc.property(options, tiers, fc.array(requests, { maxLength: 12 }), (config, below, all) => {
        const disk =
          below.disk && new FakeDisk({ ...below.disk, headerBytes: headerBytes(config.pageSize) })
        const run = { ...config, prefixCache: true, tiers: { hostSlots: below.hostSlots, disk } }
        const first = check(run, all).blocks.tiers?.stats()
        disk?.reopen()
        const again = check(run, all).blocks.tiers?.stats()
        for (const stats of [first, again]) {
          totals.hostHits += stats?.hostHits ?? 0
          totals.diskHits += stats?.diskHits ?? 0
          totals.diskFailures += stats?.diskFailures ?? 0
          totals.diskDrops += stats?.diskDrops ?? 0
        }
        totals.restarted += again?.diskHits ?? 0
      }),
      { numRuns: 1500 },
    )
    expect(totals.hostHits).toBeGreaterThan(100)
    expect(totals.diskHits).toBeGreaterThan(200)
    expect(totals.restarted).toBeGreaterThan(200)
    expect(totals.diskFailures).toBeGreaterThan(50)
    expect(totals.diskDrops).toBeGreaterThan(50)
  }, 60_000)

  test("a failed step ends its sequences and nobody else's", () => {
    fc.assert(
      fc.property(options, fc.array(requests, { maxLength: 8 }), fc.nat(20), (config, all, at) => {
        const { core, blocks, runner } = fakeEngine(config)
        const results = new Map<number, { tokens: number[]; finish?: string }>()
        let added = 0
        for (const [id, { prompt, params }] of all.entries()) {
          try {
            core.add(id, Int32Array.from(prompt), params)
            added++
          } catch {}
        }
        for (let i = 0; i < at; i++) collect(core.step(), results)
        runner.failNext = true
        drain(core, results)
        expect(results.size).toBe(added)
        for (const { finish } of results.values()) expect(finish).toBeDefined()
        expect(blocks.numFree).toBe(blocks.pages)
        expect(blocks.states?.numAvailable).toBe(blocks.states?.slots)
      }),
      { numRuns: 300 },
    )
  })
})

const ROOMY: FakeOptions = {
  pages: 64,
  pageSize: 4,
  maxBatchSize: 4,
  maxBatchTokens: 16,
  contextLength: 128,
  prefixCache: true,
}
const ids = (length: number, first = 0): Int32Array =>
  Int32Array.from({ length }, (_, i) => (first + i) % VOCAB)

describe("prefix reuse", () => {
  test("a repeated prompt computes its last page only, and says so", () => {
    const { core, runner } = fakeEngine(ROOMY)
    core.add(1, ids(20), GREEDY)
    drain(core)
    const before = runner.computed
    core.add(2, ids(20), { ...GREEDY, maxTokens: 1 })
    const [event] = core.step()
    // 20 tokens are 5 pages; the last one must be computed, and with it its page
    expect(event?.first?.cachedTokens).toBe(16)
    expect(runner.computed - before).toBe(4)
  })

  test("the rope choice is part of the key", () => {
    const { core } = fakeEngine({ ...ROOMY, ropeKey: (length) => (length > 16 ? 1 : 0) })
    const cachedOf = (id: number, length: number): number | undefined => {
      core.add(id, ids(length), { ...GREEDY, maxTokens: 1 })
      return core.step().find((event) => event.id === id)?.first?.cachedTokens
    }
    expect(cachedOf(1, 12)).toBe(0)
    expect(cachedOf(2, 14)).toBe(12)
    // 17 tokens rotate their first 12 otherwise
    for (let i = 0; i < 2; i++) core.step()
    core.add(3, ids(17), { ...GREEDY, maxTokens: 1 })
    const events = [...core.step(), ...core.step()]
    expect(events.find((event) => event.id === 3)?.first?.cachedTokens).toBe(0)
  })

  test("generated tokens are reused by the next turn of a conversation", () => {
    const { core } = fakeEngine(ROOMY)
    core.add(1, ids(10), { ...GREEDY, maxTokens: 11 })
    const said = drain(core).get(1)?.tokens as number[]
    core.add(2, Int32Array.from([...ids(10), ...said, 3]), { ...GREEDY, maxTokens: 1 })
    // of 21 tokens the last was never computed: 20 are five pages
    expect(core.step()[0]?.first?.cachedTokens).toBe(20)
  })

  test("prefixes are dropped oldest use first, from their end, when pages run out", () => {
    const { core, blocks } = fakeEngine({ ...ROOMY, pages: 8, contextLength: 32 })
    const once = (id: number, prompt: Int32Array): number | undefined => {
      core.add(id, prompt, { ...GREEDY, maxTokens: 1 })
      return core.step()[0]?.first?.cachedTokens
    }
    once(1, ids(13))
    once(2, ids(13, 20))
    expect(blocks.numIdle).toBe(6)
    expect(once(3, ids(13))).toBe(12)
    once(4, ids(13, 30))
    // two pages had to go: the last ones of the second prompt, which was used longest ago
    expect(once(5, ids(13))).toBe(12)
    expect(once(6, ids(13, 20))).toBe(4)
  })
})

describe("reuse where layers keep states", () => {
  const STATES: FakeOptions = { ...ROOMY, maxBatchTokens: 64, snapshots: 4 }
  /** Tokens of the prompt that were found, when the sequence has ended. */
  function cachedOf(engine: FakeEngine, id: number, prompt: Int32Array, maxTokens = 1): number {
    engine.core.add(id, prompt, { ...GREEDY, maxTokens })
    for (let found: number | undefined; engine.core.hasWork;)
      for (const event of engine.core.step()) {
        found ??= event.first?.cachedTokens
        if (event.finish !== undefined) return found as number
      }
    throw new Error("no end")
  }

  test("a repeated prompt begins at the last page boundary before its end", () => {
    const engine = fakeEngine(STATES)
    expect(cachedOf(engine, 1, ids(23))).toBe(0)
    expect(cachedOf(engine, 2, ids(23))).toBe(20)
    // its pages are known to 20, its state only there: a shorter prompt finds pages and no state
    expect(cachedOf(engine, 3, ids(18))).toBe(0)
    expect(cachedOf(engine, 4, ids(18))).toBe(16)
  })

  test("the second with a beginning marks it for the third", () => {
    const engine = fakeEngine(STATES)
    const ask = (last: number): Int32Array => Int32Array.from([...ids(14), last, last, last, last])
    expect(cachedOf(engine, 1, ask(40))).toBe(0)
    expect(cachedOf(engine, 2, ask(41))).toBe(0)
    expect(cachedOf(engine, 3, ask(42))).toBe(12)
  })

  test("an answer is reused to its last page boundary, and the snapshots before it are given up", () => {
    const engine = fakeEngine(STATES)
    engine.core.add(1, ids(10), { ...GREEDY, maxTokens: 40 })
    const said = drain(engine.core).get(1)?.tokens as number[]
    // the prompt's and the answer's
    expect(engine.blocks.states?.numSnapshots).toBe(2)
    const next = Int32Array.from([...ids(10), ...said, 3])
    // of 50 tokens the last was not computed, 48 are whole pages
    expect(cachedOf(engine, 2, next)).toBe(48)
  })

  test("the least recently used snapshot goes first; none are kept without room", () => {
    const engine = fakeEngine({ ...STATES, maxBatchSize: 1, snapshots: 2 })
    for (const id of [1, 2]) cachedOf(engine, id, ids(9, 10 * id))
    expect(cachedOf(engine, 3, ids(9, 10))).toBe(8)
    cachedOf(engine, 4, ids(9, 30))
    expect(cachedOf(engine, 5, ids(9, 10))).toBe(8)
    expect(cachedOf(engine, 6, ids(9, 20))).toBe(0)
    const bare = fakeEngine({ ...STATES, maxBatchSize: 1, snapshots: 0 })
    for (const id of [1, 2]) expect(cachedOf(bare, id, ids(20))).toBe(0)
    expect(bare.blocks.states?.numSnapshots).toBe(0)
  })

  test("fewer slots than sequences that run are refused", () => {
    expect(() => fakeEngine({ ...STATES, maxBatchSize: 4, snapshots: -1 })).toThrow(
      "3 state slots for 4 sequences",
    )
  })
})

describe("order and fairness", () => {
  test("a prompt's progress is told where it is asked for, before it and after each of its steps", () => {
    const { core } = fakeEngine({
      pages: 16,
      pageSize: 4,
      maxBatchSize: 2,
      maxBatchTokens: 8,
      contextLength: 64,
      prefixCache: true,
    })
    const prompt = Int32Array.from({ length: 20 }, (_, i) => i % 7)
    const progress = (tellsProgress: boolean, id: number): unknown[] => {
      core.add(id, prompt, { ...GREEDY, maxTokens: 2, tellsProgress })
      const told: unknown[] = []
      while (core.hasWork)
        for (const event of core.step())
          if (event.progress !== undefined) {
            const { ms, ...rest } = event.progress
            expect(ms).toBeGreaterThanOrEqual(0)
            told.push(rest)
          }
      return told
    }
    const at = (cached: number, processed: number): object => ({ total: 20, cached, processed })
    expect(progress(true, 1)).toEqual([at(0, 0), at(0, 8), at(0, 16), at(0, 20)])
    expect(progress(true, 2)).toEqual([at(16, 16), at(16, 20)])
    expect(progress(false, 3)).toEqual([])
  })

  test("prompts do not keep running sequences from their token", () => {
    const { core } = fakeEngine({ ...ROOMY, maxBatchTokens: 4 })
    core.add(1, ids(3), { ...GREEDY, maxTokens: 40 })
    expect(core.step().map((event) => event.id)).toEqual([1])
    core.add(2, ids(60, 7), GREEDY)
    for (let i = 0; i < 19; i++) expect(core.step().map((event) => event.id)).toEqual([1])
    expect(core.step().map((event) => event.id)).toEqual([1, 2])
  })

  test("who came first starts first, also behind a long prompt", () => {
    const { core } = fakeEngine({ ...ROOMY, maxBatchSize: 1 })
    const first: number[] = []
    core.add(1, ids(100), { ...GREEDY, maxTokens: 3 })
    core.add(2, ids(1), { ...GREEDY, maxTokens: 3 })
    core.add(3, ids(2), { ...GREEDY, maxTokens: 3 })
    while (core.hasWork) for (const e of core.step()) if (e.first) first.push(e.id)
    expect(first).toEqual([1, 2, 3])
  })

  test("the youngest gives way when pages run out, and still gets the same tokens", () => {
    const { core, scheduler } = fakeEngine({ ...ROOMY, pages: 10, prefixCache: false })
    const params = { ...GREEDY, maxTokens: 20 }
    for (const id of [1, 2, 3]) core.add(id, ids(8, id), params)
    const ends: number[] = []
    const results = new Map<number, { tokens: number[]; finish?: string }>()
    while (core.hasWork) {
      const events = core.step()
      collect(events, results)
      for (const event of events) if (event.finish) ends.push(event.id)
    }
    expect(scheduler.numPreemptions).toBeGreaterThan(0)
    expect(ends).toEqual([1, 2, 3])
    for (const id of [1, 2, 3])
      expect(results.get(id)?.tokens).toEqual(expected([...ids(8, id)], params, 40))
  })
})

describe("refusals", () => {
  test("each names what is wrong", () => {
    const { core } = fakeEngine({ ...ROOMY, pages: 4 })
    const add = (prompt: Int32Array, params: Partial<GenerateParams> = {}): (() => void) => {
      return () => core.add(1, prompt, { ...GREEDY, ...params })
    }
    expect(add(new Int32Array(0))).toThrow("the prompt is empty")
    expect(add(ids(16))).toThrow(
      "16 tokens leaves no room for an answer in the 16 tokens that the KV",
    )
    expect(add(Int32Array.of(1, VOCAB))).toThrow(`prompt token 1 is ${VOCAB}`)
    expect(add(ids(3), { maxTokens: 0 })).toThrow("maxTokens 0: expected an integer in 1..")
    expect(add(ids(3), { temperature: -1 })).toThrow("temperature -1")
    expect(add(ids(3), { topP: Number.NaN })).toThrow("topP NaN")
    expect(add(ids(3), { logitBias: [[VOCAB, 1]] })).toThrow(`logitBias token ${VOCAB}`)
    expect(core.hasWork).toBe(false)
    core.add(1, ids(3), GREEDY)
    expect(add(ids(3))).toThrow("sequence 1 exists already")
    const { core: small } = fakeEngine({ ...ROOMY, contextLength: 8 })
    expect(() => small.add(1, ids(8), GREEDY)).toThrow("in the context of 8")
  })
})
