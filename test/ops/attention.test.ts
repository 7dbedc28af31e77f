import { describe, expect, test } from "bun:test"

import { Backend } from "../../src/native/backend.ts"
import { type AttentionOptions, pagedAttention, storeKv } from "../../src/ops/attention.ts"
import { dequantize } from "../../src/ops/elementwise.ts"
import { BF16, type DTypeInfo, F8_E4M3, F16, F32, Q8_0 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { attention, type AttentionCase } from "../reference/attention.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"

/** A sequence of a batch: cached tokens, then new ones. */
interface Part {
  readonly cached: number
  readonly queries: number
}

interface Layout extends AttentionCase {
  readonly pageSize: number
  readonly half: boolean
  /** A cache of Q8_0; overrides `half`. */
  readonly q8?: boolean
  /** Types that only devices cache; they override `half`. */
  readonly cache?: "bf16" | "f8"
  /** Values are the first vDim of each key: one cache holds both. */
  readonly latent?: boolean
}

/** Values as blocks of 32 bytes with a half that scales them give them back; rows are whole blocks. */
function throughQ8(values: Float32Array): Float32Array {
  const out = new Float32Array(values.length)
  for (let start = 0; start < values.length; start += 32) {
    const block = values.subarray(start, start + 32)
    const scale = Float16Array.of(Math.max(...block.map(Math.abs)) / 127)[0] as number
    block.forEach((x, i) => {
      const code = scale === 0 ? 0 : Math.max(-127, Math.min(127, Math.round(x / scale)))
      out[start + i] = code * scale + 0 // no negative zeros
    })
  }
  return out
}

/** Whether prompts' operands are two bf16 numbers each. */
function usesTiles({ isa, precision }: Backend): boolean {
  return isa === "amx" && precision === "fast"
}

function cacheType({ q8, cache, half }: Layout): DTypeInfo {
  if (cache !== undefined) return cache === "bf16" ? BF16 : F8_E4M3
  return q8 ? Q8_0 : half ? F16 : F32
}

/** The nearest of 8 bits of a fraction. */
function throughBf16(values: Float32Array): Float32Array {
  const bits = new Uint32Array(Float32Array.from(values).buffer)
  for (let i = 0; i < bits.length; i++) {
    const own = bits[i] as number
    bits[i] = (own + 0x7fff + ((own >>> 16) & 1)) & 0xffff0000
  }
  return new Float32Array(bits.buffer)
}

/** E4M3's values from zero up. */
const E4M3 = Array.from({ length: 127 }, (_, code) => {
  const [exponent, mantissa] = [code >> 3, code & 7]
  return exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10)
})

/** Blocks of 128 with a scale that makes the greatest value 448. */
function throughF8(values: Float32Array): Float32Array {
  const out = new Float32Array(values.length)
  for (let start = 0; start < values.length; start += 128) {
    const block = values.subarray(start, start + 128)
    const scale = Math.fround(Math.max(...block.map(Math.abs)) / 448)
    block.forEach((x, i) => {
      const size = Math.abs(Math.fround(x / scale))
      const above = E4M3.findIndex((value) => value >= size)
      const code = above < 0 ? 126 : above
      const [low, high] = [E4M3[Math.max(0, code - 1)] as number, E4M3[code] as number]
      const isLow = size - low < high - size || (size - low === high - size && code % 2 === 1)
      out[start + i] = Math.sign(x) * (isLow ? low : high) * scale
    })
  }
  return out
}

/** K and V of whole sequences, stored into pages that are shuffled and hold garbage elsewhere. */
class Fixture {
  readonly parts: readonly Part[]
  readonly layout: Layout
  readonly q: Float32Array[]
  readonly k: Float32Array[]
  readonly v: Float32Array[]

  constructor(layout: Layout, parts: readonly Part[], seed: number) {
    this.layout = layout
    this.parts = parts
    const { heads, kvHeads, kDim, vDim } = layout
    const rows = (count: number, width: number, index: number): Float32Array => {
      const values = randomArray(count * width, seed + index)
      if (layout.q8) return throughQ8(values)
      if (layout.cache === "bf16") return throughBf16(values)
      if (layout.cache === "f8") return throughF8(values)
      return layout.half ? Float32Array.from(Float16Array.from(values)) : values
    }
    this.q = parts.map(({ queries }, i) =>
      randomArray(queries * heads * kDim, seed + 1000 + i, 1.5),
    )
    this.k = parts.map((p, i) => rows(p.cached + p.queries, kvHeads * kDim, 2000 + i))
    this.v = parts.map((p, i) =>
      layout.latent
        ? (this.k[i] as Float32Array).filter((_, j) => j % kDim < vDim)
        : rows(p.cached + p.queries, kvHeads * vDim, 3000 + i),
    )
  }

  /** The batch of the parts numbered `chosen`, run on a backend. */
  run(backend: Backend, chosen = this.parts.map((_, i) => i)): Float32Array[] {
    const { layout } = this
    const { heads, kvHeads, kDim, vDim, pageSize } = layout
    const lengths = chosen.map((i) => {
      const part = this.parts[i] as Part
      return part.cached + part.queries
    })
    const pagesOf = lengths.map((length) => Math.ceil(length / pageSize))
    const pages = pagesOf.reduce((a, b) => a + b, 0) + 3
    const maxPages = Math.max(...pagesOf) + 1
    const dtype = cacheType(layout)
    const kCache = Tensor.empty(backend, dtype, [pages, kvHeads, pageSize, kDim])
    const vCache = layout.latent
      ? kCache.narrow(3, 0, vDim)
      : Tensor.empty(backend, dtype, [pages, kvHeads, pageSize, vDim])
    const rest = layout.latent ? kCache.narrow(3, vDim, kDim - vDim) : undefined
    kCache.write(kCache.bytes().fill(0xff)) // NaN: what no token was stored to must not be used
    if (!layout.latent) vCache.write(vCache.bytes().fill(0xff))
    const table = new Int32Array(chosen.length * maxPages).fill(-1)
    let next = pages - 1
    pagesOf.forEach((count, s) => {
      for (let i = 0; i < count; i++) table[s * maxPages + i] = next--
    })
    const slots = lengths.flatMap((length, s) =>
      Array.from({ length }, (_, j) => {
        const page = table[s * maxPages + Math.floor(j / pageSize)] as number
        return page * pageSize + (j % pageSize)
      }),
    )
    const join = (list: Float32Array[]): Float32Array =>
      Float32Array.from(chosen.flatMap((i) => [...(list[i] as Float32Array)]))
    const total = slots.length
    const keys = Tensor.from(backend, join(this.k), [total, kvHeads, kDim])
    const values = Tensor.from(backend, join(this.v), [total, kvHeads, vDim])
    const slotMapping = Tensor.from(backend, Int32Array.from(slots))
    if (rest === undefined) storeKv(keys, values, slotMapping, kCache, vCache)
    else storeKv(values, keys.narrow(2, vDim, kDim - vDim), slotMapping, vCache, rest)
    const starts = new Int32Array(chosen.length + 1)
    chosen.forEach((i, s) => {
      starts[s + 1] = (starts[s] as number) + (this.parts[i] as Part).queries
    })
    const tokens = starts[chosen.length] as number
    const options: AttentionOptions = {
      scale: layout.scale,
      softCap: layout.softCap ?? 0,
      slidingWindow: layout.slidingWindow ?? 0,
      chunkSize: layout.chunkSize ?? 0,
      temperature: layout.temperature,
      sinks: layout.sinks ? Tensor.from(backend, Float32Array.from(layout.sinks)) : null,
      bidirectional: layout.bidirectional ?? false,
    }
    const out = pagedAttention(
      Tensor.from(backend, join(this.q), [tokens, heads, kDim]),
      kCache,
      vCache,
      Tensor.from(backend, table, [chosen.length, maxPages]),
      Tensor.from(backend, starts),
      Tensor.from(backend, Int32Array.from(lengths)),
      options,
    )
    expect(out.shape).toEqual([tokens, heads, vDim])
    const flat = out.toFloat32Array()
    backend.resetStep()
    return chosen.map((_, s) =>
      flat.slice((starts[s] as number) * heads * vDim, (starts[s + 1] as number) * heads * vDim),
    )
  }

  /** Runs the whole batch and compares each sequence with the definition. Tiles take operands as two bf16 numbers each. */
  check(backend: Backend, tolerance = usesTiles(backend) ? 2e-5 : 1e-6): void {
    this.run(backend).forEach((got, i) => {
      const want = attention(
        this.q[i] as Float32Array,
        this.k[i] as Float32Array,
        this.v[i] as Float32Array,
        this.layout,
      )
      expectClose(got, want, tolerance)
    })
  }
}

const BASE: Layout = {
  heads: 4,
  kvHeads: 2,
  kDim: 64,
  vDim: 64,
  scale: 0.125,
  pageSize: 32,
  half: true,
}

const MIXED: readonly Part[] = [
  { cached: 0, queries: 1 },
  { cached: 6, queries: 1 },
  { cached: 0, queries: 130 },
  { cached: 255, queries: 1 },
  { cached: 37, queries: 3 },
  { cached: 256, queries: 1 },
  { cached: 100, queries: 65 },
  { cached: 700, queries: 1 },
  { cached: 250, queries: 9 },
]

const SMALL: readonly Part[] = [
  { cached: 40, queries: 1 },
  { cached: 3, queries: 19 },
  { cached: 300, queries: 2 },
]
const FEW: readonly Part[] = [
  { cached: 300, queries: 2 },
  { cached: 0, queries: 3 },
  { cached: 127, queries: 1 },
]

describeBackends("pagedAttention", (backend) => {
  // devices give sums in halves to prompts with precision fast, which have their own test
  if (!backend.isHost) backend.precision = "f32"

  // few tokens' keys are shared out to several blocks
  test.skipIf(backend.isHost).each([
    ["prompts", MIXED],
    ["steps", FEW],
  ] as const)("%s by tensor cores: halves, with float sums", (_, parts) => {
    backend.precision = "fast"
    try {
      for (const dim of [64, 128])
        for (const [heads, kvHeads] of [
          [2, 2],
          [4, 2],
          [6, 2],
          [8, 1],
          [16, 1],
        ] as const)
          for (const how of [
            {},
            { slidingWindow: 50 },
            { chunkSize: 64 },
            { softCap: 5 },
            { sinks: randomArray(heads, 9) },
          ]) {
            const layout = { ...BASE, ...how, heads, kvHeads, kDim: dim, vDim: dim, pageSize: 16 }
            new Fixture(layout, parts, dim + heads).check(backend, 2e-3)
          }
    } finally {
      backend.precision = "f32"
    }
  })

  test.skipIf(backend.isHost)("caches of bf16 and of E4M3", () => {
    for (const cache of ["bf16", "f8"] as const)
      for (const dim of [128, 256]) {
        const layout = { ...BASE, cache, kDim: dim, vDim: 128, pageSize: 8 }
        new Fixture(layout, SMALL, dim).check(backend, 2e-6)
      }
    backend.precision = "fast"
    try {
      for (const dim of [64, 128]) {
        const layout = { ...BASE, cache: "bf16" as const, kDim: dim, vDim: dim }
        new Fixture(layout, MIXED, dim).check(backend, 1.5e-2)
      }
    } finally {
      backend.precision = "f32"
    }
  })

  test.skipIf(backend.isHost)("latents by tensor cores: halves or bf16, with float sums", () => {
    backend.precision = "fast"
    try {
      for (const heads of [4, 16, 20, 64, 128])
        for (const how of [
          {},
          { slidingWindow: 50 },
          { softCap: 5 },
          { sinks: randomArray(heads, 9), pageSize: 8 },
        ]) {
          const shape = { heads, kvHeads: 1, kDim: 576, vDim: 512, latent: true, scale: 0.04 }
          const parts = heads === 16 ? MIXED : SMALL
          new Fixture({ ...BASE, ...shape, ...how }, parts, heads).check(backend, 2e-3)
          const bf16 = { ...BASE, ...shape, ...how, cache: "bf16" as const }
          new Fixture(bf16, parts, heads).check(backend, 1.5e-2)
        }
    } finally {
      backend.precision = "f32"
    }
  })

  for (const half of [true, false]) {
    const type = half ? "F16" : "F32"
    test(`a ragged batch of decodes and chunks, ${type}`, () => {
      new Fixture({ ...BASE, half }, MIXED, 1).check(backend)
    })

    for (const [kDim, vDim] of [
      [8, 8],
      [24, 24],
      [40, 40],
      [80, 80],
      [96, 96],
      [128, 128],
      [256, 256],
      [192, 128],
      [24, 72],
      [8, 248],
    ] as const) {
      test(`head dimensions ${kDim}, ${vDim}, ${type}`, () => {
        const layout = { ...BASE, half, kDim, vDim, scale: 1 / Math.sqrt(kDim), pageSize: 8 }
        new Fixture(layout, SMALL, kDim).check(backend)
      })
    }
  }

  for (const [heads, kvHeads] of [
    [1, 1],
    [2, 1],
    [3, 1],
    [4, 1],
    [9, 3],
  ] as const) {
    test(`a cache of Q8_0, ${heads} heads on ${kvHeads}`, () => {
      const layout = { ...BASE, heads, kvHeads, q8: true }
      new Fixture(layout, MIXED, heads).check(backend)
      new Fixture({ ...layout, kDim: 96, vDim: 32 }, SMALL, heads + 1).check(backend)
      const latent = { ...layout, kvHeads: 1, latent: true, kDim: 96, vDim: 64, pageSize: 8 }
      new Fixture(latent, SMALL, heads + 2).check(backend)
    })
  }

  test("values of Q8_0 that are all zero, tiny or large are kept", () => {
    const cache = (): Tensor => Tensor.empty(backend, Q8_0, [1, 1, 8, 64])
    const [kCache, vCache] = [cache(), cache()]
    const rows = new Float32Array(5 * 64)
    for (let i = 0; i < 64; i++) {
      rows[64 + i] = 1e-9 * i // its scale is none
      rows[128 + i] = i === 5 ? 60000 : i - 20
      rows[192 + i] = (i % 2 === 0 ? 1 : -1) * 0.37
      rows[256 + i] = Math.sin(i)
    }
    const x = Tensor.from(backend, rows, [5, 1, 64])
    storeKv(x, x, Tensor.from(backend, Int32Array.of(0, 1, 2, 3, 4)), kCache, vCache)
    const stored = dequantize(kCache.reshape([8, 64]))
    expect([...stored.toFloat32Array().slice(0, rows.length)]).toEqual([...throughQ8(rows)])
  })

  for (const [heads, kvHeads] of [
    [1, 1],
    [3, 3],
    [6, 2],
    [9, 3],
    [10, 2],
    [8, 1],
    [17, 1],
    [100, 1],
  ] as const) {
    test(`${heads} heads on ${kvHeads}`, () => {
      new Fixture({ ...BASE, heads, kvHeads, kDim: 16, vDim: 24 }, SMALL, heads).check(backend)
    })
  }

  for (const heads of [1, 6, 16, 34, 128]) {
    test(`latents shared by ${heads} heads, values within keys`, () => {
      const latent = { ...BASE, heads, kvHeads: 1, latent: true }
      new Fixture({ ...latent, kDim: 40, vDim: 32 }, MIXED, heads).check(backend)
      const layout = { ...latent, kDim: 576, vDim: 512, scale: 0.04, half: heads !== 16 }
      new Fixture(layout, SMALL, heads).check(backend)
    })
  }

  for (const slidingWindow of [1, 7, 64, 300, 5000]) {
    test(`window of ${slidingWindow}`, () => {
      const layout = { ...BASE, slidingWindow, kDim: 16, vDim: 16, pageSize: 8 }
      new Fixture(layout, MIXED, slidingWindow).check(backend)
    })
  }

  for (const chunkSize of [1, 8, 50, 64, 300, 5000]) {
    test(`chunks of ${chunkSize}`, () => {
      const layout = { ...BASE, chunkSize, kDim: 16, vDim: 16, pageSize: 8 }
      new Fixture(layout, MIXED, chunkSize).check(backend)
      new Fixture({ ...layout, slidingWindow: 20 }, SMALL, chunkSize).check(backend)
    })
  }

  test("a temperature that grows with the position", () => {
    const layout = { ...BASE, kDim: 16, vDim: 16, temperature: { scale: 0.8, floor: 4 } }
    new Fixture(layout, MIXED, 1).check(backend)
    new Fixture({ ...layout, temperature: { scale: 0.1, floor: 8192 } }, SMALL, 2).check(backend)
  })

  test("soft cap, sinks, and all at once", () => {
    const sinks = [0.5, -3, 2, 9]
    const small = { ...BASE, kDim: 32, vDim: 32, scale: 0.4 }
    new Fixture({ ...small, softCap: 2 }, SMALL, 1).check(backend)
    new Fixture({ ...small, sinks }, MIXED, 2).check(backend)
    new Fixture({ ...small, softCap: 5, sinks, slidingWindow: 20 }, MIXED, 3).check(backend)
  })

  test("bidirectional: queries see later keys too", () => {
    const layout = { ...BASE, bidirectional: true }
    new Fixture(layout, MIXED, 21).check(backend)
    new Fixture(
      { ...layout, half: false, heads: 3, kvHeads: 3, kDim: 8, vDim: 8 },
      MIXED,
      22,
    ).check(backend)
    const whole = [1, 2, 5, 16, 17, 63, 64, 65, 200, 300].map((queries) => ({ cached: 0, queries }))
    new Fixture({ ...layout, kvHeads: 4, kDim: 32, vDim: 32, pageSize: 8 }, whole, 23).check(
      backend,
    )
    new Fixture({ ...layout, softCap: 2, sinks: [0.5, -3, 2, 9] }, SMALL, 24).check(backend)
    const windowed = { ...layout, slidingWindow: 4 }
    expect(() => new Fixture(windowed, SMALL, 25).run(backend)).toThrow(
      "bidirectional attention has no window",
    )
  })

  test("scores far from zero neither overflow nor vanish", () => {
    // a score of 300 in f32 is off by 1e-5 whatever computes it, as two bf16 numbers by some times that
    const fixture = new Fixture({ ...BASE, scale: 30, half: false }, SMALL, 5)
    fixture.check(backend, usesTiles(backend) ? 1e-4 : 1e-5)
  })

  test("page sizes that are no multiple of anything", () => {
    for (const pageSize of [1, 5, 33, 256])
      new Fixture({ ...BASE, kDim: 16, vDim: 16, pageSize }, SMALL, pageSize).check(backend)
  })

  test("a sequence's values do not depend on the batch", () => {
    const fixture = new Fixture(BASE, MIXED, 11)
    const together = fixture.run(backend)
    MIXED.forEach((_, i) =>
      expect(fixture.run(backend, [i])[0]).toEqual(together[i] as Float32Array),
    )
  })

  test("a chunk's values do not depend on where it begins", () => {
    for (const variant of [
      {},
      { slidingWindow: 50 },
      { chunkSize: 40 },
      { temperature: { scale: 0.8, floor: 4 } },
    ]) {
      const layout: Layout = { ...BASE, ...variant }
      const whole = new Fixture(layout, [{ cached: 0, queries: 150 }], 4)
      const width = layout.heads * layout.vDim
      const all = whole.run(backend)[0] as Float32Array
      for (const cut of [17, 64, 100]) {
        const first = new Fixture(layout, [{ cached: 0, queries: cut }], 4)
        const rest = new Fixture(layout, [{ cached: cut, queries: 150 - cut }], 4)
        first.q[0] = (whole.q[0] as Float32Array).slice(0, cut * layout.heads * layout.kDim)
        rest.q[0] = (whole.q[0] as Float32Array).slice(cut * layout.heads * layout.kDim)
        for (const part of [first, rest]) {
          const tokens = part === first ? cut : 150
          part.k[0] = (whole.k[0] as Float32Array).slice(0, tokens * layout.kvHeads * layout.kDim)
          part.v[0] = (whole.v[0] as Float32Array).slice(0, tokens * layout.kvHeads * layout.vDim)
        }
        expect(first.run(backend)[0]).toEqual(all.slice(0, cut * width))
        expect(rest.run(backend)[0]).toEqual(all.slice(cut * width))
      }
    }
  })

  test("rows of wider tensors are read and written where they lie", () => {
    const [tokens, heads, dim, pageSize] = [5, 2, 16, 8]
    const q = randomArray(tokens * heads * dim, 1)
    const k = randomArray(tokens * dim, 2)
    const v = randomArray(tokens * dim, 3)
    const rows = new Float32Array(tokens * 64)
    for (let t = 0; t < tokens; t++) {
      rows.set(q.subarray(t * 32, t * 32 + 32), t * 64)
      rows.set(k.subarray(t * 16, t * 16 + 16), t * 64 + 32)
      rows.set(v.subarray(t * 16, t * 16 + 16), t * 64 + 48)
    }
    const fused = Tensor.from(backend, rows, [tokens, 64])
    const cache = (): Tensor => Tensor.empty(backend, F32, [1, 1, pageSize, dim])
    const [kCache, vCache] = [cache(), cache()]
    const view = (start: number, count: number): Tensor =>
      fused.narrow(1, start, count * dim).unflatten(1, [count, dim])
    const slots = Tensor.from(backend, Int32Array.of(0, 1, 2, 3, 4))
    storeKv(view(32, 1), view(48, 1), slots, kCache, vCache)
    const wide = Tensor.from(backend, new Float32Array(tokens * 64).fill(7), [tokens, 64])
    pagedAttention(
      view(0, heads),
      kCache,
      vCache,
      Tensor.from(backend, Int32Array.of(0), [1, 1]),
      Tensor.from(backend, Int32Array.of(0, tokens)),
      Tensor.from(backend, Int32Array.of(tokens)),
      { scale: 0.25 },
      wide.narrow(1, 16, heads * dim).unflatten(1, [heads, dim]),
    )
    const want = attention(q, k, v, { heads, kvHeads: 1, kDim: dim, vDim: dim, scale: 0.25 })
    const got = wide.toFloat32Array()
    for (let t = 0; t < tokens; t++) {
      expectClose(got.slice(t * 64 + 16, t * 64 + 48), want.slice(t * 32, t * 32 + 32), 1e-6)
      expect([...got.slice(t * 64, t * 64 + 16), ...got.slice(t * 64 + 48, t * 64 + 64)]).toEqual(
        Array(32).fill(7),
      )
    }
  })

  test("negative slots are skipped, halves rounded to nearest even", () => {
    const cache = (): Tensor => {
      const tensor = Tensor.empty(backend, F16, [2, 1, 4, 8])
      tensor.write(tensor.bytes().fill(0))
      return tensor
    }
    const [kCache, vCache] = [cache(), cache()]
    const k = Float32Array.of(1, -2.5, 65504, 1e-7, 6e-8, 1.00048828125, 1.00146484375, 70000)
    const two = Float32Array.from([...k, ...k.map(() => 9)])
    storeKv(
      Tensor.from(backend, two, [2, 1, 8]),
      Tensor.from(
        backend,
        two.map((x) => -x),
        [2, 1, 8],
      ),
      Tensor.from(backend, Int32Array.of(6, -1)),
      kCache,
      vCache,
    )
    const want = new Float32Array(64)
    want.set(Float32Array.from(Float16Array.from(k)), 48)
    expect(kCache.toFloat32Array()).toEqual(want)
    expect(vCache.toFloat32Array().slice(48, 56)).toEqual(
      Float32Array.from(Float16Array.from(k.map((x) => -x))),
    )
  })

  test.skipIf(!backend.isHost)(
    "what the pointers depend on is checked, and named with its value",
    () => {
      const cache = (): Tensor => Tensor.empty(backend, F16, [4, 1, 8, 16])
      const [kCache, vCache] = [cache(), cache()]
      const q = Tensor.from(backend, randomArray(3 * 32, 1), [3, 2, 16])
      const run = (
        table: number[],
        starts: number[],
        lens: number[],
        options: Partial<AttentionOptions> = {},
      ): Tensor =>
        pagedAttention(
          q,
          kCache,
          vCache,
          Tensor.from(backend, Int32Array.from(table), [lens.length, table.length / lens.length]),
          Tensor.from(backend, Int32Array.from(starts)),
          Tensor.from(backend, Int32Array.from(lens)),
          { scale: 1, ...options },
        )
      kCache.write(kCache.bytes().fill(0))
      vCache.write(vCache.bytes().fill(0))
      expect(() => run([0, 1], [0, 3], [16])).not.toThrow()
      expect(() => run([0, 4], [0, 3], [16])).toThrow(
        "block_tables[0][1] is 4, the cache has 4 pages",
      )
      expect(() => run([0, -1], [0, 3], [16])).toThrow("block_tables[0][1] is -1")
      expect(() => run([0, -1], [0, 3], [8])).not.toThrow()
      expect(() => run([-1, 1], [0, 1], [16], { slidingWindow: 8 })).not.toThrow()
      expect(() => run([0, 1], [0, 3], [17])).toThrow("seq_lens[0] is 17")
      expect(() => run([0, 1], [0, 3], [2])).toThrow("seq_lens[0] is 2")
      expect(() => run([0, 1], [0, 4], [8])).toThrow("query_start[0] to [1] is 0 to 4")
      expect(() => run([0, 1, 2, 3], [0, 3, 2], [8, 8])).toThrow("query_start[1] to [2] is 3 to 2")
      expect(() => run([0, 1, 2, 3], [0, 0, 2], [0, 8])).not.toThrow()
      expect(() => run([0, 1], [-1, 3], [8])).toThrow("query_start[0] to [1] is -1 to 3")
      expect(() => run([0, 1], [0, 1], [8], { slidingWindow: -1 })).toThrow("sliding_window is -1")
      expect(() => run([0, 1], [0, 1], [8], { softCap: -1 })).toThrow("soft_cap is -1")
      expect(() => run([-1, 1], [0, 1], [16], { chunkSize: 8 })).not.toThrow()
      expect(() => run([-1, 1], [0, 1], [8], { chunkSize: 8 })).toThrow("block_tables[0][0] is -1")
      expect(() => run([0, 1], [0, 1], [8], { chunkSize: -1 })).toThrow("chunk_size is -1")
      const temperature = { scale: 1, floor: 0 }
      expect(() => run([0, 1], [0, 1], [8], { temperature })).toThrow("temperature_floor is 0")
      const k = Tensor.from(backend, randomArray(16, 1), [1, 1, 16])
      expect(() => storeKv(k, k, Tensor.from(backend, Int32Array.of(32)), kCache, vCache)).toThrow(
        "slot_mapping[0] is 32, the cache has 32 slots",
      )
      const wide = Tensor.empty(backend, F16, [4, 2, 8, 16])
      expect(() => storeKv(k, k, Tensor.from(backend, Int32Array.of(1)), wide, wide)).toThrow(
        "k dimension 1 is 1, expected 2",
      )
    },
  )
})

describe("pagedAttention over threads", () => {
  test("one, two and three threads give the same values", () => {
    const fixture = new Fixture(BASE, MIXED, 21)
    const results = [1, 2, 3].map((threads) => {
      const backend = new Backend({ threads })
      const out = fixture.run(backend)
      backend[Symbol.dispose]()
      return out
    })
    expect(results[1]).toEqual(results[0] as Float32Array[])
    expect(results[2]).toEqual(results[0] as Float32Array[])
  })
})
