import { afterAll, describe, expect, test } from "bun:test"

import { ConfigError } from "../../src/errors.ts"
import { parseRules } from "../../src/inject/rules.ts"
import { type ModelConfig, withExpertsPerToken } from "../../src/models/config.ts"
import { Backend } from "../../src/native/backend.ts"
import { buildModel, loadModel } from "../models/build.ts"
import { openHfGolden } from "../models/goldens.ts"
import { Sequences } from "../models/sequences.ts"
import { relativeError } from "../ops/harness.ts"

const backend = new Backend({ threads: 1, precision: "f32" })
afterAll(() => backend[Symbol.dispose]())

/** Logits of both prompts of a golden. */
async function logitsOf(
  name: string,
  change: (config: ModelConfig) => ModelConfig,
  rules?: string,
): Promise<{ got: Float32Array; wanted: Float32Array }> {
  const { config, weights, tensors } = openHfGolden(name)
  const ids = new Int32Array((tensors.get("input_ids")?.bytes as Uint8Array<ArrayBuffer>).buffer)
  const length = ids.length / 2
  const { model, loaded } = await loadModel(change(config), weights, {
    backend,
    ...(rules === undefined ? {} : { rules: parseRules(rules, "test.yaml") }),
  })
  using sequences = new Sequences(model, backend, {
    count: 2,
    maxTokens: length,
    promptLength: length,
  })
  const parts = sequences.step([
    { sequence: 0, ids: ids.subarray(0, length) },
    { sequence: 1, ids: ids.subarray(length) },
  ])
  loaded[Symbol.dispose]()
  weights.close()
  return {
    got: Float32Array.from(parts.flatMap((part) => [...part])),
    wanted: tensors.get("logits")?.f32() as Float32Array,
  }
}

const rule = (count: number, name: string, operator = "KSparseMoeBlock"): string => `
- match: { name: "${name}" }
  replace: { class: ${operator}, kwargs: { num_experts_per_tok: ${count} } }
`

/** Path of the blocks of experts, how many experts they choose, and an operator of KTransformers' for them. */
const FAMILIES: readonly (readonly [string, string, number, string])[] = [
  ["qwen3_moe", "\\\\.mlp$", 3, "KQwen3MoeSparseMoeBlock"],
  ["mixtral", "\\\\.block_sparse_moe$", 2, "KMistralSparseMoEBlock"],
  ["qwen2_moe", "layers\\\\.[02]\\\\.mlp$", 2, "KQwen2MoeSparseMoeBlock"],
  ["glm4_moe", "layers\\\\.1\\\\.mlp$", 3, "KGlm4MoeMoE"],
  ["glm4_moe", "\\\\.mlp\\\\.gate$", 3, "KMoEGate"],
  ["minimax_m2", "\\\\.block_sparse_moe$", 3, "KSparseMoeBlock"],
  ["gpt_oss", "\\\\.mlp$", 3, "KSparseMoeBlock"],
  ["smallthinker_sigmoid", "\\\\.block_sparse_moe$", 3, "KSmallthinkerMoeBlock"],
  ["deepseek_v3", "layers\\\\.[1-9]\\\\.mlp$", 4, "KDeepseekV3MoE"],
]

describe("fewer experts for each token", () => {
  test.each(FAMILIES)("%s (%s): by configuration and by rule alike", async (name, at, own, op) => {
    const { config, weights } = openHfGolden(name)
    weights.close()
    expect(config.num_experts_per_tok).toBe(own)
    const fewer = await logitsOf(name, (c) => withExpertsPerToken(c, own - 1))
    const byRule = await logitsOf(name, (c) => c, rule(own - 1, at, op))
    expect(relativeError(byRule.got, fewer.got)).toBeLessThan(1e-5)
    expect(relativeError(fewer.got, fewer.wanted)).toBeGreaterThan(0.02)
    const all = await logitsOf(name, (c) => withExpertsPerToken(c, own))
    expect(relativeError(all.got, all.wanted)).toBeLessThan(1e-4)
  })

  // how far a reference that uses fewer experts is from the golden (golden/README.md, Sensitivity)
  test.each([
    ["qwen3_moe", 2, 0.2],
    ["mixtral", 1, 0.45],
  ] as const)(
    "%s with %i is as far from the golden as the reference is",
    async (name, n, error) => {
      const { got, wanted } = await logitsOf(name, (c) => withExpertsPerToken(c, n))
      expect(Math.abs(relativeError(got, wanted) - error)).toBeLessThan(0.0051)
    },
  )

  test("bounds", async () => {
    const { config: moe, weights } = openHfGolden("qwen3_moe")
    const { config: dense, weights: others } = openHfGolden("llama")
    weights.close()
    others.close()
    for (const count of [0, 4, 1.5])
      expect(() => withExpertsPerToken(moe, count)).toThrow(
        `--experts-per-token ${count}: expected 1 to 3 (num_experts_per_tok of the model)`,
      )
    expect(() => withExpertsPerToken(dense, 1)).toThrow("this llama model has no experts")
    const build = (config: ModelConfig, text: string): Promise<unknown> =>
      buildModel(config, { rules: parseRules(text, "test.yaml") })
    expect(build(moe, rule(4, "layers\\\\.1\\\\.mlp$"))).rejects.toThrow(
      "num_experts_per_tok 4: expected 1 to 3, as many as model.layers.1.mlp chooses by itself",
    )
    expect(build(dense, rule(1, "layers\\\\.1\\\\.mlp$"))).rejects.toThrow(
      "num_experts_per_tok 1: model.layers.1.mlp has no experts to choose from",
    )
    expect(build(moe, rule(0, "\\\\.mlp$"))).rejects.toBeInstanceOf(ConfigError)
    expect(build(moe, rule(2, "\\\\.mlp$", "KQwen3MoeMLP"))).rejects.toThrow("unknown operator")
    expect(build(moe, rule(2, "\\\\.mlp$", "KQwen2MoeMLP"))).rejects.toThrow(
      'unknown kwarg "num_experts_per_tok"',
    )
  })
})
