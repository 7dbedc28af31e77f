import { afterAll, describe, expect, test } from "bun:test"

import { EngineCore } from "../../src/engine/core.ts"
import { ModelRunner } from "../../src/engine/model-runner.ts"
import { Scheduler } from "../../src/engine/scheduler.ts"
import { BlockManager } from "../../src/kvcache/block-manager.ts"
import { Backend } from "../../src/native/backend.ts"
import type { GenerateParams, TokenEvent } from "../../src/worker/protocol.ts"
import { GREEDY } from "./fake-runner.ts"
import { jsLogit, JsModel, jsPool } from "./js-model.ts"

const VOCAB = 97
const PAGE = 8
const backend = new Backend({ threads: 2 })
afterAll(() => backend[Symbol.dispose]())

interface Limits {
  readonly pages?: number
  readonly maxBatchSize?: number
  readonly maxBatchTokens?: number
  readonly prefixCache?: boolean
  readonly scale?: number
}

/** Runs requests at once and returns each one's events. */
function run(
  requests: readonly (readonly [Int32Array, GenerateParams])[],
  limits: Limits = {},
): { events: TokenEvent[][]; model: JsModel; preemptions: number } {
  const { pages = 64, maxBatchSize = 8, maxBatchTokens = 32, prefixCache = true } = limits
  const contextLength = 128
  using pool = jsPool(backend, pages, PAGE)
  const model = new JsModel(VOCAB, limits.scale)
  const sizes = { maxBatchSize, maxBatchTokens, contextLength }
  using runner = new ModelRunner(backend, model, pool, sizes)
  const blocks = new BlockManager({ pages, pageSize: PAGE, prefixCache })
  const scheduler = new Scheduler(sizes, blocks)
  const core = new EngineCore(runner, scheduler, blocks, { vocabSize: VOCAB, ropeKey: (n) => n })
  const events: TokenEvent[][] = requests.map(() => [])
  for (const [id, [ids, params]] of requests.entries()) core.add(id, ids, params)
  while (core.hasWork) for (const event of core.step()) events[event.id]?.push(event)
  return { events, model, preemptions: scheduler.numPreemptions }
}

const tokens = (events: readonly TokenEvent[] | undefined): number[] =>
  (events ?? []).map((event) => event.token)
const prompt = (length: number, seed = 1): Int32Array =>
  Int32Array.from({ length }, (_, i) => (i * seed * 7 + seed) % VOCAB)

const mixed: [Int32Array, GenerateParams][] = [
  [prompt(5), GREEDY],
  [prompt(40, 2), { ...GREEDY, temperature: 1, seed: 7 }],
  [prompt(33, 3), { ...GREEDY, temperature: 0.8, topK: 5, seed: 8, logprobs: 3 }],
  [prompt(70, 4), { ...GREEDY, repetitionPenalty: 1.3, frequencyPenalty: 0.5 }],
  [prompt(1, 5), { ...GREEDY, temperature: 2, topP: 0.9, minP: 0.01, seed: -3 }],
  [prompt(16, 6), { ...GREEDY, logitBias: [[11, 5]], logprobs: 0 }],
]

describe("model runner", () => {
  test("tokens do not depend on batch, chunks, pages or preemption", () => {
    const alone = mixed.map((request) => run([request]).events[0] as TokenEvent[])
    for (const limits of [
      {},
      { maxBatchTokens: 6, maxBatchSize: 3 },
      { maxBatchTokens: 200, prefixCache: false },
      { pages: 16 },
    ]) {
      const { events } = run(mixed, limits)
      for (const i of mixed.keys()) expect(tokens(events[i])).toEqual(tokens(alone[i]))
    }
    expect(run(mixed, { pages: 16 }).preemptions).toBeGreaterThan(0)
  })

  test("log-probabilities of a prompt are those that its prefixes give", () => {
    const ids = prompt(70, 4)
    // the model's distribution after each prefix, in float64
    const want = Array.from({ length: ids.length - 1 }, (_, i) => {
      let state = 1
      for (const token of ids.slice(0, i + 1)) state = Math.imul(state, 31) + token * 7 + ids.length
      const logits = Array.from({ length: VOCAB }, (_, v) => jsLogit(state, v, 3))
      const sum = logits.reduce((total, x) => total + Math.exp(x), 0)
      return (logits[ids[i + 1] as number] as number) - Math.log(sum)
    })
    const request = [ids, { ...GREEDY, promptLogprobs: 2 }] as const
    const alone = run([[ids, GREEDY]]).events[0]
    for (const limits of [{}, { maxBatchTokens: 9 }, { maxBatchTokens: 500 }, { pages: 16 }]) {
      const requests = [request, [prompt(50, 3), GREEDY], request, [ids, GREEDY]] as const
      const { events } = run(requests, limits)
      for (const i of [0, 2, 3]) expect(tokens(events[i])).toEqual(tokens(alone))
      expect(events[3]?.[0]?.promptLogprobs).toBeUndefined()
      for (const i of [0, 2]) {
        const got = events[i]?.[0]?.promptLogprobs ?? []
        expect(got).toHaveLength(ids.length - 1)
        for (const [p, { logprob, top }] of got.entries()) {
          expect(logprob).toBeCloseTo(want[p] as number, 5)
          expect(top).toHaveLength(2)
        }
      }
    }
  })

  test("phases say what a batch holds", () => {
    const { model } = run([[prompt(20), GREEDY]])
    expect([...model.phases]).toEqual(["prefill", "decode"])
    expect([...run(mixed).model.phases]).toContain("mixed")
  })

  test("a seed gives the same tokens again, another one others", () => {
    const sampled = (seed: number): number[] =>
      tokens(run([[prompt(9), { ...GREEDY, temperature: 1, maxTokens: 40, seed }]]).events[0])
    expect(sampled(1)).toEqual(sampled(1))
    expect(sampled(1)).not.toEqual(sampled(2))
    const params = { ...GREEDY, temperature: 1, maxTokens: 40 }
    const [a, b] = run([
      [prompt(9), params],
      [prompt(9), params],
    ]).events
    expect(tokens(a)).not.toEqual(tokens(b))
  })

  test("draws follow the model's distribution", () => {
    const counts = new Float64Array(VOCAB)
    let logprobOf: readonly (readonly [number, number])[] = []
    const params = { ...GREEDY, temperature: 1, maxTokens: 1, logprobs: VOCAB }
    for (let batch = 0; batch < 50; batch++) {
      const requests = Array.from({ length: 80 }, (_, i) => {
        return [prompt(9), { ...params, seed: batch * 80 + i }] as const
      })
      for (const [event] of run(requests, { maxBatchSize: 80, maxBatchTokens: 800, pages: 200 })
        .events) {
        if (event === undefined) throw new Error("no event")
        counts[event.token] = (counts[event.token] as number) + 1
        logprobOf = event.topLogprobs ?? []
      }
    }
    expect(logprobOf).toHaveLength(VOCAB)
    let chi2 = 0
    for (const [token, logprob] of logprobOf) {
      const want = 4000 * Math.exp(logprob)
      chi2 += ((counts[token] as number) - want) ** 2 / want
    }
    // 96 degrees of freedom: 170 is beyond the 0.99999 quantile
    expect(chi2).toBeLessThan(170)
  })

  test("log-probabilities are the model's own, best first, and come only where asked for", () => {
    const { events } = run(mixed)
    for (const event of events[0] ?? []) expect(event.logprob).toBeUndefined()
    for (const event of events[2] ?? []) {
      expect(event.topLogprobs).toHaveLength(3)
      const values = (event.topLogprobs ?? []).map(([, logprob]) => logprob)
      expect(values).toEqual(values.toSorted((a, b) => b - a))
      const own = event.topLogprobs?.find(([token]) => token === event.token)
      if (own !== undefined) expect(own[1]).toBeCloseTo(event.logprob as number, 6)
      expect(event.logprob).toBeLessThan(0)
    }
    for (const event of events[5] ?? []) {
      expect(event.topLogprobs).toEqual([])
      expect(event.logprob).toBeLessThan(0)
    }
  })

  test("penalties and biases change what is chosen", () => {
    const plain = tokens(run([[prompt(70, 4), { ...GREEDY, maxTokens: 40 }]]).events[0])
    const twice = [prompt(70, 4), { ...GREEDY, maxTokens: 40, presencePenalty: 100 }] as const
    const fresh = tokens(run([twice]).events[0])
    expect(new Set(fresh).size).toBe(40)
    expect(new Set(plain).size).toBeLessThan(40)
    const biased = { ...GREEDY, logitBias: [[11, 100]] as const }
    expect(new Set(tokens(run([[prompt(4), biased]]).events[0]))).toEqual(new Set([11]))
  })

  test("steps allocate nothing native once they have been seen", () => {
    let slabs = 0
    const library = { ...backend.library }
    library.kt_slab_create = (...args) => {
      slabs++
      return backend.library.kt_slab_create(...args)
    }
    using counted = new Backend({ threads: 1 }, library)
    using pool = jsPool(counted, 32, PAGE)
    const sizes = { maxBatchSize: 4, maxBatchTokens: 16, contextLength: 128 }
    using runner = new ModelRunner(counted, new JsModel(VOCAB), pool, sizes)
    const blocks = new BlockManager({ pages: 32, pageSize: PAGE, prefixCache: true })
    const scheduler = new Scheduler(sizes, blocks)
    const core = new EngineCore(runner, scheduler, blocks, { vocabSize: VOCAB })
    for (const id of [1, 2, 3])
      core.add(id, prompt(20, id), { ...GREEDY, temperature: 1, maxTokens: 80, topK: 4 })
    for (let i = 0; i < 10; i++) core.step()
    const before = slabs
    while (core.hasWork) core.step()
    expect(slabs).toBe(before)
  })
})
