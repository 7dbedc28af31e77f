import { afterEach, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import type { EngineConfig } from "../../src/config.ts"
import type { Engine } from "../../src/engine/engine.ts"
import { createEngine, generateAll, type GoldenModel, goldenModels } from "./golden-models.ts"

const folders: string[] = []
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true })
})

function temporary(): string {
  const folder = mkdtempSync(join(tmpdir(), "kt-prefix-tiers-"))
  folders.push(folder)
  return folder
}

function model(name: string): GoldenModel {
  const found = goldenModels().find((m) => m.name === name)
  if (found === undefined) throw new Error(`no golden model ${name}`)
  return found
}

/** Keys and values, latents, states, windows, length-dependent rope; the context, and tokens of a prompt. */
const MODELS: readonly (readonly [string, number, number])[] = [
  ["hf/llama", 64, 41],
  ["gguf/llama-f16", 64, 41],
  ["hf/llama_dynamic", 40, 25],
  ["hf/gemma3_text", 64, 41],
  ["hf/deepseek_v3", 64, 41],
  ["gguf/deepseek2-lite-q5_1", 64, 41],
  ["hf/qwen3_next", 64, 41],
  ["gguf/qwen3next-iq4_nl", 64, 41],
  ["hf/gpt_oss", 64, 41],
]

/** A pool that holds one context only: a second prompt takes the first one's pages. */
const small = (context: number): Partial<EngineConfig> => ({
  contextLength: context,
  kvCacheTokens: context,
  maxBatchSize: 2,
  maxBatchTokens: 24,
  cacheRamMib: 8,
})

const prompt = (seed: number, length: number): Int32Array =>
  Int32Array.from({ length }, (_, i) => (i * 7 + seed * 13 + ((i * seed) % 5)) % 60)

/** Greedy tokens of a prompt alone, and how many of its tokens were known. */
function answer(engine: Engine, ids: Int32Array): { tokens: number[]; cached: number } {
  const before = engine.stats().cachedTokensTotal
  const [tokens = []] = generateAll(engine, [ids], { maxTokens: 12, ignoreEos: true })
  return { tokens, cached: engine.stats().cachedTokensTotal - before }
}

describe.each(MODELS)("%s", (name, context, length) => {
  const golden = model(name)
  const SMALL = small(context)
  const known = length - 1
  const prompts = [1, 2, 3, 4].map((seed) => prompt(seed, length))

  async function computed(): Promise<number[][]> {
    using engine = await createEngine(golden, { ...SMALL, prefixCache: false })
    return prompts.map((ids) => answer(engine, ids).tokens)
  }

  test("tokens after a hit in host memory or on disk are those that are computed", async () => {
    const want = await computed()
    const cacheDir = temporary()
    {
      using engine = await createEngine(golden, { ...SMALL, cacheDir })
      for (const round of [0, 1, 2]) {
        for (const [i, ids] of prompts.entries()) {
          const got = answer(engine, ids)
          expect(got.tokens).toEqual(want[i] as number[])
          if (round > 0) expect(got.cached).toBe(known)
        }
      }
      const stats = engine.stats()
      expect(stats.cacheHostTokensTotal).toBeGreaterThan(100)
      expect(stats.cacheHostBytes).toBeGreaterThan(0)
    }
    // everything was written until the engine closed
    using engine = await createEngine(golden, { ...SMALL, cacheDir })
    for (const [i, ids] of prompts.entries())
      expect(answer(engine, ids)).toEqual({ tokens: want[i] as number[], cached: known })
    expect(engine.stats().cacheDiskTokensTotal).toBe(4 * known)
    expect(engine.stats().cacheDiskFailuresTotal).toBe(0)
    engine.clearCache()
    expect(answer(engine, prompts[0] as Int32Array)).toEqual({
      tokens: want[0] as number[],
      cached: 0,
    })
  })

  test("without a disk, host memory alone keeps what leaves the pool", async () => {
    const want = await computed()
    using engine = await createEngine(golden, SMALL)
    for (const round of [0, 1]) {
      for (const [i, ids] of prompts.entries()) {
        const got = answer(engine, ids)
        expect(got.tokens).toEqual(want[i] as number[])
        expect(got.cached).toBe(round === 0 ? 0 : known)
      }
    }
    expect(engine.stats().cacheDiskBytes).toBe(0)
  })
})
