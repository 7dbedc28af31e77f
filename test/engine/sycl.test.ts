/** Models by the rule files for SYCL devices, and what such a device cannot compute. */
import { describe, expect, test } from "bun:test"

import { deviceProblem } from "../../src/native/backend.ts"
import { createEngine, generateAll, type GoldenModel, goldenModels } from "./golden-models.ts"

const DEVICE = "sycl:0"

function modelOf(name: string): GoldenModel {
  return goldenModels().find((one) => one.name === name) as GoldenModel
}

const problem = deviceProblem(DEVICE)
describe.skipIf(problem !== undefined)(
  `${DEVICE}${problem === undefined ? "" : `: ${problem}`}`,
  () => {
    for (const [rules, name, experts] of [
      ["xpu-llama", "hf/llama", undefined],
      ["xpu-qwen3", "hf/qwen3", undefined],
      ["xpu-qwen3-moe", "hf/qwen3_moe", "cpu"],
    ] as const)
      test(`${rules} places ${name}, whose greedy ids are the reference's`, async () => {
        const model = modelOf(name)
        using engine = await createEngine(model, { rules })
        const { modules } = engine.details()
        const placeOf = (path: string): string | undefined =>
          modules.find((module) => module.path === path)?.device
        expect(placeOf("model.layers.0.self_attn.q_proj")).toBe(DEVICE)
        expect(placeOf("model.layers.0.mlp.experts")).toBe(experts)
        const want = model.greedy.map((greedy) => [...greedy])
        expect(generateAll(engine, model.prompts)).toEqual(want)
        // by now steps are launched as graphs
        expect(generateAll(engine, model.prompts)).toEqual(want)
      })

    test("xpu is another name, experts are computed there too, and tokens are drawn by the host", async () => {
      const model = modelOf("gguf/qwen3moe-mixed")
      const params = { temperature: 0.8, topP: 0.9, seed: 7, repetitionPenalty: 1.1, logprobs: 2 }
      using here = await createEngine(model, { device: "cpu" })
      const want = generateAll(here, model.prompts, params)
      using engine = await createEngine(model, { device: "xpu" })
      expect(new Set(engine.details().modules.map(({ device }) => device))).toEqual(
        new Set([DEVICE]),
      )
      expect(generateAll(engine, model.prompts, params)).toEqual(want)
    })

    test("precision fast, in tiles and by pairs", async () => {
      const model = modelOf("gguf/qwen3moe-split-q8_0")
      using engine = await createEngine(model, { device: DEVICE, precision: "fast" })
      const [prompt] = model.prompts as [Int32Array]
      expect(generateAll(engine, [prompt])[0]).toEqual([...(model.greedy[0] as Int32Array)])
    })

    test.each([
      ["hf/deepseek_v3", "kt_head_linear"],
      ["hf/qwen3_next", "kt_gated_delta_rule"],
    ])("%s is refused where it is placed", async (name, op) => {
      const refused = createEngine(modelOf(name), { device: DEVICE })
      await expect(refused).rejects.toThrow(
        new RegExp(
          `model\\.layers\\.\\d+\\.\\S+ cannot be on ${DEVICE}, whose library has no ${op}`,
        ),
      )
    })
  },
)
