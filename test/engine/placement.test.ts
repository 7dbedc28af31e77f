/** Models on several devices compute what they compute on one; a second context of the CPU library is another device. */
import { afterAll, describe, expect, spyOn, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { type EngineConfig, engineConfig } from "../../src/config.ts"
import { Engine } from "../../src/engine/engine.ts"
import { deviceProblem } from "../../src/native/backend.ts"
import { Graph } from "../../src/native/graph.ts"
import { ExpertStream } from "../../src/nn/expert-stream.ts"
import { createEngine, generateAll, type GoldenModel, goldenModels } from "./golden-models.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-placement-"))
const before = process.env["KT_LOGICAL_DEVICES"]
process.env["KT_LOGICAL_DEVICES"] = "3"
afterAll(() => {
  if (before === undefined) delete process.env["KT_LOGICAL_DEVICES"]
  else process.env["KT_LOGICAL_DEVICES"] = before
  rmSync(folder, { recursive: true })
})

const FUSED = `
- { match: { name: "^model\\\\.layers\\\\.\\\\d+\\\\.self_attn$" }, replace: { class: KFusedAttention }, unused: ignore }
- { match: { name: "\\\\.(mlp|shared_experts?|feed_forward)$", class: LlamaMLP }, replace: { class: KFusedMLP }, unused: ignore }
- { match: { name: "^model\\\\.layers\\\\.\\\\d+$" }, replace: { class: KFusedDecoderLayer }, unused: ignore }
- { match: { name: "^lm_head$" }, replace: { class: KFusedHead }, unused: ignore }
`

interface Case {
  readonly name: string
  readonly rules: (gpu: string) => string
  readonly fuse: boolean
}

const on = (name: string, device: string, more = ""): string =>
  `- { match: { name: "${name.replaceAll("\\", "\\\\")}" }, replace: { class: default, kwargs: { generate_device: "${device}", prefill_device: "${device}"${more} } }, unused: ignore }\n`

const CASES: readonly Case[] = [
  {
    name: "experts and embeddings on the host, the rest on a device",
    fuse: true,
    rules: (gpu) =>
      on("\\.experts$", "cpu") +
      on("^model\\.embed_tokens$", "cpu") +
      FUSED +
      on("^model\\.rotary_emb", gpu),
  },
  {
    name: "the same of plain modules",
    fuse: false,
    rules: (gpu) =>
      on("\\.experts$", "cpu") +
      on("^model\\.embed_tokens$", "cpu") +
      on("^model\\.rotary_emb", gpu),
  },
  {
    name: "layers on two devices by transfer_map, the head on the host",
    fuse: true,
    rules: (gpu) =>
      on("^lm_head$", "cpu") +
      on(
        "^model$",
        gpu,
        `, transfer_map: { 1: "${gpu.replace(/\d+$/, (i) => String(Number(i) + 1))}" }`,
      ).replace("class: default", "class: KLlamaModel") +
      FUSED.replace(/.*KFusedHead.*\n/, ""),
  },
  {
    name: "attention on a device, everything else of the layers on the host",
    fuse: true,
    rules: (gpu) => on("^model$", "cpu") + on("\\.(self_attn|linear_attn)$", gpu) + FUSED,
  },
]

/** Of each layer's experts the GPU has some, which are computed there in the same step. */
const RESIDENT: Case = {
  name: "some experts of each layer on the device, the others on the host",
  fuse: true,
  rules: (gpu) =>
    `- { match: { name: "\\\\.layers\\\\.[02468]\\\\..*\\\\.experts$" }, replace: { class: KTransformersExperts, kwargs: { generate_device: cpu, gpu_experts: 50% } }, unused: ignore }\n` +
    `- { match: { name: "\\\\.experts$" }, replace: { class: KTransformersExperts, kwargs: { generate_device: cpu, gpu_experts: [2, 0] } }, unused: ignore }\n` +
    FUSED +
    on("^model\\.rotary_emb", gpu),
}

/** The CPU's experts go to the GPU for steps of 6 tokens and more. */
const STREAMED: Case = {
  name: "experts on the host, brought to the device for prompts",
  fuse: true,
  rules: (gpu) =>
    on("^model$", gpu, ", per_layer_prefill_intput_threshold: 6").replace(
      "class: default",
      "class: KLlamaModel",
    ) +
    `- { match: { name: "\\\\.experts$" }, replace: { class: KTransformersExperts, kwargs: { generate_device: cpu, prefill_device: "${gpu}", prefill_op: KExpertsTorch } }, unused: ignore }\n` +
    FUSED,
}

async function engineOn(
  model: GoldenModel,
  one: Case,
  gpu: string,
  options: Partial<EngineConfig>,
) {
  const rules = join(folder, "rules.yaml")
  writeFileSync(rules, one.rules(gpu))
  return createEngine(model, { rules, fuse: one.fuse, ...options })
}

for (const gpu of ["cpu:1", "cuda:0"]) {
  const problem = deviceProblem(gpu)
  if (problem !== undefined) {
    describe.skip(`${gpu}: ${problem}`, () => {})
    continue
  }
  describe(gpu, () => {
    for (const one of [...CASES, STREAMED, RESIDENT]) {
      for (const model of goldenModels()) {
        test(`${one.name}: ${model.name}`, async () => {
          for (const options of [{}, { precision: "fast" as const, maxBatchTokens: 16 }]) {
            using engine = await engineOn(model, one, gpu, options)
            const ids = generateAll(engine, model.prompts)
            if (options.precision === "fast") continue
            expect(new Set(engine.details().modules.map(({ device }) => device))).toContain(gpu)
            expect(ids).toEqual(model.greedy.map((greedy) => [...greedy]))
          }
        })
      }
    }
  })
}

test("steps whose experts the host computes are recorded and launched", async () => {
  for (const name of ["hf/qwen2_moe", "hf/deepseek_v3", "hf/qwen3_moe", "gguf/gpt-oss-mxfp4"]) {
    const model = goldenModels().find((one) => one.name === name) as GoldenModel
    const rules = join(folder, "rules.yaml")
    writeFileSync(rules, (CASES[0] as Case).rules("cpu:1"))
    const log: string[] = []
    using launch = spyOn(Graph.prototype, "launch")
    const config = { model: model.path, threads: 1, pageSize: 8, precision: "f32", rules }
    using engine = await Engine.create(engineConfig(config), {
      onLog: (_, line) => void log.push(line),
    })
    const ids = generateAll(engine, model.prompts)
    expect(ids).toEqual(model.greedy.map((greedy) => [...greedy]))
    expect(log.filter((line) => line.includes("recorded"))).toEqual([])
    expect(launch.mock.calls.length).toBeGreaterThan(3)
    const { steps, gpuSeconds, cpuSeconds, hostSeconds } = engine.stats().stepTimes
    expect(steps).toBe(launch.mock.calls.length)
    for (const seconds of [gpuSeconds, cpuSeconds, hostSeconds]) expect(seconds).toBeGreaterThan(0)
  }
})

test("prompts bring the host's experts to the device, what is generated does not", async () => {
  const model = goldenModels().find(({ name }) => name === "gguf/glm4moe-q4_0") as GoldenModel
  using take = spyOn(ExpertStream.prototype, "take")
  using engine = await engineOn(model, STREAMED, "cpu:1", {})
  generateAll(engine, [model.prompts[0] as Int32Array], { maxTokens: 1 })
  const layers = engine.details().modules.filter(({ path }) => path.endsWith(".experts")).length
  expect(layers).toBeGreaterThan(0)
  expect(take.mock.calls.map(([layer]) => layer)).toEqual(
    Array.from({ length: layers }, (_, i) => i),
  )
  take.mockClear()
  generateAll(engine, [(model.prompts[0] as Int32Array).subarray(0, 3)])
  expect(take.mock.calls).toEqual([])
})

test("experts that are put off: recorded steps compute what called ones do", async () => {
  for (const name of ["gguf/qwen3moe-mixed", "hf/kimi_k2"]) {
    const model = goldenModels().find((one) => one.name === name) as GoldenModel
    const deferring = (count: number): Case => ({
      ...(CASES[0] as Case),
      rules: (gpu) =>
        `- { match: { name: "\\\\.experts$" }, replace: { class: KTransformersExperts, kwargs: { generate_device: cpu, max_deferred_experts: ${count} } } }\n` +
        (CASES[0] as Case).rules(gpu),
    })
    const run = async (count: number, stepGraph: boolean): Promise<number[][]> => {
      using engine = await engineOn(model, deferring(count), "cpu:1", { stepGraph })
      return generateAll(engine, model.prompts, { maxTokens: 24 })
    }
    expect(await run(0, false)).toEqual(await run(0, true))
    const called = await run(2, false)
    expect(await run(2, true)).toEqual(called)
    expect(called.flat().length).toBe(24 * model.prompts.length)
  }
})

describe("out_device", () => {
  const model = goldenModels().find(({ name }) => name === "hf/qwen3_moe") as GoldenModel
  const rulesFor = (ofExperts: string, ofLayer: string): Case => ({
    name: "",
    fuse: false,
    rules: () =>
      `- { match: { name: "\\\\.experts$" }, replace: { class: KTransformersExperts, kwargs: { generate_device: cpu, out_device: "${ofExperts}" } } }\n` +
      on("^model\\.layers\\.0$", "cpu:1", `, out_device: "${ofLayer}"`) +
      on("^(model|lm_head)$", "cpu:1"),
  })

  test("is where results are used", async () => {
    using engine = await engineOn(model, rulesFor("cpu:1", "cpu:1"), "", {})
    const ids = generateAll(engine, model.prompts)
    expect(ids).toEqual(model.greedy.map((greedy) => [...greedy]))
  })

  test("anywhere else is an error that names both", () => {
    expect(engineOn(model, rulesFor("cpu:2", "cpu:1"), "", {})).rejects.toThrow(
      "rule 1: out_device cpu:2: the result of model.layers.0.mlp.experts is used by model.layers.0.mlp on cpu:1",
    )
    expect(engineOn(model, rulesFor("cpu:1", "cpu"), "", {})).rejects.toThrow(
      "rule 2: out_device cpu: the result of model.layers.0 is used by model.layers.1 on cpu:1",
    )
  })
})
