import { afterAll, describe, expect, test } from "bun:test"

import fc from "fast-check"

import { EngineCore } from "../../src/engine/core.ts"
import { DraftModel } from "../../src/engine/draft-model.ts"
import { ModelRunner } from "../../src/engine/model-runner.ts"
import { NgramDraft } from "../../src/engine/ngram.ts"
import { Scheduler } from "../../src/engine/scheduler.ts"
import { Sequence } from "../../src/engine/sequence.ts"
import { type Drafter, MAX_DRAFT_ROWS, Speculation } from "../../src/engine/speculation.ts"
import { BlockManager } from "../../src/kvcache/block-manager.ts"
import { Backend } from "../../src/native/backend.ts"
import type { EngineStats, GenerateParams, TokenEvent } from "../../src/worker/protocol.ts"
import { GREEDY } from "./fake-runner.ts"
import { JsModel, jsPool } from "./js-model.ts"

const VOCAB = 97
const PAGE = 8
const backend = new Backend({ threads: 2 })
afterAll(() => backend[Symbol.dispose]())

type Request = readonly [Int32Array, GenerateParams]

interface Limits {
  readonly pages?: number
  readonly maxBatchSize?: number
  readonly maxBatchTokens?: number
  readonly prefixCache?: boolean
}

interface Run {
  readonly events: TokenEvent[][]
  readonly stats: EngineStats
  readonly steps: number
}

/** Knows what will be generated, and says so except where `isWrong`. */
class Oracle implements Drafter {
  readonly #texts: readonly (readonly number[])[]
  readonly #isWrong: () => boolean
  observed = 0

  constructor(texts: readonly (readonly number[])[], isWrong: () => boolean) {
    this.#texts = texts
    this.#isWrong = isWrong
  }

  propose(seqs: readonly Sequence[], most: number): void {
    for (const seq of seqs) {
      const text = this.#texts[seq.id] ?? []
      for (let i = 0; i < Math.min(most, 6); i++) {
        const token = text[seq.numGenerated + i] ?? 1
        seq.guess(this.#isWrong() ? (token + 1) % VOCAB : token)
      }
    }
  }

  observe(_: Sequence, drafted: number, accepted: number): void {
    if (accepted > drafted || drafted > MAX_DRAFT_ROWS) throw new Error(`${accepted} of ${drafted}`)
    this.observed += drafted
  }
}

function run(requests: readonly Request[], limits: Limits = {}, drafter?: Drafter): Run {
  const { pages = 64, maxBatchSize = 8, maxBatchTokens = 48, prefixCache = true } = limits
  using pool = jsPool(backend, pages, PAGE)
  const sizes = { maxBatchSize, maxBatchTokens, contextLength: 128, maxDraftTokens: MAX_DRAFT_ROWS }
  using runner = new ModelRunner(backend, new JsModel(VOCAB), pool, sizes)
  const blocks = new BlockManager({ pages, pageSize: PAGE, prefixCache })
  const core = new EngineCore(
    runner,
    new Scheduler(sizes, blocks),
    blocks,
    { vocabSize: VOCAB, ropeKey: (n) => n },
    drafter && new Speculation(drafter),
  )
  const events: TokenEvent[][] = requests.map(() => [])
  for (const [id, [ids, params]] of requests.entries()) core.add(id, ids, params)
  let steps = 0
  while (core.hasWork) {
    for (const event of core.step()) events[event.id]?.push(event)
    steps++
  }
  expect(blocks.numFree).toBe(pages)
  return { events, stats: core.stats(), steps }
}

const tokens = (events: readonly TokenEvent[] | undefined): number[] =>
  (events ?? []).map((event) => event.token)
/** All that a client sees of a sequence, but for times and counts. */
const seen = (events: readonly TokenEvent[] | undefined): unknown[] =>
  (events ?? []).map(({ token, finish, logprob, topLogprobs }) => [
    token,
    finish,
    logprob,
    topLogprobs,
  ])
const prompt = (length: number, seed = 1): Int32Array =>
  Int32Array.from({ length }, (_, i) => (i * seed * 7 + seed) % VOCAB)

const long = { ...GREEDY, maxTokens: 30 }
const REQUESTS: readonly Request[] = [
  [prompt(5), long],
  [prompt(40, 2), { ...long, temperature: 1, seed: 7 }],
  [prompt(33, 3), { ...long, temperature: 0.8, topK: 5, seed: 8, logprobs: 3 }],
  [prompt(70, 4), { ...long, repetitionPenalty: 1.3, frequencyPenalty: 0.5 }],
  [prompt(1, 5), { ...long, temperature: 2, topP: 0.9, minP: 0.01, seed: -3 }],
  [prompt(16, 6), { ...long, logitBias: [[11, 5]], logprobs: 0 }],
  [prompt(20, 7), { ...long, temperature: 1, seed: 1, mirostat: 2, mirostatTau: 3 }],
  [prompt(20, 7), { ...long, temperature: 1, seed: 2, xtcProbability: 0.5, xtcThreshold: 0.02 }],
  [prompt(20, 7), { ...long, temperature: 1, seed: 3, dryMultiplier: 2, dryAllowedLength: 1 }],
]
const ALONE = REQUESTS.map((request) => run([request]).events[0] as TokenEvent[])
const TEXTS = ALONE.map(tokens)

describe("speculation changes nothing but the number of steps", () => {
  for (const [name, wrongEvery] of [
    ["guesses that are right", 0],
    ["guesses that are wrong now and then", 4],
    ["guesses that are wrong", 1],
  ] as const) {
    test(
      name,
      () => {
        for (const limits of [
          {},
          { maxBatchTokens: 9, maxBatchSize: 4 },
          { maxBatchTokens: 200, prefixCache: false },
          { pages: 17 },
          { pages: 17, maxBatchTokens: 10, maxBatchSize: 3 },
        ]) {
          let n = 0
          const oracle = new Oracle(TEXTS, () => wrongEvery > 0 && ++n % wrongEvery === 0)
          const { events, stats, steps } = run(REQUESTS, limits, oracle)
          for (const i of REQUESTS.keys()) expect(seen(events[i])).toEqual(seen(ALONE[i]))
          expect(oracle.observed).toBeGreaterThan(0)
          expect(stats.draftedTokensTotal).toBe(oracle.observed)
          if (wrongEvery === 0) expect(stats.acceptedTokensTotal).toBe(stats.draftedTokensTotal)
          if (wrongEvery === 1) expect(stats.acceptedTokensTotal).toBe(0)
          if (wrongEvery === 0) expect(steps).toBeLessThan(run(REQUESTS, limits).steps)
        }
      },
      60_000,
    )
  }

  test("with any seeds of errors, several at once, short of pages", () => {
    fc.assert(
      fc.property(fc.integer(), fc.integer({ min: 16, max: 40 }), (seed, pages) => {
        let state = seed
        const oracle = new Oracle(TEXTS, () => {
          state = (Math.imul(state, 1_103_515_245) + 12_345) | 0
          return (state >>> 16) % 3 === 0
        })
        const { events } = run(REQUESTS, { pages, maxBatchTokens: 24 }, oracle)
        for (const i of REQUESTS.keys()) expect(tokens(events[i])).toEqual(TEXTS[i] as number[])
      }),
      { numRuns: 15 },
    )
  }, 60_000)

  test("a draft model, the same, an unlike one, and one short of pages", () => {
    for (const [scale, pages] of [
      [3, 64],
      [1.5, 64],
      [3, 20],
    ] as const) {
      using pool = jsPool(backend, pages, PAGE)
      const limits = { maxBatchSize: 8, maxBatchTokens: 48, contextLength: 128 }
      using runner = new ModelRunner(backend, new JsModel(VOCAB, scale), pool, limits)
      using draft = new DraftModel(runner, { pages, pageSize: PAGE, maxBatchTokens: 48, most: 7 })
      for (const sizes of [{}, { maxBatchSize: 2 }, { pages: 17, maxBatchTokens: 10 }]) {
        const { events, stats } = run(REQUESTS, sizes, draft)
        for (const i of REQUESTS.keys()) expect(seen(events[i])).toEqual(seen(ALONE[i]))
        expect(stats.acceptedTokensTotal).toBeGreaterThan(0)
      }
      const [request] = REQUESTS.slice(1)
      const { stats } = run([request as Request], {}, draft)
      // the same model with the same random numbers says the same
      if (scale === 3) expect(stats.acceptedTokensTotal).toBe(stats.draftedTokensTotal)
    }
  }, 60_000)

  test("ends are where they were: stop tokens, lengths, the context", () => {
    const text = TEXTS[0] as number[]
    const requests: Request[] = [
      [prompt(5), { ...long, stopTokens: [text[7] as number] }],
      [prompt(5), { ...long, maxTokens: 3 }],
      [prompt(5), { ...long, maxTokens: 2 }],
      [prompt(5), { ...long, maxTokens: 1 }],
      [prompt(120, 4), { ...long, maxTokens: 100 }],
    ]
    const alone = requests.map((request) => run([request]).events[0] as TokenEvent[])
    const oracle = new Oracle(alone.map(tokens), () => false)
    const { events } = run(requests, {}, oracle)
    for (const i of requests.keys()) expect(seen(events[i])).toEqual(seen(alone[i]))
    const end = events[0]?.at(-1)
    expect(end?.finish).toBe("stop")
    expect(end?.drafted).toBeGreaterThan(0)
    expect(end?.accepted).toBeGreaterThan(0)
  })
})

describe("n-gram guesses", () => {
  const guess = (draft: NgramDraft, seq: Sequence, most = 8): number[] => {
    seq.numDraft = 0
    draft.propose(seq, most)
    return [...seq.tokens.subarray(seq.length, seq.length + seq.numDraft)]
  }

  test("are what followed the newest match", () => {
    const seq = new Sequence(1, Int32Array.of(1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 9, 1, 2, 3), GREEDY)
    expect(guess(new NgramDraft(3, 8), seq)).toEqual([6, 7, 9])
    expect(guess(new NgramDraft(3, 2), seq)).toEqual([6, 7])
    expect(guess(new NgramDraft(3, 8), seq, 1)).toEqual([6])
    expect(guess(new NgramDraft(4, 8), new Sequence(1, Int32Array.of(1, 2, 3), GREEDY))).toEqual([])
  })

  test("go on with a period, and grow and shrink with what comes of them", () => {
    const seq = new Sequence(1, Int32Array.of(1, 2, 1, 2, 1, 2), GREEDY)
    const draft = new NgramDraft(3, 7)
    expect(guess(draft, seq)).toEqual([1, 2, 1])
    draft.observe(3, 3)
    expect(guess(draft, seq)).toEqual([1, 2, 1, 2, 1, 2, 1])
    draft.observe(7, 1)
    expect(guess(draft, seq)).toHaveLength(3)
    draft.observe(3, 0)
    expect(guess(draft, seq)).toEqual([])
    expect(guess(draft, seq)).toHaveLength(3)
    draft.observe(3, 0)
    expect([guess(draft, seq), guess(draft, seq)]).toEqual([[], []])
    expect(guess(draft, seq)).toHaveLength(3)
  })

  test("always repeat what came after an equal end", () => {
    const text = fc.array(fc.nat(3), { minLength: 1, maxLength: 300 })
    fc.assert(
      fc.property(text, fc.integer({ min: 2, max: 5 }), (ids, lookup) => {
        const seq = new Sequence(1, Int32Array.from(ids.slice(0, 1)), GREEDY)
        const draft = new NgramDraft(lookup, 8)
        for (const id of ids.slice(1)) {
          const [first] = guess(draft, seq)
          if (first !== undefined) {
            const known = [...seq.tokens.subarray(0, seq.length)].join(",")
            const end = [...seq.tokens.subarray(seq.length - 2, seq.length)].join(",")
            expect(known).toContain(`${end},${first}`)
          }
          seq.numDraft = 0
          seq.append(id)
        }
      }),
    )
  })
})
