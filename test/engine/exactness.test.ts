import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import type { EngineCore, StepOutput, StepRunner } from "../../src/engine/core.ts"
import type { RunnableModel } from "../../src/engine/model-runner.ts"
import { type Batch, wantsToken } from "../../src/engine/scheduler.ts"
import type { ForwardBatch } from "../../src/nn/forward-batch.ts"
import type { Tensor } from "../../src/tensor/tensor.ts"
import { type Golden, HF_GOLDENS, openGgufGolden, openHfGolden } from "../models/goldens.ts"
import { relativeError } from "../ops/harness.ts"
import { GREEDY } from "./fake-runner.ts"
import { type Limits, promptsOf, smallEngine } from "./small-engine.ts"

/** Families whose schedules are checked to the last digits here; ids are checked of all of them in golden.test.ts. */
const MODELS: readonly (readonly [string, () => Golden])[] = [
  ["hf/qwen3_next", () => openHfGolden("qwen3_next")],
  ["gguf/qwen3next", () => openGgufGolden("qwen3next-iq4_nl", "qwen3next-iq4_nl")],
  ["hf/qwen3_moe", () => openHfGolden("qwen3_moe")],
  ["hf/smallthinker_sigmoid", () => openHfGolden("smallthinker_sigmoid")],
  ["hf/llama4_text", () => openHfGolden("llama4_text")],
  ["hf/gpt_oss", () => openHfGolden("gpt_oss")],
  ["hf/deepseek_v2", () => openHfGolden("deepseek_v2")],
  ["hf/deepseek_v2_lite", () => openHfGolden("deepseek_v2_lite")],
  ["hf/deepseek_v3", () => openHfGolden("deepseek_v3")],
  ["hf/kimi_k2", () => openHfGolden("kimi_k2")],
  ["hf/moonlight", () => openHfGolden("moonlight")],
]

/** The same sums in another order. */
const TOLERANCE = 1e-5
const NEW_TOKENS = 12

/** Remembers the logits behind every token that a step gives. */
class Recorder implements RunnableModel, StepRunner {
  readonly rows = new Map<string, Float32Array>()
  readonly #model: RunnableModel
  readonly #vocab: number
  #runner: StepRunner | undefined
  #batch: Batch | undefined

  constructor(model: RunnableModel, vocab: number) {
    this.#model = model
    this.#vocab = vocab
  }

  around(runner: StepRunner): this {
    this.#runner = runner
    return this
  }

  run(batch: Batch): StepOutput {
    this.#batch = batch
    return (this.#runner as StepRunner).run(batch)
  }

  forward(batch: ForwardBatch): Tensor {
    const logits = this.#model.forward(batch)
    const values = logits.toFloat32Array()
    let row = 0
    for (const seq of this.#batch?.seqs ?? []) {
      if (!wantsToken(seq)) continue
      const start = row++ * this.#vocab
      this.rows.set(`${seq.id}:${seq.length}`, values.slice(start, start + this.#vocab))
    }
    return logits
  }
}

interface Engine extends Disposable {
  /** Logits of every new token of each prompt, joined; prompt i comes before step arrivals[i]. */
  run(prompts: readonly Int32Array[], arrivals?: readonly number[]): Float32Array[]
  readonly core: EngineCore
}

async function engineOf(source: Golden, limits: Limits): Promise<Engine> {
  let recorder: Recorder | undefined
  const small = await smallEngine(source, limits, {
    model: (model, vocab) => (recorder = new Recorder(model, vocab)),
    runner: (runner) => (recorder as Recorder).around(runner),
  })
  const { core } = small
  const { rows } = recorder as unknown as Recorder
  let nextId = 0
  return {
    core,
    run(prompts, arrivals = []) {
      const ids = prompts.map(() => nextId++)
      const last = Math.max(0, ...arrivals)
      for (let step = 0; step <= last || core.hasWork; step++) {
        for (const [i, prompt] of prompts.entries()) {
          if ((arrivals[i] ?? 0) === step)
            core.add(ids[i] as number, prompt, { ...GREEDY, maxTokens: NEW_TOKENS })
        }
        for (const event of core.step()) if (event.finish === "error") throw new Error(event.error)
      }
      return ids.map((id, i) => {
        const out: number[] = []
        const { length } = prompts[i] as Int32Array
        for (let n = 0; n < NEW_TOKENS; n++)
          out.push(...(rows.get(`${id}:${length + n}`) as Float32Array))
        return Float32Array.from(out)
      })
    },
    [Symbol.dispose]: () => small[Symbol.dispose](),
  }
}

describe.each(MODELS)("%s: the same logits", (_name, open) => {
  const source = open()
  const prompts = promptsOf(source)
  const alone = (async () => {
    const logits: Float32Array[] = []
    using engine = await engineOf(source, {})
    for (const prompt of prompts) logits.push(...engine.run([prompt]))
    return logits
  })()

  async function expectSame(got: readonly Float32Array[]): Promise<void> {
    const want = await alone
    for (const [i, own] of got.entries())
      expect(relativeError(own, want[i] as Float32Array), `prompt ${i}`).toBeLessThan(TOLERANCE)
  }

  const cases: readonly (readonly [string, Limits])[] = [
    ["in chunks of 7", { maxBatchTokens: 7, maxBatchSize: 1 }],
    ["in chunks of 16", { maxBatchTokens: 16, maxBatchSize: 1 }],
    ["in chunks of 64", { maxBatchTokens: 64, maxBatchSize: 1 }],
    ["token by token", { maxBatchTokens: 1 }],
    ["in a batch of 8", {}],
    ["in a batch of 8, in chunks beside each other's tokens", { maxBatchTokens: 24 }],
    ["on two threads", { threads: 2 }],
    ["with plain modules", { fuse: false }],
  ]
  test.each(cases)("%s", async (_case, limits) => {
    using engine = await engineOf(source, limits)
    await expectSame(engine.run(prompts))
  })

  test("with a cold and a warm prefix cache, in any chunks", async () => {
    for (const maxBatchTokens of [512, 24, 7]) {
      using engine = await engineOf(source, { prefixCache: true, maxBatchTokens })
      await expectSame(engine.run(prompts))
      const cold = engine.core.stats().cachedTokensTotal
      await expectSame(engine.run(prompts))
      await expectSame(engine.run(prompts.toReversed()).toReversed())
      // all but the one of a single token begin with pages that are known by now
      expect(engine.core.stats().cachedTokensTotal - cold).toBeGreaterThan(8 * 2 * 7)
    }
  })

  test("after preemption and resume", async () => {
    for (const prefixCache of [false, true]) {
      let preemptions = 0
      for (const pages of [8, 9, 10, 11, 12]) {
        using engine = await engineOf(source, { pages, prefixCache, maxBatchTokens: 64 })
        await expectSame(engine.run(prompts))
        await expectSame(engine.run(prompts))
        preemptions += engine.core.stats().preemptionsTotal
      }
      expect(preemptions).toBeGreaterThan(1)
    }
  })
})

describe("random schedules", () => {
  const limits: fc.Arbitrary<Limits> = fc.record({
    threads: fc.constantFrom(1, 2),
    maxBatchSize: fc.integer({ min: 1, max: 8 }),
    maxBatchTokens: fc.constantFrom(1, 3, 7, 16, 40, 512),
    pages: fc.integer({ min: 7, max: 30 }),
    prefixCache: fc.boolean(),
    fuse: fc.boolean(),
  })
  /** A part of one of two texts, so that beginnings are often shared, and when it comes. */
  const requests = fc.array(
    fc.record({
      text: fc.nat(1),
      start: fc.constantFrom(0, 0, 0, 5),
      length: fc.integer({ min: 1, max: 27 }),
      arrival: fc.nat(30),
    }),
    { minLength: 1, maxLength: 10 },
  )

  test.each(HF_GOLDENS.map((name) => [name] as const))("%s", async (name) => {
    const source = openHfGolden(name)
    const texts = [promptsOf(source)[0], promptsOf(source)[4]] as [Int32Array, Int32Array]
    const known = new Map<string, Float32Array>()
    using plain = await engineOf(source, {})
    const alone = (prompt: Int32Array): Float32Array => {
      const key = prompt.join()
      const logits = known.get(key) ?? (plain.run([prompt])[0] as Float32Array)
      known.set(key, logits)
      return logits
    }
    await fc.assert(
      fc.asyncProperty(limits, requests, async (own, all) => {
        const prompts = all.map(({ text, start, length }) =>
          (texts[text] as Int32Array).slice(start, start + length),
        )
        using engine = await engineOf(source, own)
        const got = engine.run(
          prompts,
          all.map(({ arrival }) => arrival),
        )
        for (const [i, prompt] of prompts.entries()) {
          const error = relativeError(got[i] as Float32Array, alone(prompt))
          expect(error, `request ${i}`).toBeLessThan(TOLERANCE)
        }
      }),
      { numRuns: 8 },
    )
    source.weights.close()
  })
})
