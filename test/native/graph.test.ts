import { expect, test } from "bun:test"

import { KtError, NativeError } from "../../src/errors.ts"
import { Backend } from "../../src/native/backend.ts"
import { Graph } from "../../src/native/graph.ts"
import { embedding } from "../../src/ops/embedding.ts"
import { add } from "../../src/ops/index.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"

function values(backend: Backend, ...numbers: number[]): Tensor {
  return Tensor.from(backend, Float32Array.from(numbers), [numbers.length], { persistent: true })
}

test("ops of a graph are computed by its launches alone, from what lies at their operands' addresses then", () => {
  using backend = new Backend({ threads: 2 })
  const a = values(backend, 1, 2)
  const b = values(backend, 10, 20)
  const out = values(backend, 0, 0)
  const { graph, result } = Graph.record(backend, () => add(add(a, b), b, out))
  expect([...out.toFloat32Array()]).toEqual([0, 0])
  // descriptors of the step are written anew
  backend.resetStep()
  for (let i = 0; i < 100; i++) Tensor.empty(backend, F32, [7])
  expect(graph.launch()).toBe(true)
  expect([...result.toFloat32Array()]).toEqual([21, 42])
  a.write(Float32Array.of(5, 6))
  expect(graph.launch()).toBe(true)
  expect([...out.toFloat32Array()]).toEqual([25, 46])
  graph[Symbol.dispose]()
})

test("the host works between a graph's parts and reads after it", () => {
  using backend = new Backend({ threads: 1 })
  const a = values(backend, 1)
  const b = values(backend, 0)
  const seen: number[] = []
  const doubled = values(backend, 0)
  const recorded = Graph.record(backend, () => {
    add(a, a, doubled)
    backend.recording?.hostWork(() => b.write(Float32Array.of(100)))
    add(doubled, b, doubled)
    backend.recording?.afterLaunch(() => seen.push(doubled.toFloat32Array()[0] as number))
  })
  for (let n = 0; n < 2; n++) {
    b.write(Float32Array.of(0))
    expect(recorded.graph.launch()).toBe(true)
    recorded.graph.read()
  }
  expect(seen).toEqual([102, 102])
  recorded.graph[Symbol.dispose]()
})

test("a launch says what is wrong with an operand; ops are computed again after a failed recording", () => {
  using backend = new Backend({ threads: 1 })
  const table = Tensor.from(backend, Float32Array.of(1, 2, 3, 4), [2, 2], { persistent: true })
  const ids = Tensor.from(backend, Int32Array.of(1), [1], { persistent: true })
  const { graph, result } = Graph.record(backend, () => embedding(table, ids))
  graph.launch()
  expect([...result.toFloat32Array()]).toEqual([3, 4])
  ids.write(Int32Array.of(2))
  expect(() => graph.launch()).toThrow("ids[0] is 2, the table has rows 0 to 1")
  graph[Symbol.dispose]()
  expect(() =>
    Graph.record(backend, () => {
      add(table, table)
      return table.toFloat32Array()
    }),
  ).toThrow(new KtError("the host reads values of a step that is recorded"))
  expect(() => Graph.record(backend, () => Graph.record(backend, () => {}))).toThrow(KtError)
  expect(() => Graph.record(backend, () => table.write(Float32Array.of(0)))).toThrow(KtError)
  expect([...add(table, table).toFloat32Array()]).toEqual([2, 4, 6, 8])
})

test("an op that tells its caller something cannot be part of a graph", () => {
  using backend = new Backend({ threads: 1 })
  const row = values(backend, 1, 2, 3).reshape([1, 3])
  const call = (): unknown =>
    backend.check(
      backend.library.kt_sample(backend.ctx, row.desc, backend.paramsAddress, row.desc),
      "sample",
    )
  expect(() => Graph.record(backend, call)).toThrow(NativeError)
  const { graph } = Graph.record(backend, () => add(row, row))
  expect(() => {
    const other = new Backend({ threads: 1 })
    using _ = other
    other.check(other.library.kt_graph_launch(other.ctx, 0), "launch")
  }).toThrow("graph is NULL")
  graph[Symbol.dispose]()
})
