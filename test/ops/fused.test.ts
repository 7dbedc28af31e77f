import { expect, test } from "bun:test"

import type { Backend } from "../../src/native/backend.ts"
import { storeKv } from "../../src/ops/attention.ts"
import { actMul } from "../../src/ops/elementwise.ts"
import { gateUpAct, qkvRopeStore } from "../../src/ops/fused.ts"
import { linear, packWeight } from "../../src/ops/linear.ts"
import { rmsNorm } from "../../src/ops/rms-norm.ts"
import { rope, ropeTable } from "../../src/ops/rope.ts"
import { BF16, type DTypeInfo, F16, F32, Q4_1, Q4_K, Q5_0, Q8_0 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"
import { randomWeight } from "./weights.ts"

const TYPES: readonly DTypeInfo[] = [Q4_1, Q5_0, Q8_0, Q4_K, BF16, F32]
const TOKENS = [1, 3, 19]

function weights(
  backend: Backend,
  dtype: DTypeInfo,
  rows: number,
  n: number,
  seed: number,
): Tensor[] {
  const w = randomWeight(backend, dtype, [rows, n], seed)
  const packed = packWeight(w)
  return packed === null ? [w] : [w, packed]
}

/** The fused ops are tested against the plain ops, which are tested against float64. */
describeBackends("fused", (backend) => {
  test("gateUpAct is norm, two products and the activation", () => {
    backend.precision = "fast"
    for (const dtype of TYPES) {
      const n = 256
      const rows = 72
      const gates = weights(backend, dtype, rows, n, 1)
      const ups = weights(backend, dtype, rows, n, 2)
      for (const tokens of TOKENS) {
        const x = Tensor.from(backend, randomArray(tokens * n, tokens), [tokens, n])
        const norm = Tensor.from(backend, randomArray(n, 3))
        for (const withNorm of [true, false]) {
          const input = withNorm ? rmsNorm(x, norm, 1e-5, 1) : x
          for (const [i, gate] of gates.entries()) {
            const up = ups[i] as Tensor
            const want = actMul(
              linear(input, gate),
              linear(input, up),
              "gelu_pytorch_tanh",
            ).toFloat32Array()
            const got = gateUpAct(x, withNorm ? norm : null, 1e-5, 1, gate, up, "gelu_pytorch_tanh")
            expectClose(got.toFloat32Array(), want, 1e-6)
          }
        }
        backend.resetStep()
      }
    }
  })

  test("qkvRopeStore is norm, three products with bias, q/k norm, rope and the store", () => {
    backend.precision = "fast"
    const n = 256
    for (const { heads, kvHeads, dim, rot, cache } of [
      { heads: 4, kvHeads: 2, dim: 24, rot: 24, cache: F32 },
      { heads: 3, kvHeads: 1, dim: 64, rot: 32, cache: F16 },
    ]) {
      for (const dtype of [Q4_1, Q8_0, Q4_K, F32]) {
        const [q, k, v] = [
          weights(backend, dtype, heads * dim, n, 1),
          weights(backend, dtype, kvHeads * dim, n, 2),
          weights(backend, dtype, kvHeads * dim, n, 3),
        ] as [Tensor[], Tensor[], Tensor[]]
        for (const tokens of TOKENS) {
          for (const [i, wq] of q.entries()) {
            const [wk, wv] = [k[i] as Tensor, v[i] as Tensor]
            const x = Tensor.from(backend, randomArray(tokens * n, tokens), [tokens, n])
            const norm = Tensor.from(backend, randomArray(n, 3))
            const qNorm = Tensor.from(backend, randomArray(dim, 4))
            const kNorm = Tensor.from(backend, randomArray(dim, 5))
            const [bq, bk, bv] = [
              Tensor.from(backend, randomArray(heads * dim, 6)),
              Tensor.from(backend, randomArray(kvHeads * dim, 7)),
              Tensor.from(backend, randomArray(kvHeads * dim, 8)),
            ]
            const positions = Tensor.from(
              backend,
              Int32Array.from({ length: tokens }, (_, t) => t + 5),
            )
            const inverse = Tensor.from(
              backend,
              Float32Array.from({ length: rot / 2 }, (_, j) => 10000 ** ((-2 * j) / rot)),
              [1, rot / 2],
            )
            const table = ropeTable(positions, inverse, 1)
            // every other token of a cache of 10 pages of 8, the last one not stored
            const slots = Int32Array.from({ length: tokens }, (_, t) =>
              t === tokens - 1 && tokens > 1 ? -1 : 2 * t,
            )
            const slotMapping = Tensor.from(backend, slots)
            const shape = [10, kvHeads, 8, dim]
            const caches = (): [Tensor, Tensor] => [
              Tensor.allocate(backend, cache, shape),
              Tensor.allocate(backend, cache, shape),
            ]
            for (const interleaved of [false, true]) {
              const [kWant, vWant] = caches()
              const input = rmsNorm(x, norm, 1e-5)
              const qPlain = rmsNorm(
                linear(input, wq, bq).unflatten(-1, [heads, dim]),
                qNorm,
                1e-6,
                1,
              )
              const kPlain = rmsNorm(
                linear(input, wk, bk).unflatten(-1, [kvHeads, dim]),
                kNorm,
                1e-6,
                1,
              )
              const vPlain = linear(input, wv, bv).unflatten(-1, [kvHeads, dim])
              rope(qPlain, table, interleaved)
              rope(kPlain, table, interleaved)
              storeKv(kPlain, vPlain, slotMapping, kWant, vWant)
              const [kCache, vCache] = caches()
              const got = qkvRopeStore({
                x,
                normWeight: norm,
                eps: 1e-5,
                normOffset: 0,
                wq,
                wk,
                wv,
                bq,
                bk,
                bv,
                qNorm,
                kNorm,
                qkEps: 1e-6,
                qkNormOffset: 1,
                ropeTable: table,
                interleaved,
                slotMapping,
                kCache,
                vCache,
                numHeads: heads,
              })
              expectClose(got.toFloat32Array(), qPlain.toFloat32Array(), 1e-6)
              expectClose(kCache.toFloat32Array(), kWant.toFloat32Array(), 1e-5)
              expectClose(vCache.toFloat32Array(), vWant.toFloat32Array(), 1e-5)
              for (const tensor of [kWant, vWant, kCache, vCache]) tensor[Symbol.dispose]()
            }
            backend.resetStep()
          }
        }
      }
    }
  })

  test("qkvRopeStore norms q and k without weights", () => {
    const [heads, dim, n, tokens] = [2, 16, 32, 5]
    const w = randomWeight(backend, F32, [heads * dim, n], 1)
    const x = Tensor.from(backend, randomArray(tokens * n, 2), [tokens, n])
    const cache = (): Tensor => Tensor.allocate(backend, F32, [1, heads, 8, dim])
    const [kWant, vWant, kCache, vCache] = [cache(), cache(), cache(), cache()]
    const slotMapping = Tensor.from(
      backend,
      Int32Array.from({ length: tokens }, (_, t) => t),
    )
    const plain = linear(x, w).unflatten(-1, [heads, dim])
    const normed = rmsNorm(plain, null, 1e-5)
    storeKv(normed, plain, slotMapping, kWant, vWant)
    const operands = {
      x,
      normWeight: null,
      eps: 0,
      normOffset: 0,
      wq: w,
      wk: w,
      wv: w,
      bq: null,
      bk: null,
      bv: null,
      qNorm: null,
      kNorm: null,
      unitQkNorm: true,
      qkEps: 1e-5,
      qkNormOffset: 0,
      ropeTable: null,
      interleaved: false,
      slotMapping,
      kCache,
      vCache,
      numHeads: heads,
    }
    expectClose(qkvRopeStore(operands).toFloat32Array(), normed.toFloat32Array(), 1e-6)
    expectClose(kCache.toFloat32Array(), kWant.toFloat32Array(), 1e-6)
    expectClose(vCache.toFloat32Array(), vWant.toFloat32Array(), 1e-6)
    const qNorm = Tensor.from(backend, randomArray(dim, 3))
    expect(() => qkvRopeStore({ ...operands, qNorm })).toThrow("unit_qk_norm is 1")
    for (const tensor of [kWant, vWant, kCache, vCache]) tensor[Symbol.dispose]()
  })

  test("qkvRopeStore norms q and k over all heads together", () => {
    const [heads, kvHeads, dim, n] = [4, 2, 16, 64]
    const wq = randomWeight(backend, F32, [heads * dim, n], 1)
    const wk = randomWeight(backend, F32, [kvHeads * dim, n], 2)
    const wv = randomWeight(backend, F32, [kvHeads * dim, n], 3)
    const qNorm = Tensor.from(backend, randomArray(heads * dim, 4), [heads * dim], {
      persistent: true,
    })
    const kNorm = Tensor.from(backend, randomArray(kvHeads * dim, 5), [kvHeads * dim], {
      persistent: true,
    })
    const cache = (): Tensor => Tensor.allocate(backend, F32, [1, kvHeads, 8, dim])
    for (const tokens of [1, 7]) {
      const x = Tensor.from(backend, randomArray(tokens * n, 6), [tokens, n])
      const positions = Tensor.from(
        backend,
        Int32Array.from({ length: tokens }, (_, t) => t + 2),
      )
      const inverse = Tensor.from(backend, Float32Array.of(1, 0.1, 0.01, 0.001), [1, 4])
      const table = ropeTable(positions, inverse, 1)
      const slotMapping = Tensor.from(
        backend,
        Int32Array.from({ length: tokens }, (_, t) => t),
      )
      const [kWant, vWant, kCache, vCache] = [cache(), cache(), cache(), cache()]
      const q = rmsNorm(linear(x, wq), qNorm, 1e-5).unflatten(-1, [heads, dim])
      const k = rmsNorm(linear(x, wk), kNorm, 1e-5).unflatten(-1, [kvHeads, dim])
      const v = linear(x, wv).unflatten(-1, [kvHeads, dim])
      rope(q, table, false)
      rope(k, table, false)
      storeKv(k, v, slotMapping, kWant, vWant)
      const operands = {
        x,
        normWeight: null,
        eps: 0,
        normOffset: 0,
        wq,
        wk,
        wv,
        bq: null,
        bk: null,
        bv: null,
        qNorm,
        kNorm,
        qkEps: 1e-5,
        qkNormOffset: 0,
        ropeTable: table,
        interleaved: false,
        slotMapping,
        kCache,
        vCache,
        numHeads: heads,
      }
      expectClose(qkvRopeStore(operands).toFloat32Array(), q.toFloat32Array(), 1e-6)
      expectClose(kCache.toFloat32Array(), kWant.toFloat32Array(), 1e-6)
      expectClose(vCache.toFloat32Array(), vWant.toFloat32Array(), 1e-6)
      const short = Tensor.from(backend, randomArray(dim, 7))
      expect(() => qkvRopeStore({ ...operands, kNorm: short })).toThrow("k_norm")
      for (const tensor of [kWant, vWant, kCache, vCache]) tensor[Symbol.dispose]()
      backend.resetStep()
    }
  })

  test.skipIf(!backend.isHost)("a slot outside the cache is refused", () => {
    const w = randomWeight(backend, F32, [16, 32], 1)
    const [kCache, vCache] = [
      Tensor.allocate(backend, F32, [2, 1, 8, 16]),
      Tensor.allocate(backend, F32, [2, 1, 8, 16]),
    ]
    const call = (slot: number): Tensor =>
      qkvRopeStore({
        x: Tensor.from(backend, randomArray(32, 1), [1, 32]),
        normWeight: null,
        eps: 0,
        normOffset: 0,
        wq: w,
        wk: w,
        wv: w,
        bq: null,
        bk: null,
        bv: null,
        qNorm: null,
        kNorm: null,
        qkEps: 0,
        qkNormOffset: 0,
        ropeTable: null,
        interleaved: false,
        slotMapping: Tensor.from(backend, Int32Array.of(slot)),
        kCache,
        vCache,
        numHeads: 1,
      })
    expect(() => call(16)).toThrow("slot 16 is outside a cache of 16 tokens")
    expect(call(15).shape).toEqual([1, 1, 16])
  })
})
