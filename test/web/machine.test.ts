import { describe, expect, test } from "bun:test"

import { type History, record } from "../../src/web/machine/history.ts"
import { bytesByDevice, groupModules } from "../../src/web/machine/modules.ts"
import { parseMetrics, quantile } from "../../src/web/machine/prometheus.ts"
import { machineModel } from "./fake-machine.ts"

/** What the view of the machine makes of the server's answers. */

const entry = { operator: "Linear", device: "cpu", rule: "", packed: false, types: { f32: 4 } }

describe("modules", () => {
  test("are one row per pattern as long as all else is the same", () => {
    const groups = groupModules([
      { ...entry, path: "embed" },
      { ...entry, path: "layers.0.q" },
      { ...entry, path: "layers.0.experts.1.up" },
      { ...entry, path: "layers.1.q" },
      { ...entry, path: "layers.2.q", device: "cuda:0" },
      { ...entry, path: "layers.3.q", types: { q4_k: 8, f32: 4 } },
      { ...entry, path: "layers.12.q", packed: true },
      { ...entry, path: "layers.4.q" },
      { ...entry, path: "layer2.q" },
      { ...entry, path: "layers.0.k" },
      { ...entry, path: "layers.1.k" },
    ])
    expect(groups.map((group) => [group.pattern, group.count, group.device, group.bytes])).toEqual([
      ["embed", 1, "cpu", 4],
      ["layers.*.q", 3, "cpu", 12],
      ["layers.0.experts.1.up", 1, "cpu", 4],
      ["layers.2.q", 1, "cuda:0", 4],
      ["layers.3.q", 1, "cpu", 12],
      ["layers.12.q", 1, "cpu", 4],
      ["layer2.q", 1, "cpu", 4],
      ["layers.*.k", 2, "cpu", 8],
    ])
    // which layers is said where the pattern alone would not tell
    expect(groups.map(({ layers }) => layers).filter((layers) => layers !== undefined)).toEqual([
      "0-1, 4",
    ])
    expect(groups[4]?.types).toEqual(["f32", "q4_k"])
  })

  test("add up by device, and lose no byte", () => {
    const { modules } = machineModel("m")
    const devices = bytesByDevice(modules)
    expect(devices.map(([device]) => device)).toEqual(["cpu", "cuda:0"])
    const grouped = groupModules(modules).reduce((sum, { bytes }) => sum + bytes, 0)
    expect(devices.reduce((sum, [, bytes]) => sum + bytes, 0)).toBe(grouped)
  })
})

describe("metrics", () => {
  const text = [
    "# HELP a help",
    'vllm:x_bucket{le="0.1",model_name="a\\"b"} 5',
    'vllm:x_bucket{le="0.2",model_name="a\\"b"} 10',
    'vllm:x_bucket{le="+Inf",model_name="a\\"b"} 12',
    'vllm:x_bucket{le="+Inf",model_name="c"} 3',
    "kt_resident_bytes 12.5",
    "",
  ].join("\n")

  test("are read with their labels", () => {
    const samples = parseMetrics(text)
    expect(samples).toHaveLength(5)
    expect(samples[0]).toEqual({
      name: "vllm:x_bucket",
      labels: { le: "0.1", model_name: 'a"b' },
      value: 5,
    })
    expect(samples.at(-1)).toEqual({ name: "kt_resident_bytes", labels: {}, value: 12.5 })
  })

  test("quantiles lie within their bucket", () => {
    const samples = parseMetrics(text)
    expect(quantile(samples, "vllm:x", 'a"b', 0.5)).toBeCloseTo(0.12)
    expect(quantile(samples, "vllm:x", 'a"b', 0.25)).toBeCloseTo(0.06)
    // beyond the last bound nothing more is known
    expect(quantile(samples, "vllm:x", 'a"b', 0.99)).toBe(0.2)
    expect(quantile(samples, "vllm:x", "nobody", 0.5)).toBeUndefined()
  })
})

describe("history", () => {
  const { stats } = machineModel("m")
  if (stats === null) throw new Error("no stats")
  const at = (model: string, seconds: number, generated: number): History =>
    record(model, { ...stats, generatedTokensTotal: generated }, seconds * 1000)

  test("has rates between two looks, and gaps where nobody looked", () => {
    at("a", 100, 10)
    at("a", 102, 50)
    at("a", 200, 90)
    const { generated, times } = at("a", 202, 90)
    expect(generated).toEqual([null, 20, null, 0])
    expect(times).toEqual([100, 102, 200, 202])
  })

  test("starts again with a new engine", () => {
    at("b", 100, 50)
    expect(at("b", 102, 3)).toMatchObject({ generated: [null], times: [102] })
  })

  test("keeps ten minutes", () => {
    for (let i = 0; i < 400; i++) at("c", i * 2, i * 10)
    const { times, generated, waiting } = at("c", 800, 4000)
    expect([times.length, generated.length, waiting.length]).toEqual([300, 300, 300])
    expect(times.at(-1)).toBe(800)
  })
})
