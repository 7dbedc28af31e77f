import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { type EngineConfig, engineConfig } from "../../src/config.ts"
import { chooseLayout, type PartSizes, partSizes } from "../../src/engine/auto-place.ts"
import { layerPattern, type Layout, rulesOf } from "../../src/engine/auto-rules.ts"
import { buildModel } from "../../src/engine/build.ts"
import { chunkTokens } from "../../src/engine/chunk.ts"
import { kvLayers, kvType } from "../../src/engine/kv-layers.ts"
import { planRows } from "../../src/engine/plan-report.ts"
import { DEVICE_RESERVE_BYTES, planDevices, workspaceBytes } from "../../src/engine/plan.ts"
import { createEngine, generateAll, goldenModels } from "./golden-models.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-auto-"))
afterAll(() => rmSync(folder, { recursive: true }))

const MIB = 2 ** 20
const golden = (name: string) => {
  const model = goldenModels().find((one) => one.name === name)
  if (model === undefined) throw new Error(`no golden ${name}`)
  return model
}
const MOE = golden("gguf/qwen3moe-mixed")

async function modelOf(path: string) {
  const built = await buildModel(engineConfig({ model: path }), undefined, { budgets: [] })
  built.weights.close()
  return built
}

describe("what goes where", async () => {
  const built = await modelOf(MOE.path)
  const model = { ...built.config, layer_types: built.config.layer_types.slice(0, 6) }
  const plain = {
    model: MOE.path,
    contextLength: 32,
    maxBatchTokens: 512,
    prefixCache: false,
    streamExperts: false,
  }
  const config = engineConfig(plain)
  const layers = model.layer_types.map(() => ({ shared: 10 * MIB, experts: 100 * MIB }))
  const sizes: PartSizes = { embeddings: 30 * MIB, isTied: false, head: 20 * MIB, layers }
  /** Beside what does not depend on the model's parts. */
  const room = (mib: number): number =>
    DEVICE_RESERVE_BYTES + workspaceBytes(config, model) + mib * MIB + 65536
  const layout = (...mib: number[]): Layout =>
    chooseLayout(
      config,
      model,
      sizes,
      mib.map((each, i) => ({ device: `cuda:${i}`, freeBytes: room(each) })),
    )
  const count = layers.length
  const on = (made: Layout, device: string): number[] => [
    made.layers.filter((layer) => layer.device === device).length,
    made.layers.filter((layer) => layer.experts === device).length,
  ]

  test("attention first, then experts of the first layers, then the embeddings", () => {
    const shared = 20 + 10 * count
    const bare = layout(shared)
    expect(on(bare, "cuda:0")).toEqual([count, 0])
    expect(on(bare, "cpu")).toEqual([0, count])
    expect(bare).toMatchObject({ head: "cuda:0", embeddings: "cpu" })
    const two = layout(shared + 200)
    expect(two.layers.map(({ experts }) => experts).slice(0, 3)).toEqual([
      "cuda:0",
      "cuda:0",
      "cpu",
    ])
    expect(two.embeddings).toBe("cpu")
    // a part of the third layer's
    const some = layout(shared + 255)
    expect(some.layers[2]).toEqual({
      device: "cuda:0",
      experts: "cpu",
      streams: false,
      onDevice: Array.from({ length: Math.floor((55 / 100) * model.num_experts) }, (_, i) => i),
    })
    expect(layout(shared + 100 * count + 30).embeddings).toBe("cuda:0")
    const all = layout(shared + 100 * count + 30)
    expect(on(all, "cpu")).toEqual([0, 0])
  })

  test("room is kept for experts that long prompts bring, where not all experts fit", () => {
    const streaming = engineConfig({ ...plain, streamExperts: true })
    const made = (mib: number): Layout =>
      chooseLayout(streaming, model, sizes, [{ device: "cuda:0", freeBytes: room(mib) }])
    const shared = 20 + 10 * count
    expect(made(shared + 199).layers.map(({ streams }) => streams)).not.toContain(true)
    const some = made(shared + 202 + 100)
    expect(some.layers.map(({ experts }) => experts === "cuda:0")).toEqual([
      true,
      ...new Array<boolean>(count - 1).fill(false),
    ])
    expect(some.layers.map(({ streams }) => streams)).toEqual([
      false,
      ...new Array<boolean>(count - 1).fill(true),
    ])
    expect(made(shared + 100 * count).layers.map(({ experts }) => experts)).not.toContain("cpu")
  })

  test("prompts that bring experts come in longer chunks, where an eighth of the device holds them", () => {
    const open = { ...config, maxBatchTokens: 0 }
    const taken = (tokens: number): number =>
      workspaceBytes({ ...open, maxBatchTokens: tokens }, model)
    expect(chunkTokens(open, model, false, 1e12)).toBe(512)
    expect(chunkTokens(open, model, true, 8 * taken(4096))).toBe(4096)
    expect(chunkTokens(open, model, true, 8 * taken(4096) - 8)).toBe(2048)
    expect(chunkTokens(open, model, true, 0)).toBe(512)
    expect(chunkTokens({ ...open, maxBatchTokens: 96 }, model, true, 1e12)).toBe(96)
    // placement leaves room for what they take
    const streaming = engineConfig({ ...plain, streamExperts: true, maxBatchTokens: 0 })
    const free = room(20 + 10 * count + 202 + 100)
    const made = (freeBytes: number): Layout =>
      chooseLayout(streaming, model, sizes, [{ device: "cuda:0", freeBytes }])
    const longer = taken(chunkTokens(streaming, model, true, free)) - taken(512)
    expect(longer).toBeGreaterThan(0)
    expect(made(free).layers[0]?.experts).toBe("cpu")
    expect(made(free + longer).layers[0]?.experts).toBe("cuda:0")
  })

  test("too little for all layers: the last ones and the head; for none: the CPU", () => {
    const some = layout(20 + 20)
    expect(some.layers.map(({ device }) => device)).toEqual([
      ...new Array<string>(count - 2).fill("cpu"),
      "cuda:0",
      "cuda:0",
    ])
    expect(on(some, "cuda:0")).toEqual([2, 0])
    expect(layout(25).head).toBe("cpu")
    expect(layout().head).toBe("cpu")
  })

  test("several devices get neighbouring layers", () => {
    const made = layout(10_000, 10_000)
    const devices = made.layers.map(({ device }) => device)
    expect(new Set(devices)).toEqual(new Set(["cuda:0", "cuda:1"]))
    expect(devices).toEqual(devices.toSorted())
    expect(made.head).toBe("cuda:1")
    expect(made.layers.every(({ device, experts }) => device === experts)).toBe(true)
  })

  test("sizes of the parts are those of the file", async () => {
    const built = await buildModel(engineConfig({ model: MOE.path }), undefined, { budgets: [] })
    const parts = partSizes(built.model, built.weights)
    const all = parts.layers.reduce(
      (sum, l) => sum + l.shared + l.experts,
      parts.head + parts.embeddings,
    )
    built.weights.close()
    expect(all).toBeGreaterThan(built.weights.totalBytes * 0.99)
    expect(all).toBeLessThanOrEqual(built.weights.totalBytes)
  })
})

test("the experts that were used most are on the device", async () => {
  const built = await modelOf(MOE.path)
  const file = join(folder, "stats.json")
  const n = built.config.num_experts
  const layers = Object.fromEntries(
    built.config.layer_types.map((_, i) => [
      `model.layers.${i}.mlp.experts`,
      Array.from({ length: n }, (_, e) => (e === n - 1 ? 1000 - i : e)),
    ]),
  )
  writeFileSync(file, JSON.stringify({ tokens: 10, layers }))
  const config = engineConfig({
    model: MOE.path,
    contextLength: 32,
    maxBatchTokens: 512,
    pageSize: 32,
    expertStats: file,
    streamExperts: false,
    prefixCache: false,
  })
  const parts: PartSizes = {
    embeddings: 0,
    isTied: false,
    head: 0,
    layers: built.config.layer_types.map(() => ({ shared: MIB, experts: n * MIB })),
  }
  const count = built.config.layer_types.length
  const freeBytes =
    DEVICE_RESERVE_BYTES + workspaceBytes(config, built.config) + (2 * count + 1) * MIB + 65536
  const made = chooseLayout(config, built.config, parts, [{ device: "cuda:0", freeBytes }])
  expect(made.layers.map(({ onDevice }) => onDevice?.[onDevice.length - 1])).toEqual(
    new Array<number>(count).fill(n - 1),
  )
  expect(made.layers.flatMap(({ onDevice = [] }) => onDevice).length).toBe(count + 1)
  writeFileSync(file, "{}")
  expect(() =>
    chooseLayout(config, built.config, parts, [{ device: "cuda:0", freeBytes }]),
  ).toThrow("no file of `kt experts record`")
})

test("layers as a regular expression", () => {
  for (const indices of [
    [0],
    [3, 4, 5],
    [9, 10],
    [0, 2, 4, 61],
    Array.from({ length: 47 }, (_, i) => i + 5),
  ]) {
    const pattern = new RegExp(`^${layerPattern(indices, 100)}$`)
    const matching = Array.from({ length: 100 }, (_, i) => i).filter((i) => pattern.test(String(i)))
    expect(matching).toEqual(indices)
  }
  expect(layerPattern([0, 1], 2)).toBe("\\d+")
})

test("the rules that are made place a model as they say, and it computes the same", async () => {
  const before = process.env["KT_LOGICAL_DEVICES"]
  process.env["KT_LOGICAL_DEVICES"] = "3"
  try {
    const { config } = await modelOf(MOE.path)
    const layers = config.layer_types.map((_, i) => ({
      device: i === 0 ? "cpu:1" : "cpu:2",
      experts: i % 2 === 0 ? "cpu" : "cpu:2",
      ...(i === 4 ? { onDevice: [0, 2] } : {}),
    }))
    const rules = join(folder, "made.yaml")
    writeFileSync(rules, rulesOf({ embeddings: "cpu", head: "cpu:2", layers }, ["made"]))
    using engine = await createEngine(MOE, { rules })
    expect(generateAll(engine, MOE.prompts)).toEqual(MOE.greedy.map((ids) => [...ids]))
    const devices = new Map(engine.details().modules.map(({ path, device }) => [path, device]))
    expect(devices.get("model.layers.0.self_attn.q_proj")).toBe("cpu:1")
    expect(devices.get("model.layers.1.mlp.experts")).toBe("cpu:2")
    expect(devices.get("model.layers.2.mlp.experts")).toBe("cpu")
    expect(devices.get("model.layers.2.mlp.gate")).toBe("cpu:2")
    expect(devices.get("model.embed_tokens")).toBe("cpu")
    expect(devices.get("lm_head")).toBe("cpu:2")
  } finally {
    if (before === undefined) delete process.env["KT_LOGICAL_DEVICES"]
    else process.env["KT_LOGICAL_DEVICES"] = before
  }
})

test("a plan counts each byte on its device, and says what does not fit", async () => {
  const options: EngineConfig = engineConfig({ model: MOE.path, contextLength: 32 })
  const budgets = [{ device: "cuda:0", freeBytes: 2 ** 31 }]
  const built = await buildModel(options, undefined, { budgets, areAssumed: true })
  try {
    const dtype = kvType(options, kvLayers(built.config))
    const free = (device: string): number => (device === "cpu" ? 2 ** 32 : 2 ** 31)
    const rows = planRows(built, planDevices(options, built, dtype, free))
    expect(rows.map(({ device }) => device)).toEqual(["cuda:0"])
    expect(rows[0]?.weightBytes).toBeLessThanOrEqual(built.weights.totalBytes)
    expect(rows[0]?.what).toContain("experts of layers")
    expect(() => planDevices(options, built, dtype, () => 2 ** 20)).toThrow(
      "not enough memory on cuda:0",
    )
  } finally {
    built.weights.close()
  }
})
