import { expect, test } from "bun:test"

import { ropeKeyOf } from "../../src/engine/rope-key.ts"
import { ropeConfig } from "../../src/models/rope-config.ts"
import type { RopeConfig, RopeType } from "../../src/nn/rope.ts"

const rope = (type: RopeType): RopeConfig =>
  ropeConfig("config.json", "rope", {
    type,
    theta: 10_000,
    rotary_dim: 8,
    interleaved: false,
    max_position_embeddings: 32,
    original_max_position_embeddings: 16,
    factor: 2,
    low_freq_factor: 1,
    high_freq_factor: 4,
    short_factor: [1, 2, 3, 4],
    long_factor: [1, 2, 3, 4],
  })

test("lengths share KV pages exactly where the rope rotates them alike", () => {
  const key = (type: RopeType): ReturnType<typeof ropeKeyOf> =>
    ropeKeyOf({ rope: rope(type), rope_local: undefined })
  for (const type of ["default", "linear", "yarn", "llama3"] as const)
    expect(key(type)).toBeUndefined()
  expect([1, 16, 17, 18].map((n) => key("dynamic")?.(n))).toEqual([16, 16, 17, 18])
  expect([1, 16, 17, 99].map((n) => key("longrope")?.(n))).toEqual([0, 0, 1, 1])
  const both = ropeKeyOf({ rope: rope("dynamic"), rope_local: rope("longrope") })
  expect([1, 2, 17].map((n) => both?.(n))).toEqual([1, 2, 17])
})
