import { afterAll, describe, expect, test } from "bun:test"

import { KVPool } from "../../src/kvcache/pool.ts"
import { Backend } from "../../src/native/backend.ts"
import type { ForwardBatch } from "../../src/nn/forward-batch.ts"
import {
  LatentAttention,
  type LatentSizes,
  prefersExpanded,
} from "../../src/nn/latent-attention.ts"
import { LatentProjection } from "../../src/nn/latent.ts"
import { type DTypeInfo, F16, F32, Q8_0 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { expectClose, randomArray } from "../ops/harness.ts"
import { dequantized, randomWeight } from "../ops/weights.ts"
import { attention } from "../reference/attention.ts"
import { headLinear } from "../reference/head-linear.ts"

const backend = new Backend({ threads: 2, precision: "f32" })
afterAll(() => backend[Symbol.dispose]())

const SIZES: LatentSizes = { rank: 64, nope: 32, rotary: 8, value: 24 }
const HEADS = 6
const SCALE = 0.15
const PAGE = 8

/** New tokens of a sequence after those it has. */
interface Piece {
  readonly cached: number
  readonly count: number
}

/** A projection of random weights, and those weights as keys [heads, nope, rank] and values [heads, value, rank]. */
function projectionOf(dtype: DTypeInfo, split: boolean) {
  const { rank, nope, value } = SIZES
  const options = { numHeads: HEADS, rank, keyDim: nope, valueDim: value, split }
  const projection = new LatentProjection(options)
  const weights = projection.parameters().map(({ shape, bind }, i) => {
    const weight = randomWeight(backend, dtype, shape, i + 1)
    bind(weight)
    return dequantized(weight)
  })
  const [first, second] = weights as [Float32Array, Float32Array | undefined]
  const keys = new Float32Array(HEADS * nope * rank)
  const values = second ?? new Float32Array(HEADS * value * rank)
  for (let h = 0; h < HEADS; h++) {
    for (let i = 0; i < nope * rank; i++) {
      const [n, r] = [Math.floor(i / rank), i % rank]
      const at = second ? (h * rank + r) * nope + n : (h * (nope + value) + n) * rank + r
      keys[h * nope * rank + i] = first[at] as number
    }
    if (second === undefined) {
      const start = (h * (nope + value) + nope) * rank
      values.set(first.subarray(start, start + value * rank), h * value * rank)
    }
  }
  return { projection, keys, values }
}

/** Runs the pieces as one batch; what was cached is given to the cache before. */
function run(
  pieces: readonly Piece[],
  { projection, keys, values }: ReturnType<typeof projectionOf>,
  options: { expandedBytes?: number; dtype: DTypeInfo },
): { got: Float32Array; want: Float32Array } {
  const { rank, nope, rotary, value } = SIZES
  const lengths = pieces.map(({ cached, count }) => cached + count)
  const perSeq = Math.ceil(Math.max(...lengths) / PAGE)
  const pages = perSeq * pieces.length
  const layer = { kvHeads: 1, kDim: rank + rotary, vDim: rank, valuesInKeys: true }
  const pool = new KVPool(backend, [layer], { pages, pageSize: PAGE, dtype: options.dtype })
  const attn = new LatentAttention({
    layerIdx: 0,
    numHeads: HEADS,
    scale: SCALE,
    sizes: SIZES,
    ...options,
  })
  const page = (s: number, i: number): number => (perSeq - 1 - i) * pieces.length + s
  const slot = (s: number, p: number): number => page(s, Math.floor(p / PAGE)) * PAGE + (p % PAGE)
  const stored = lengths.map((n, s) => {
    const all = randomArray(n * (rank + rotary), 10 + s)
    return options.dtype === F16 ? Float32Array.from(Float16Array.from(all)) : all
  })
  const queries = pieces.map(({ count }, s) => randomArray(count * HEADS * (nope + rotary), 50 + s))
  const ints = (list: readonly number[], shape = [list.length]): Tensor =>
    Tensor.from(backend, Int32Array.from(list), shape)
  const step = (from: (s: number) => number, to: (s: number) => number): Float32Array => {
    const rows = pieces.flatMap((_, s) =>
      Array.from({ length: to(s) - from(s) }, (_u, i) => [s, from(s) + i] as const),
    )
    const part = (start: number, width: number): Float32Array =>
      Float32Array.from(
        rows.flatMap(([s, p]) => {
          const at = p * (rank + rotary) + start
          return [...(stored[s] as Float32Array).subarray(at, at + width)]
        }),
      )
    const starts = [0]
    for (let s = 0; s < pieces.length; s++) starts.push((starts[s] as number) + to(s) - from(s))
    const q = Float32Array.from(
      rows.flatMap(([s, p]) => {
        const width = HEADS * (nope + rotary)
        const at = p - (pieces[s] as Piece).cached
        return at < 0
          ? Array<number>(width).fill(0)
          : [...(queries[s] as Float32Array).subarray(at * width, (at + 1) * width)]
      }),
    )
    const empty = ints([0])
    const batch: ForwardBatch = {
      phase: rows.length === pieces.length ? "decode" : "prefill",
      numTokens: rows.length,
      numSeqs: pieces.length,
      inputIds: empty,
      positions: empty,
      slotMapping: ints(rows.map(([s, p]) => slot(s, p))),
      blockTables: ints(
        pieces.flatMap((_, s) => Array.from({ length: perSeq }, (_u, i) => page(s, i))),
        [pieces.length, perSeq],
      ),
      queryStart: ints(starts),
      seqLens: ints(pieces.map((_, s) => to(s))),
      logitsRows: empty,
      ropeLengths: new Int32Array(0),
      kvCache: pool.layers,
    }
    const out = attn.mix(
      Tensor.from(backend, q, [rows.length, HEADS, nope + rotary]),
      Tensor.from(backend, part(0, rank), [rows.length, rank]),
      Tensor.from(backend, part(rank, rotary), [rows.length, 1, rotary]),
      projection,
      batch,
    )
    return out.toFloat32Array()
  }
  if (pieces.some(({ cached }) => cached > 0)) {
    step(
      () => 0,
      (s) => (pieces[s] as Piece).cached,
    )
  }
  const got = step(
    (s) => (pieces[s] as Piece).cached,
    (s) => lengths[s] as number,
  )
  backend.resetStep()
  pool[Symbol.dispose]()
  const want = pieces.flatMap((_, s) => {
    const rows = stored[s] as Float32Array
    const repeated = Float32Array.from(
      Array.from({ length: lengths[s] as number }, (_u, p) => {
        const at = p * (rank + rotary)
        return Array<number[]>(HEADS).fill([...rows.subarray(at, at + rank)])
      }).flat(2),
    )
    const shape = { heads: HEADS, cols: rank, transposed: false }
    const own = headLinear(repeated, keys, { ...shape, rows: nope })
    const k = Float64Array.from(
      Array.from({ length: (lengths[s] as number) * HEADS }, (_u, i) => {
        const at = Math.floor(i / HEADS) * (rank + rotary) + rank
        return [...own.subarray(i * nope, (i + 1) * nope), ...rows.subarray(at, at + rotary)]
      }).flat(),
    )
    const v = headLinear(repeated, values, { ...shape, rows: value })
    const spec = { heads: HEADS, kvHeads: HEADS, kDim: nope + rotary, vDim: value, scale: SCALE }
    return [...attention(queries[s] as Float32Array, k, v, spec)]
  })
  return { got, want: Float32Array.from(want) }
}

const MIXED: readonly Piece[] = [
  { cached: 3, count: 1 },
  { cached: 2, count: 60 },
  { cached: 30, count: 1 },
  { cached: 50, count: 2 },
  { cached: 9, count: 120 },
]

describe("LatentAttention", () => {
  for (const split of [false, true]) {
    for (const dtype of [F32, Q8_0]) {
      test(`${split ? "split" : "joint"} ${dtype.name} is attention of each head's own keys and values`, () => {
        const weights = projectionOf(dtype, split)
        for (const kv of [F32, F16]) {
          for (const expandedBytes of [0, 200_000, undefined]) {
            const bytes = expandedBytes === undefined ? {} : { expandedBytes }
            const { got, want } = run(MIXED, weights, { ...bytes, dtype: kv })
            expectClose(got, want, 3e-6)
          }
        }
      })
    }
  }

  test("decoding, alone and together", () => {
    const weights = projectionOf(F32, false)
    for (const pieces of [MIXED.map(({ cached }) => ({ cached, count: 1 })), MIXED.slice(0, 1)]) {
      const { got, want } = run(pieces, weights, { dtype: F32 })
      expectClose(got, want, 3e-6)
    }
  })

  test("the form follows from sizes, new tokens and memory", () => {
    const v3 = { rank: 512, nope: 128, rotary: 64, value: 128 }
    expect(prefersExpanded(v3, 1, 1)).toBe(false)
    expect(prefersExpanded(v3, 64, 4096)).toBe(false)
    expect(prefersExpanded(v3, 512, 4096)).toBe(true)
    expect(prefersExpanded(v3, 128, 128)).toBe(true)
    expect(prefersExpanded(v3, 512, 4096, 1_000_000)).toBe(false)
    // what the tests above compute: the second and the last of the batch, the last in groups of heads
    expect(MIXED.map(({ cached, count }) => prefersExpanded(SIZES, count, cached + count))).toEqual(
      [false, true, false, false, true],
    )
  })
})
