import { describe, expect, test } from "bun:test"

import { BlockManager } from "../../src/kvcache/block-manager.ts"
import type { CachedBlock } from "../../src/kvcache/prefix-cache.ts"
import { StateSlots } from "../../src/kvcache/state-slots.ts"

const page = (value: number): Int32Array => new Int32Array(4).fill(value)

function blockOf(blocks: BlockManager, value: number): CachedBlock {
  const kept = blocks.allocate()
  const block = blocks.publish(undefined, page(value), undefined, kept) as CachedBlock
  blocks.release(kept)
  return block
}

describe("state slots", () => {
  test("snapshots are handed out again least recently used first, never while they are read", () => {
    const states = new StateSlots(3)
    const blocks = new BlockManager({ pages: 8, pageSize: 4, prefixCache: true, states })
    const [a, b] = [blockOf(blocks, 1), blockOf(blocks, 2)]
    states.keep(a, states.take() as number)
    states.keep(b, states.take() as number)
    expect(states.read(a)).toBe(0)
    expect(states.numAvailable).toBe(2)
    expect(states.take()).toBe(2)
    expect(states.take()).toBe(1)
    expect(b.state).toBe(-1)
    expect(states.take()).toBeUndefined()
    states.unread(0)
    expect(states.numAvailable).toBe(1)
    expect(states.take()).toBe(0)
    expect(a.state).toBe(-1)
    states.release(2)
    expect(states.take()).toBe(2)
  })

  test("a block that goes takes its snapshot along, when nobody reads it any more", () => {
    const states = new StateSlots(2)
    const blocks = new BlockManager({ pages: 1, pageSize: 4, prefixCache: true, states })
    const block = blockOf(blocks, 1)
    states.keep(block, states.take() as number)
    states.read(block)
    blocks.allocate()
    expect(block.state).toBe(-1)
    expect(states.numSnapshots).toBe(0)
    expect(states.numAvailable).toBe(1)
    states.unread(0)
    expect(states.numAvailable).toBe(2)
    expect(() => states.unread(0)).toThrow("state slot 0 is read by nobody")
  })

  test("misuse is an error", () => {
    expect(() => new StateSlots(0)).toThrow("a state cache of 0 slots")
    const states = new StateSlots(2)
    const blocks = new BlockManager({ pages: 2, pageSize: 4, prefixCache: true, states })
    const block = blockOf(blocks, 1)
    expect(() => states.read(block)).toThrow("a block without snapshot was read")
    states.keep(block, 0)
    expect(() => states.keep(block, 1)).toThrow("a block has the snapshot 0 already")
  })
})
