import { describe, expect, spyOn, test } from "bun:test"

import { KtError, NativeError } from "../../src/errors.ts"
import { KT_SLAB_PINNED } from "../../src/native/abi.generated.ts"
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
  const seen: number[][] = []
  const doubled = values(backend, 0)
  const left = [1, 2, 3].map((n) =>
    Tensor.from(backend, Int32Array.of(n, 10 * n), [2], { persistent: true }),
  )
  const recorded = Graph.record(backend, () => {
    add(a, a, doubled)
    backend.recording?.hostWork(() => b.write(Float32Array.of(100)))
    add(doubled, b, doubled)
    for (const ids of left) backend.recording?.onRead(ids, (read) => seen.push([...read]))
  })
  for (let n = 0; n < 2; n++) {
    b.write(Float32Array.of(0))
    expect(recorded.graph.launch()).toBe(true)
    expect(doubled.toFloat32Array()[0]).toBe(102)
    expect(seen.length).toBe(3 * n)
    recorded.graph.read()
    for (const [i, ids] of left.entries()) ids.write(Int32Array.of(n + i, n - i))
  }
  expect(seen).toEqual([
    [1, 10],
    [2, 20],
    [3, 30],
    [0, 0],
    [1, -1],
    [2, -2],
  ])
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

describe("a device and the host take turns within a launch", () => {
  /** doubled = 2 a by the device, sum = doubled + b by the host, out = 2 sum by the device, as often as asked for. */
  function steps(device: Backend, host: Backend, rounds: number, table?: Tensor, ids?: Tensor) {
    const shared = device.allocShared(1024) as number
    const [onDevice, onHost] = [device, host].map((backend) => ({
      a: new Tensor(backend, F32, [2], shared, { persistent: true }),
      sum: new Tensor(backend, F32, [2], shared + 256, { persistent: true }),
    })) as [{ a: Tensor; sum: Tensor }, { a: Tensor; sum: Tensor }]
    const b = values(host, 1, 2)
    const { graph } = Graph.record(device, () => {
      const { recording } = device
      for (let round = 0; round < rounds; round++) {
        add(onDevice.a, onDevice.a, onDevice.a)
        const sent = recording?.signal(device) as number
        recording?.beside(host)
        recording?.await(host, sent)
        if (table !== undefined && ids !== undefined) embedding(table, ids)
        add(onHost.a, b, onHost.sum)
        recording?.await(device, recording.signal(host))
        add(onDevice.sum, onDevice.sum, onDevice.a)
      }
    })
    return { graph, a: onHost.a, b }
  }

  test("as often as it was recorded, with what lies there at each launch", () => {
    using device = new Backend({ threads: 2, logical: 1 })
    using host = new Backend({ threads: 2 })
    const { graph, a, b } = steps(device, host, 40)
    for (let launch = 1; launch <= 5; launch++) {
      const expected = [launch, 3 * launch].map(Math.fround)
      a.write(Float32Array.from(expected))
      b.write(Float32Array.of(launch / 64, -launch))
      expect(graph.launch()).toBe(true)
      device.synchronize()
      for (let round = 0; round < 40; round++) {
        expected[0] = Math.fround(2 * Math.fround(2 * (expected[0] as number) + launch / 64))
        expected[1] = Math.fround(2 * Math.fround(2 * (expected[1] as number) - launch))
      }
      expect([...a.toFloat32Array()]).toEqual(expected)
      const { hostWaited: waited, deviceWaited: idle } = graph.times()
      expect(waited).toBeGreaterThan(0)
      expect(idle).toBeGreaterThan(0)
    }
    graph[Symbol.dispose]()
  })

  test("a failure of the host leaves the device not waiting, and the next launch is whole", () => {
    using device = new Backend({ threads: 1, logical: 1 })
    using host = new Backend({ threads: 1 })
    const table = Tensor.from(host, Float32Array.of(1, 2), [2, 1], { persistent: true })
    const ids = Tensor.from(host, Int32Array.of(9), [1], { persistent: true })
    const { graph, a } = steps(device, host, 3, table, ids)
    a.write(Float32Array.of(1, 1))
    const started = performance.now()
    expect(() => graph.launch()).toThrow("ids[0] is 9")
    expect(performance.now() - started).toBeLessThan(5000)
    device.synchronize()
    ids.write(Int32Array.of(1))
    a.write(Float32Array.of(1, 1))
    expect(graph.launch()).toBe(true)
    device.synchronize()
    expect([...a.toFloat32Array()]).toEqual([106, 148])
    graph[Symbol.dispose]()
  })

  test("a failure of the device is what a launch reports, and the host does not wait", () => {
    using device = new Backend({ threads: 1, logical: 1 })
    using host = new Backend({ threads: 1 })
    const table = Tensor.from(device, Float32Array.of(1, 2), [2, 1], { persistent: true })
    const ids = Tensor.from(device, Int32Array.of(1), [1], { persistent: true })
    const { graph } = Graph.record(device, () => {
      const { recording } = device
      recording?.beside(host)
      const sent = recording?.signal(device) as number
      embedding(table, ids)
      const later = recording?.signal(device) as number
      recording?.await(host, sent)
      recording?.await(host, later)
    })
    expect(graph.launch()).toBe(true)
    device.synchronize()
    ids.write(Int32Array.of(7))
    expect(() => graph.launch()).toThrow("ids[0] is 7")
    ids.write(Int32Array.of(0))
    expect(graph.launch()).toBe(true)
    device.synchronize()
    graph[Symbol.dispose]()
  })

  test("nothing is page-locked while a step is recorded", () => {
    using device = new Backend({ threads: 1, logical: 1 })
    using host = new Backend({ threads: 1 })
    const create = spyOn(device.library, "kt_slab_create")
    const pinned = (): number =>
      create.mock.calls.filter(([, flags]) => Number(flags) & KT_SLAB_PINNED).length
    let before = -1
    const { graph } = Graph.record(device, () => {
      before = pinned()
      device.recording?.beside(host)
      device.allocShared(1 << 20)
      device.recording?.await(host, device.recording.signal(device))
    })
    expect(before).toBe(2)
    expect(pinned()).toBe(2)
    create.mockRestore()
    graph[Symbol.dispose]()
  })

  test("a recording that fails leaves neither of them recording", () => {
    using device = new Backend({ threads: 1, logical: 1 })
    using host = new Backend({ threads: 1 })
    const one = values(host, 1)
    expect(() =>
      Graph.record(device, () => {
        device.recording?.beside(host)
        one.toFloat32Array()
      }),
    ).toThrow("the host reads values of a step that is recorded")
    expect([...add(one, one).toFloat32Array()]).toEqual([2])
    expect(device.recording).toBeUndefined()
  })
})
