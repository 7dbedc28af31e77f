import { describe, expect, test } from "bun:test"

import { StepGraphs } from "../../src/engine/step-graphs.ts"
import { Backend, deviceProblem } from "../../src/native/backend.ts"
import { isLengthDependent } from "../../src/nn/rope.ts"
import { add } from "../../src/ops/index.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import type { GenerateParams, TokenEvent } from "../../src/worker/protocol.ts"
import {
  GGUF_GOLDENS,
  type Golden,
  HF_GOLDENS,
  openGgufGolden,
  openHfGolden,
} from "../models/goldens.ts"
import { GREEDY } from "./fake-runner.ts"
import { type Limits, promptsOf, smallEngine } from "./small-engine.ts"

const NEW_TOKENS = 14
const LOGPROBS = 20

/** Tokens and log-probabilities of each prompt; sequences come and go at different steps. */
async function run(
  source: Golden,
  limits: Limits,
  params: Partial<GenerateParams> = {},
): Promise<{ tokens: Map<number, string[]>; launches: number; log: readonly string[] }> {
  using engine = await smallEngine(source, limits)
  const { core } = engine
  const prompts = promptsOf(source)
  const tokens = new Map<number, string[]>()
  const take = (events: readonly TokenEvent[]): void => {
    for (const { id, token, finish, error, logprob, topLogprobs } of events) {
      if (finish === "error") throw new Error(error)
      const seen = tokens.get(id) ?? []
      tokens.set(id, seen)
      seen.push(`${token} ${logprob} ${topLogprobs?.join()}`)
    }
  }
  for (let step = 0; step < 40 || core.hasWork; step++) {
    const prompt = prompts[step / 3]
    if (prompt !== undefined) {
      const maxTokens = NEW_TOKENS + (step % 4)
      core.add(step, prompt, { ...GREEDY, logprobs: LOGPROBS, maxTokens, ...params })
    }
    take(core.step())
  }
  return { tokens, launches: engine.graphs?.launches ?? 0, log: engine.log }
}

/** False for what a device cannot compute at all; its own tests say what that is. */
function lacksKernels(error: unknown): false {
  const message = error instanceof Error ? error.message : String(error)
  if (/has no such op|only rows may be apart|unsupported/.test(message)) return false
  throw error
}

async function expectSame(
  source: Golden,
  limits: Limits,
  params: Partial<GenerateParams> = {},
): Promise<void> {
  const plain = await run(source, limits, params)
  const recorded = await run(source, { ...limits, graphs: true }, params)
  expect(recorded.log).toEqual([])
  expect(recorded.tokens).toEqual(plain.tokens)
  // lengths beyond the original context have frequencies of their own: nothing to record for dynamic NTK
  if (!isLengthDependent(source.config.rope)) expect(recorded.launches).toBeGreaterThan(10)
}

const MODELS: readonly (readonly [string, () => Golden])[] = [
  ...HF_GOLDENS.map((name) => [`hf/${name}`, () => openHfGolden(name)] as const),
  ...GGUF_GOLDENS.map(
    ([file, reference]) => [`gguf/${file}`, () => openGgufGolden(file, reference)] as const,
  ),
]

describe.each(MODELS)(
  "%s: recorded steps give every bit of those that are called",
  (_name, open) => {
    const source = open()

    test("on two threads", async () => {
      await expectSame(source, { threads: 2 })
    })

    test("with int8 activations", async () => {
      await expectSame(source, { precision: "fast" })
    })

    test("with plain modules", async () => {
      await expectSame(source, { fuse: false, maxBatchSize: 3 })
    })

    test("on two nodes, drawn with penalties", async () => {
      const params = { temperature: 0.8, topP: 0.9, seed: 7, repetitionPenalty: 1.1 }
      await expectSame(source, { threads: 2, nodes: 2, maxBatchTokens: 24 }, params)
    })

    test("with preemption and a prefix cache", async () => {
      await expectSame(source, { pages: 14, prefixCache: true })
    })
  },
)

const problem = deviceProblem("cuda:0")
describe.skipIf(problem !== undefined)(
  `cuda:0${problem === undefined ? "" : `: ${problem}`}`,
  () => {
    test.each(MODELS)("%s", async (_name, open) => {
      const source = open()
      for (const limits of [{}, { precision: "fast", pages: 14 }, { fuse: false }] as const) {
        const own = { ...limits, device: "cuda:0" }
        if (await run(source, own).then(() => true, lacksKernels)) await expectSame(source, own)
      }
      source.weights.close()
    })
  },
)

describe("buckets", () => {
  function twice(backend: Backend): { compute: () => Tensor; x: Tensor; calls: () => number } {
    const x = Tensor.from(backend, Float32Array.of(1, 2, 3), [3], { persistent: true })
    let calls = 0
    const compute = (): Tensor => {
      calls++
      return add(x, x)
    }
    return { compute, x, calls: () => calls }
  }
  /** The result's values; ends the step. */
  function values(backend: Backend, result: Tensor): number[] {
    const out = [...result.narrow(0, 0, 3).toFloat32Array()]
    backend.resetStep()
    return out
  }

  test("are called once, recorded once, launched from then on", () => {
    using backend = new Backend({ threads: 1 })
    using graphs = new StepGraphs(backend)
    const { compute, x, calls } = twice(backend)
    for (let n = 1; n <= 6; n++) {
      x.write(Float32Array.of(n, 2 * n, 3 * n))
      expect(values(backend, graphs.run("a", compute))).toEqual([2 * n, 4 * n, 6 * n])
    }
    expect(calls()).toBe(2)
    expect(graphs.launches).toBe(5)
    values(backend, graphs.run("b", compute))
    expect(calls()).toBe(3)
  })

  test("leave their results alone when more is allocated in the same step", () => {
    using backend = new Backend({ threads: 1 })
    using graphs = new StepGraphs(backend)
    const { compute } = twice(backend)
    for (let n = 0; n < 4; n++) {
      const result = graphs.run("a", compute)
      for (let i = 0; i < 4; i++) Tensor.from(backend, Float32Array.of(7, 7, 7))
      expect(values(backend, result)).toEqual([2, 4, 6])
    }
    expect(graphs.launches).toBe(3)
  })

  test("begin anew when the arena's memory or the precision is another", () => {
    using backend = new Backend({ threads: 1 })
    using graphs = new StepGraphs(backend)
    const { compute, calls } = twice(backend)
    const steps = (): void => {
      for (let n = 0; n < 3; n++)
        expect(values(backend, graphs.run("a", compute))).toEqual([2, 4, 6])
    }
    steps()
    backend.precision = "f32"
    steps()
    expect(calls()).toBe(4)
    // a step that outgrew the arena
    for (let n = 0; n < 3; n++) Tensor.empty(backend, F32, [1_000_000])
    backend.resetStep()
    steps()
    expect(calls()).toBe(6)
    expect(graphs.launches).toBe(6)
  })

  test("of a model that the host takes part in are called every time, and the log says so once", () => {
    using backend = new Backend({ threads: 1 })
    const log: string[] = []
    using graphs = new StepGraphs(backend, (line) => log.push(line))
    const { compute, calls } = twice(backend)
    const reads = (): Tensor => {
      const out = compute()
      out.toFloat32Array()
      return out
    }
    for (let n = 0; n < 9; n++) expect(values(backend, graphs.run("a", reads))).toEqual([2, 4, 6])
    expect(calls()).toBe(10)
    expect(graphs.launches).toBe(0)
    expect(log).toEqual([
      "steps that generate are not recorded as graphs: the host reads values of a step that is recorded",
    ])
  })

  test("are forgotten, the least recently used first", () => {
    using backend = new Backend({ threads: 1 })
    using graphs = new StepGraphs(backend)
    const { compute, calls } = twice(backend)
    for (let bucket = 0; bucket < 40; bucket++)
      for (let n = 0; n < 2; n++) values(backend, graphs.run(String(bucket), compute))
    expect(calls()).toBe(80)
    values(backend, graphs.run("39", compute))
    expect(calls()).toBe(80)
    values(backend, graphs.run("0", compute))
    expect(calls()).toBe(81)
  })
})
