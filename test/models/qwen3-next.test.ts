import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { planInjection } from "../../src/inject/inject.ts"
import { parseRules } from "../../src/inject/rules.ts"
import { configFromGguf, withGgufLayout } from "../../src/models/config-gguf.ts"
import { configFromJson } from "../../src/models/config-hf.ts"
import type { ModelConfig } from "../../src/models/config.ts"
import { createModel } from "../../src/models/registry.ts"
import { Backend } from "../../src/native/backend.ts"
import { operators } from "../../src/operators/builtin.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { ggufName } from "../../src/weights/names.ts"
import type { SafetensorsFile } from "../../src/weights/safetensors.ts"
import { toFloat32 } from "../../src/weights/vector.ts"
import { array, f32, f32Tensor, type FixtureTensor, writeGguf } from "../fixtures/gguf.ts"
import { relativeError } from "../ops/harness.ts"
import { loadModel } from "./build.ts"
import { openHfGolden } from "./goldens.ts"
import { Sequences } from "./sequences.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-qwen3-next-"))
const backend = new Backend({ threads: 1, precision: "f32" })
const source = openHfGolden("qwen3_next")
afterAll(() => {
  backend[Symbol.dispose]()
  source.weights.close()
  rmSync(folder, { recursive: true })
})

const { config } = source
const sizes = config.linear_attention as NonNullable<ModelConfig["linear_attention"]>
const GROUP = (sizes.num_value_heads / sizes.num_key_heads) * sizes.value_head_dim

/** Relative error of the first prompt's logits. */
async function errorOf(
  own: ModelConfig,
  weights: GgufFile | SafetensorsFile,
  fuse = true,
): Promise<number> {
  const { model, loaded } = await loadModel(own, weights, { backend, fuse })
  const options = { count: 1, maxTokens: 32, promptLength: 32 }
  using sequences = new Sequences(model, backend, options)
  const ids = new Int32Array((source.tensors.get("input_ids")?.bytes as Uint8Array).slice().buffer)
  const [got] = sequences.step([{ sequence: 0, ids: ids.subarray(0, 32) }]) as [Float32Array]
  loaded[Symbol.dispose]()
  return relativeError(
    got,
    (source.tensors.get("logits")?.f32() as Float32Array).slice(0, got.length),
  )
}

function valuesOf(name: string): Float32Array {
  const entry = source.weights.get(name)
  if (entry === undefined) throw new Error(`no ${name}`)
  return toFloat32(entry.dtype, source.weights.bytes(name))
}

/** Rows of in_proj_qkvz as converters order them: q, k, v and z of all heads, one after another. */
function reordered(rows: Float32Array, columns: number): { qkv: Float32Array; z: Float32Array } {
  const { num_key_heads: heads, key_head_dim: dim } = sizes
  const inner = 2 * dim + 2 * GROUP
  const take = (start: number, count: number): number[] =>
    Array.from({ length: heads }, (_, h) => {
      const at = (h * inner + start) * columns
      return [...rows.subarray(at, at + count * columns)]
    }).flat()
  const qkv = [...take(0, dim), ...take(dim, dim), ...take(2 * dim, GROUP)]
  return { qkv: Float32Array.from(qkv), z: Float32Array.from(take(2 * dim + GROUP, GROUP)) }
}

/** The golden checkpoint as a GGUF, as converters write it; `fused` as early ones did. */
function asGguf(path: string, fused: boolean, extra: Record<string, boolean[]> = {}): void {
  const tensors: FixtureTensor[] = []
  const experts = new Map<string, Float32Array[]>()
  for (const name of source.weights.names()) {
    const shape = source.weights.get(name)?.shape ?? []
    const values = valuesOf(name)
    const expert = /^(.*\.experts)\.\d+\.(\w+)\.weight$/.exec(name)
    if (expert !== null) {
      const stack = `${expert[1]}.${expert[2]}`
      experts.set(stack, [...(experts.get(stack) ?? []), values])
      continue
    }
    const columns = shape.at(-1) as number
    if (name.endsWith("in_proj_qkvz.weight") && !fused) {
      const { qkv, z } = reordered(values, columns)
      const blk = name.replace(/^model\.layers\.(\d+).*/, "blk.$1")
      tensors.push(f32Tensor(`${blk}.attn_qkv.weight`, [qkv.length / columns, columns], qkv))
      tensors.push(f32Tensor(`${blk}.attn_gate.weight`, [z.length / columns, columns], z))
      continue
    }
    const offset = /norm\.weight$/.test(name) && !name.includes("linear_attn") ? 1 : 0
    const stored = name.endsWith("A_log")
      ? values.map((x) => -Math.exp(x))
      : values.map((x) => x + offset)
    const squeezed = shape.length > 1 ? shape.filter((size) => size !== 1) : shape
    tensors.push(f32Tensor(ggufName("qwen3next", name) ?? `no name for ${name}`, squeezed, stored))
  }
  for (const [stack, parts] of experts) {
    const wide = !stack.endsWith("down_proj")
    const [out, inner] = [config.moe_intermediate_size, config.hidden_size]
    const shape = [parts.length, ...(wide ? [out, inner] : [inner, out])]
    const all = Float32Array.from(parts.flatMap((part) => [...part]))
    tensors.push(f32Tensor(ggufName("qwen3next", stack) ?? "", shape, all))
  }
  // a layer that predicts further tokens
  tensors.push(f32Tensor("blk.4.nextn.eh_proj.weight", [2, 4], new Float32Array(8)))
  const p = "qwen3next"
  writeGguf(
    path,
    {
      "general.architecture": p,
      [`${p}.block_count`]: 5,
      [`${p}.nextn_predict_layers`]: 1,
      [`${p}.context_length`]: 4096,
      [`${p}.embedding_length`]: config.hidden_size,
      [`${p}.feed_forward_length`]: config.intermediate_size,
      [`${p}.attention.head_count`]: config.num_attention_heads,
      [`${p}.attention.head_count_kv`]: config.num_key_value_heads,
      [`${p}.attention.key_length`]: config.head_dim,
      [`${p}.attention.value_length`]: config.head_dim,
      [`${p}.attention.layer_norm_rms_epsilon`]: f32(config.rms_norm_eps),
      [`${p}.rope.freq_base`]: f32(config.rope.theta),
      [`${p}.rope.dimension_count`]: config.rope.rotary_dim,
      [`${p}.expert_count`]: config.num_experts,
      [`${p}.expert_used_count`]: config.num_experts_per_tok,
      [`${p}.expert_feed_forward_length`]: config.moe_intermediate_size,
      [`${p}.expert_shared_feed_forward_length`]: config.shared_expert_intermediate_size,
      [`${p}.ssm.conv_kernel`]: sizes.conv_kernel_dim,
      [`${p}.ssm.state_size`]: sizes.key_head_dim,
      [`${p}.ssm.group_count`]: sizes.num_key_heads,
      [`${p}.ssm.time_step_rank`]: sizes.num_value_heads,
      [`${p}.ssm.inner_size`]: sizes.num_value_heads * sizes.value_head_dim,
      ...Object.fromEntries(
        Object.entries(extra).map(([key, flags]) => [`${p}.${key}`, array("bool", flags)]),
      ),
    },
    tensors,
  )
}

describe("qwen3_next in a GGUF", () => {
  for (const fused of [false, true]) {
    test(`projections ${fused ? "in the checkpoint's order" : "of q, k, v and z apart"}, with a layer for further tokens`, async () => {
      const path = join(folder, `fused-${fused}.gguf`)
      asGguf(path, fused)
      const weights = openGguf(path)
      const own = configFromGguf(weights)
      expect(own.linear_attention).toEqual({ ...sizes, fused_qkvz: fused })
      expect(own.layer_types).toEqual(config.layer_types)
      expect(await errorOf(own, weights)).toBeLessThan(1e-4)
      // hyper-parameters of the folder, weights of the file
      expect(await errorOf(withGgufLayout(config, weights), weights)).toBeLessThan(1e-4)
      weights.close()
    })
  }

  test("the file may list its recurrent layers", () => {
    const path = join(folder, "listed.gguf")
    asGguf(path, true, { "attention.recurrent_layers": [true, false, true, false, false] })
    const weights = openGguf(path)
    expect(configFromGguf(weights).layer_types.map((type) => type === "linear_attention")).toEqual([
      true,
      false,
      true,
      false,
    ])
    weights.close()
  })
})

test("tensors for predicting several tokens at once are passed over", async () => {
  const weights = source.weights as SafetensorsFile
  const names = (): string[] => [
    ...weights.names(),
    "mtp.fc.weight",
    "mtp.layers.0.mlp.gate.weight",
  ]
  expect(await errorOf(config, Object.assign(Object.create(weights), { names }))).toBeLessThan(1e-4)
})

test("KTransformers' names for its modules plan", async () => {
  const rule = (match: string, replace: string): string => `
- match: { class: ktransformers.models.modeling_qwen3_next.${match} }
  replace:
    class: ktransformers.operators.${replace}
    kwargs: { generate_device: "cuda", prefill_device: "cuda" }
`
  const rules = [
    rule("Qwen3NextRotaryEmbedding", "RoPE.KQwen3MoeRotaryEmbedding"),
    rule("Qwen3NextSparseMoeBlock", "experts.KQwen3NextSparseMoeBlockV2"),
    rule("Qwen3NextGatedDeltaNet", "balance_serve_attention.KQwen3NextGatedDeltaNet"),
    rule("Qwen3NextAttention", "balance_serve_attention.KQwen3NextAttention"),
    rule("Qwen3NextRMSNorm", "layernorm.KQwen3NextRMSNorm"),
    rule("Qwen3NextMLP", "mlp.KQwen2MoeMLP"),
  ].join("")
  const model = await createModel(config)
  const { entries } = planInjection(model, parseRules(rules, "test.yaml"), operators)
  const at = (path: string): string | undefined => entries.get(path)?.operator
  expect(at("model.rotary_emb")).toBe("KQwen3MoeRotaryEmbedding")
  expect(at("model.layers.0.linear_attn")).toBe("KQwen3NextGatedDeltaNet")
  expect(at("model.layers.3.self_attn")).toBe("KQwen3NextAttention")
  expect(at("model.layers.3.self_attn.q_norm")).toBe("KQwen3NextRMSNorm")
  expect(at("model.layers.1.mlp")).toBe("KQwen3NextSparseMoeBlockV2")
  expect(at("model.layers.1.mlp.shared_expert")).toBe("KQwen2MoeMLP")
})

describe("configuration", () => {
  const base = { model_type: "qwen3_next" }
  const parse = (change: object): ModelConfig =>
    configFromJson("config.json", { ...base, ...change })

  test("absent keys are those of the 80B", () => {
    const { linear_attention, layer_types, rope, norm_offset } = parse({})
    expect(linear_attention).toEqual({
      conv_kernel_dim: 4,
      num_key_heads: 16,
      num_value_heads: 32,
      key_head_dim: 128,
      value_head_dim: 128,
      fused_qkvz: true,
    })
    expect(layer_types.filter((type) => type === "full_attention")).toHaveLength(12)
    expect(rope.rotary_dim).toBe(64)
    expect(norm_offset).toBe(1)
  })

  test("as transformers 5 writes it", () => {
    const { layer_types, rope } = parse({
      num_hidden_layers: 2,
      layer_types: ["full_attention", "linear_attention"],
      rope_parameters: { rope_type: "default", rope_theta: 5e6, partial_rotary_factor: 0.5 },
    })
    expect(layer_types).toEqual(["full_attention", "linear_attention"])
    expect(rope).toMatchObject({ theta: 5e6, rotary_dim: 128 })
  })

  test.each([
    [{ linear_num_value_heads: 24 }, "linear_num_value_heads: 24 is no multiple of"],
    [{ linear_key_head_dim: 512 }, "linear_key_head_dim: 512 ("],
    [{ linear_conv_kernel_dim: 1 }, "linear_conv_kernel_dim: 1 ("],
    [
      { model_type: "qwen3_moe", num_hidden_layers: 1, layer_types: ["linear_attention"] },
      "layer_types: a qwen3_moe has no linear_attention",
    ],
  ])("refuses %j", (change, message) => {
    expect(() =>
      parse({
        ...change,
        vocab_size: 99,
        hidden_size: 64,
        intermediate_size: 64,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 64,
      }),
    ).toThrow(message)
  })
})
