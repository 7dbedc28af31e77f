import { expect, test } from "bun:test"

import { Backend } from "../../src/native/backend.ts"
import { gateUpAct } from "../../src/ops/fused.ts"
import { linear, linearResidual, packWeight } from "../../src/ops/linear.ts"
import { fusedExperts } from "../../src/ops/moe.ts"
import { F32, Q4_K, Q6_K, Q8_0 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { describeBackends, randomArray } from "./harness.ts"
import { randomWeight } from "./weights.ts"

/** Nodes, threads: as many as machines have, more than divide the rows evenly, and more threads than nodes. */
const SHAPES = [
  [2, 2],
  [2, 3],
  [5, 5],
] as const

/** Rows of less than a node's share, of no whole share, and of many. */
const ROWS = [24, 100, 320]

describeBackends(
  "rows divided among NUMA nodes",
  ({ isa }) => {
    /** What `compute` gives with one node, any other number gives too, bit by bit. */
    function expectSame(compute: (backend: Backend) => Float32Array): void {
      for (const [nodes, threads] of SHAPES) {
        // as many threads: tokens are cut by their number, and the last few may take another kernel
        using whole = new Backend({ isa, threads, nodes: 1 })
        expect(whole.nodes).toBe(1)
        using backend = new Backend({ isa, threads, nodes })
        expect(backend.nodes).toBe(nodes)
        expect(compute(backend), `${nodes} nodes, ${threads} threads`).toEqual(compute(whole))
      }
    }

    const packedOf = (weight: Tensor): Tensor => packWeight(weight) ?? weight

    for (const dtype of [Q8_0, Q4_K, F32]) {
      for (const packed of dtype === F32 ? [false] : [false, true]) {
        test(`linear and linearResidual, ${dtype.name}${packed ? " packed" : ""}`, () => {
          for (const rows of ROWS) {
            for (const tokens of [1, 5, 40]) {
              expectSame((backend) => {
                const w = randomWeight(backend, dtype, [rows, 256], rows)
                const weight = packed ? packedOf(w) : w
                const x = Tensor.from(backend, randomArray(tokens * 256, tokens), [tokens, 256])
                const residual = Tensor.from(backend, randomArray(tokens * rows, 3), [tokens, rows])
                linearResidual(x, weight, null, residual)
                return Float32Array.of(
                  ...linear(x, weight, null).toFloat32Array(),
                  ...residual.toFloat32Array(),
                )
              })
            }
          }
        })
      }
    }

    test("gateUpAct", () => {
      for (const tokens of [1, 40]) {
        expectSame((backend) => {
          const gate = packedOf(randomWeight(backend, Q4_K, [352, 256], 1))
          const up = packedOf(randomWeight(backend, Q4_K, [352, 256], 2))
          const x = Tensor.from(backend, randomArray(tokens * 256, tokens), [tokens, 256])
          return gateUpAct(x, null, 0, 0, gate, up, "silu").toFloat32Array()
        })
      }
    })

    test("fusedExperts: stacks in the nodes' memory, node by node", () => {
      const [experts, hidden, inter, k] = [4, 256, 256, 3] as const
      for (const packed of [false, true]) {
        for (const tokens of [1, 2, 9, 30]) {
          expectSame((backend) => {
            const [gate, up, down] = (
              [
                randomWeight(backend, Q4_K, [experts, inter, hidden], 1),
                randomWeight(backend, Q4_K, [experts, inter, hidden], 2),
                randomWeight(backend, Q6_K, [experts, hidden, inter], 3),
              ] as const
            ).map((w) => (packed ? packedOf(w) : w)) as [Tensor, Tensor, Tensor]
            const ids = Int32Array.from(
              { length: tokens * k },
              (_, i) => (Math.floor(i / k) * 7 + (i % k)) % experts,
            )
            return fusedExperts({
              x: Tensor.from(backend, randomArray(tokens * hidden, tokens), [tokens, hidden]),
              ids: Tensor.from(backend, ids, [tokens, k]),
              weights: Tensor.from(backend, randomArray(tokens * k, 9).map(Math.abs), [tokens, k]),
              gate,
              up,
              down,
              act: "silu",
            }).toFloat32Array()
          })
        }
      }
    })
  },
  "cpu",
)

test("as many nodes as the machine has are told apart unless another number is given, never more than threads", () => {
  using usual = new Backend({ threads: 1 })
  expect(usual.nodes).toBe(1)
  using many = new Backend({ threads: 2, nodes: 8 })
  expect(many.nodes).toBe(2)
})
