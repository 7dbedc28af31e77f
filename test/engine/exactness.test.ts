import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { EngineCore, type StepOutput, type StepRunner } from "../../src/engine/core.ts"
import { kvLayers, stateLayers, stateSlots } from "../../src/engine/kv-layers.ts"
import { ModelRunner, type RunnableModel } from "../../src/engine/model-runner.ts"
import { ropeKeyOf } from "../../src/engine/rope-key.ts"
import { type Batch, maxRunning, Scheduler, wantsToken } from "../../src/engine/scheduler.ts"
import { BlockManager } from "../../src/kvcache/block-manager.ts"
import { KVPool } from "../../src/kvcache/pool.ts"
import { StatePool } from "../../src/kvcache/state-pool.ts"
import { StateSlots } from "../../src/kvcache/state-slots.ts"
import { Backend } from "../../src/native/backend.ts"
import type { ForwardBatch } from "../../src/nn/forward-batch.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import type { Tensor } from "../../src/tensor/tensor.ts"
import { loadModel } from "../models/build.ts"
import { type Golden, HF_GOLDENS, openGgufGolden, openHfGolden } from "../models/goldens.ts"
import { relativeError } from "../ops/harness.ts"
import { GREEDY } from "./fake-runner.ts"

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
const PAGE = 8
const CONTEXT = 56
const NEW_TOKENS = 12

interface Limits {
  readonly threads?: number
  readonly maxBatchSize?: number
  readonly maxBatchTokens?: number
  readonly pages?: number
  readonly prefixCache?: boolean
  readonly fuse?: boolean
}

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
  const { threads = 1, maxBatchSize = 8, maxBatchTokens = 512, pages = 64 } = limits
  const { prefixCache = false, fuse = true } = limits
  using stack = new DisposableStack()
  const backend = stack.use(new Backend({ threads, precision: "f32" }))
  const { model, loaded } = await loadModel(source.config, source.weights, { backend, fuse })
  stack.use(loaded)
  const { config } = source
  const sizes = { maxBatchSize, maxBatchTokens, contextLength: CONTEXT }
  const pool = stack.use(
    new KVPool(backend, kvLayers(config), { pages, pageSize: PAGE, dtype: F32 }),
  )
  const linear = stateLayers(config)
  const slots = stateSlots(maxRunning(sizes), prefixCache)
  const statePool = linear.length > 0 ? stack.use(new StatePool(backend, linear, slots)) : undefined
  const states = linear.length > 0 ? new StateSlots(slots) : undefined
  const blocks = new BlockManager({ pages, pageSize: PAGE, prefixCache, states })
  const recorder = new Recorder(model, config.vocab_size)
  recorder.around(stack.use(new ModelRunner(backend, recorder, pool, sizes, { states: statePool })))
  const core = new EngineCore(recorder, new Scheduler(sizes, blocks), blocks, {
    vocabSize: config.vocab_size,
    ropeKey: ropeKeyOf(config),
  })
  const resources = stack.move()
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
          out.push(...(recorder.rows.get(`${id}:${length + n}`) as Float32Array))
        return Float32Array.from(out)
      })
    },
    [Symbol.dispose]: () => resources.dispose(),
  }
}

/** Eight prompts of 1 to 39 tokens, some with a common beginning. */
function promptsOf({ tensors }: Golden): Int32Array[] {
  const bytes = tensors.get("input_ids")?.bytes
  const all = new Int32Array((bytes as Uint8Array).slice().buffer)
  const first = all.subarray(0, 32)
  const second = all.length > 32 ? all.subarray(32, 64) : first.toReversed()
  const joined = Int32Array.from([...first.subarray(0, 20), ...second.subarray(1, 20)])
  const lengths = [32, 17, 24, 9]
  return [
    ...lengths.map((length) => first.slice(0, length)),
    second.slice(),
    second.slice(0, 1),
    second.slice(3, 19),
    joined,
  ]
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
