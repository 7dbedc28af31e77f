import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { type MemoryRequest, planMemory } from "../../src/engine/memory-plan.ts"
import { ConfigError, MemoryError } from "../../src/errors.ts"

const GiB = 2 ** 30
const REQUEST: MemoryRequest = {
  contextLength: 0,
  kvCacheTokens: 0,
  pageSize: 32,
  modelLength: 8192,
  bytesPerPage: 32 * 92_160,
  weightBytes: 2 * GiB,
  stateBytes: 0,
  workspaceBytes: GiB / 4,
  freeBytes: 16 * GiB,
}

describe("memory plan", () => {
  test("the model's own context where memory holds it, else what it holds", () => {
    expect(planMemory(REQUEST)).toMatchObject({ contextLength: 8192, pages: 256 })
    const tight = planMemory({ ...REQUEST, freeBytes: 2.7 * GiB })
    expect(tight.contextLength).toBeLessThan(8192)
    expect(tight.contextLength).toBe(tight.kvCacheTokens)
  })

  test("an explicit context or cache that does not fit names every size and what would fit", () => {
    const error = (() => {
      try {
        planMemory({ ...REQUEST, contextLength: 8192, freeBytes: 2.7 * GiB })
      } catch (e) {
        return e as MemoryError
      }
    })()
    expect(error).toBeInstanceOf(MemoryError)
    expect(error?.message).toBe(
      "not enough memory: 720 MiB of KV cache for 8192 tokens, 2.0 GiB of weights, 448 MiB of workspace are needed, 2.7 GiB are free",
    )
    expect(error?.hint).toMatch(/^--ctx \d+ fits$/)
    const fitting = Number(error?.hint?.split(" ")[1])
    planMemory({ ...REQUEST, contextLength: fitting, freeBytes: 2.7 * GiB })
    const cache = { ...REQUEST, kvCacheTokens: 1_000_000 }
    expect(() => planMemory(cache)).toThrow("KV cache for 1000000 tokens")
    expect(() => planMemory({ ...REQUEST, freeBytes: GiB })).toThrow(MemoryError)
  })

  test("a draft model's weights, pages and workspace count too, and are named", () => {
    const draft = { weightBytes: GiB, bytesPerPage: REQUEST.bytesPerPage / 4, workspaceBytes: 1e6 }
    const request = { ...REQUEST, draft, freeBytes: 3.9 * GiB }
    const plan = planMemory(request)
    const pageBytes = REQUEST.bytesPerPage + draft.bytesPerPage
    expect(plan.kvBytes).toBe(plan.pages * REQUEST.bytesPerPage)
    expect(plan.draftBytes).toBe(GiB + 1e6 + plan.pages * draft.bytesPerPage)
    const alone = planMemory({ ...request, draft: undefined })
    expect(alone.draftBytes).toBe(0)
    expect(plan.pages).toBeLessThan(alone.pages)
    expect(plan.spareBytes).toBeGreaterThanOrEqual(0)
    expect(plan.spareBytes).toBeLessThan(pageBytes)
    expect(() => planMemory({ ...request, contextLength: 8192 })).toThrow(
      "2.0 GiB of weights, 1.0 GiB of the draft model's weights, 449 MiB of workspace are needed",
    )
  })

  test("states of sequences come first, and are named where they are much of what is missing", () => {
    const plan = planMemory({ ...REQUEST, freeBytes: 3 * GiB, stateBytes: GiB / 4 })
    const more = planMemory({ ...REQUEST, freeBytes: 3 * GiB })
    expect(more.kvCacheTokens - plan.kvCacheTokens).toBeGreaterThan(2048)
    const error = (() => {
      try {
        planMemory({ ...REQUEST, freeBytes: 3 * GiB, stateBytes: GiB })
      } catch (e) {
        return e as MemoryError
      }
    })()
    expect(error?.message).toContain("2.0 GiB of weights, 1.0 GiB of sequences' states, 448 MiB")
    expect(error?.hint).toContain("--max-batch-size")
  })

  test("more than the model's context is an error whatever memory there is", () => {
    expect(() => planMemory({ ...REQUEST, contextLength: 8193 })).toThrow(ConfigError)
    expect(() => planMemory({ ...REQUEST, contextLength: 4096, kvCacheTokens: 4000 })).toThrow(
      "--cache-tokens 4000: less than one context (--ctx 4096)",
    )
  })

  test("a cache smaller than the model's context limits it, a larger one serves more sequences", () => {
    const small = planMemory({ ...REQUEST, kvCacheTokens: 1000 })
    expect(small).toMatchObject({ contextLength: 1000, kvCacheTokens: 1024 })
    const large = planMemory({ ...REQUEST, kvCacheTokens: 32_768 })
    expect(large).toMatchObject({ contextLength: 8192, kvCacheTokens: 32_768 })
  })

  test("no plan exceeds what is free", () => {
    const sizes = fc.integer({ min: 1, max: 40 * GiB })
    fc.assert(
      fc.property(
        fc.record({
          contextLength: fc.integer({ min: 0, max: 10_000 }),
          kvCacheTokens: fc.integer({ min: 0, max: 100_000 }),
          pageSize: fc.constantFrom(8, 32, 256),
          modelLength: fc.integer({ min: 1, max: 200_000 }),
          bytesPerPage: fc.integer({ min: 1, max: 2 ** 26 }),
          weightBytes: sizes,
          stateBytes: sizes,
          workspaceBytes: sizes,
          freeBytes: sizes,
        }),
        (request) => {
          try {
            const plan = planMemory(request)
            expect(
              plan.kvBytes + request.weightBytes + request.stateBytes + request.workspaceBytes,
            ).toBeLessThan(request.freeBytes)
            expect(plan.contextLength).toBeGreaterThan(0)
            expect(plan.contextLength).toBeLessThanOrEqual(request.modelLength)
            expect(plan.contextLength).toBeLessThanOrEqual(plan.kvCacheTokens)
          } catch (error) {
            if (!(error instanceof MemoryError || error instanceof ConfigError)) throw error
          }
        },
      ),
      { numRuns: 500 },
    )
  })
})
