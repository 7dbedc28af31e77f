import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { BlockManager } from "../../src/kvcache/block-manager.ts"
import { type CachedBlock, hashBlock } from "../../src/kvcache/prefix-cache.ts"

const page = (value: number): Int32Array => new Int32Array(4).fill(value)

describe("block manager", () => {
  test("a page freed twice, or one too many, is an error", () => {
    const blocks = new BlockManager({ pages: 2, pageSize: 4, prefixCache: false })
    const first = blocks.allocate()
    blocks.allocate()
    expect(() => blocks.allocate()).toThrow("all 2 KV pages are in use")
    blocks.release(first)
    expect(() => blocks.release(first)).toThrow(`KV page ${first} was freed twice`)
    expect(blocks.allocate()).toBe(first)
  })

  test("untouched pages are used after touched ones, prefixes last", () => {
    const blocks = new BlockManager({ pages: 3, pageSize: 4, prefixCache: true })
    const kept = blocks.allocate()
    const block = blocks.publish(undefined, page(1), undefined, kept)
    blocks.release(kept)
    const scratch = blocks.allocate()
    blocks.release(scratch)
    expect(blocks.allocate()).toBe(scratch)
    expect(blocks.match(page(1), undefined, 1)).toEqual([block as CachedBlock])
    blocks.allocate()
    expect(blocks.allocate()).toBe(kept)
    expect(blocks.match(page(1), undefined, 1)).toEqual([])
    expect(blocks.numFree).toBe(0)
  })

  test("a chain is rebuilt after its start was dropped, while its end is still held", () => {
    const blocks = new BlockManager({ pages: 4, pageSize: 4, prefixCache: true })
    const a = blocks.allocate()
    const b = blocks.allocate()
    const start = blocks.publish(undefined, page(1), undefined, a)
    expect(blocks.publish(start, page(2), undefined, b)?.page).toBe(b)
    // the start goes first, which sequences never do
    blocks.release(a)
    for (let i = 0; i < 3; i++) blocks.allocate()
    expect(start?.page).toBe(-1)
    expect(blocks.publish(start, page(3), undefined, 2)).toBeUndefined()
    const again = blocks.publish(undefined, page(1), undefined, 2)
    expect(blocks.publish(again, page(2), undefined, 3)?.page).toBe(3)
    const chain = Int32Array.from([...page(1), ...page(2)])
    expect(blocks.match(chain, undefined, 2).map((block) => block.page)).toEqual([2, 3])
    // the stale block's page goes back without taking the new one along
    blocks.release(b)
    expect(blocks.allocate()).toBe(b)
    expect(blocks.match(chain, undefined, 2)).toHaveLength(2)
  })

  test("equal tokens after different beginnings are different blocks, whatever the hash says", () => {
    for (const hash of [hashBlock, () => 7]) {
      const blocks = new BlockManager({ pages: 8, pageSize: 4, prefixCache: true, hash })
      const first = blocks.publish(undefined, page(1), undefined, blocks.allocate())
      blocks.publish(first, page(9), undefined, blocks.allocate())
      expect(blocks.match(Int32Array.from([...page(2), ...page(9)]), undefined, 2)).toEqual([])
      expect(blocks.match(page(9), undefined, 1)).toEqual([])
      expect(blocks.match(page(1), page(0), 1)).toEqual([])
    }
  })

  test("hashes of short, similar blocks do not collide", () => {
    const seen = new Set<number>()
    for (let a = 0; a < 60; a++)
      for (let b = 0; b < 60; b++)
        for (const parent of [0, 1, 2 ** 40]) {
          seen.add(hashBlock(parent, Int32Array.of(a, b), undefined))
          seen.add(hashBlock(parent, Int32Array.of(a), Int32Array.of(b)))
        }
    expect(seen.size).toBe(60 * 60 * 6)
  })

  test("counts stay right under any order of use", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 6 }),
        fc.array(fc.tuple(fc.nat(3), fc.nat(9)), { maxLength: 200 }),
        (pages, steps) => {
          const blocks = new BlockManager({ pages, pageSize: 4, prefixCache: true })
          const held: number[] = []
          for (const [action, value] of steps) {
            if (action === 0 && blocks.numFree > 0) held.push(blocks.allocate())
            if (action === 1 && held.length > 0)
              blocks.release(held.splice(value % held.length, 1)[0] as number)
            const target = held[value % Math.max(held.length, 1)]
            if (action === 2 && target !== undefined && blocks.refCount(target) === 1)
              blocks.publish(undefined, page(value), undefined, target)
            if (action === 3) {
              const [hit] = blocks.match(page(value), undefined, 1)
              if (hit !== undefined) held.push(blocks.acquire(hit))
            }
            const used = new Set(held)
            expect(blocks.numFree).toBe(pages - used.size)
            for (const p of used)
              expect(blocks.refCount(p)).toBe(held.filter((other) => other === p).length)
          }
        },
      ),
      { numRuns: 500 },
    )
  })
})
