import { describe, expect, test } from "bun:test"

import type { EngineConfig } from "../../src/config.ts"
import { deviceProblem } from "../../src/native/backend.ts"
import { createEngine, generateAll, type GoldenModel, goldenModels } from "./golden-models.ts"

/** Eight prompts of different lengths: the golden ones, and beginnings and mixtures of them. */
function eightPrompts({ prompts }: GoldenModel): Int32Array[] {
  const first = prompts[0] as Int32Array
  const second = prompts[1] ?? first.toReversed()
  const both = [first.subarray(0, 16), second.subarray(3, 17)].map((part) => [...part])
  return [
    first,
    second,
    first.slice(0, 17),
    first.slice(0, 24),
    second.slice(0, 1),
    second.slice(5, 21),
    Int32Array.from(both.flat()),
    first.slice(0, 9),
  ]
}

for (const [device, model] of ["cpu", "cuda:0"].flatMap((device) =>
  goldenModels().map((model) => [device, model] as const),
)) {
  const name = device === "cpu" ? model.name : `${model.name} [${device}]`
  const problem = deviceProblem(device)
  if (problem !== undefined) {
    describe.skip(`${name}: ${problem}`, () => {})
    continue
  }
  describe(name, () => {
    const prompts = eightPrompts(model)

    test("greedy ids are the reference's, alone and in a batch, whatever the chunks and the cache", async () => {
      using plain = await createEngine(model, {
        device,
        prefixCache: false,
        fuse: false,
        repack: false,
      })
      const alone = prompts.map((prompt) => generateAll(plain, [prompt])[0])
      for (const [i, ids] of model.greedy.entries()) expect(alone[i]).toEqual([...ids])
      const cases: Partial<EngineConfig>[] = [
        { maxBatchTokens: 16, kvCacheTokens: 512 },
        { maxBatchTokens: 64, kvCacheTokens: 512 },
        { maxBatchTokens: 512, kvCacheTokens: 512, maxBatchSize: 3 },
        // 9 pages of 8: two sequences of 40 tokens do not fit beside each other
        { maxBatchTokens: 64, kvCacheTokens: 72, contextLength: 40 },
      ]
      for (const options of cases) {
        using engine = await createEngine(model, { device, ...options })
        expect(generateAll(engine, prompts)).toEqual(alone as number[][])
        const cold = engine.stats()
        expect(generateAll(engine, prompts)).toEqual(alone as number[][])
        const warm = engine.stats()
        if (options.kvCacheTokens !== 72)
          expect(warm.cachedTokensTotal).toBeGreaterThan(cold.cachedTokensTotal)
        expect(warm.kvPagesFree).toBe(warm.kvPagesTotal)
        if (options.kvCacheTokens === 72) expect(warm.preemptionsTotal).toBeGreaterThan(0)
      }
    })
  })
}
