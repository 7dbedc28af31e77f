import { describe, expect, test } from "bun:test"

import { expandedBytes, kvLayers } from "../../src/engine/kv-layers.ts"
import { kvBytesPerPage } from "../../src/kvcache/pool.ts"
import { configFromGguf, withGgufLayout } from "../../src/models/config-gguf.ts"
import { configFromFolder, configFromJson } from "../../src/models/config-hf.ts"
import { isMoeLayer, maxContextLength, type ModelConfig } from "../../src/models/config.ts"
import { F16, F32 } from "../../src/tensor/dtype.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { failure } from "../fixtures/format-failure.ts"
import { f32, type FixtureValue, ggufBytes } from "../fixtures/gguf.ts"
import { memoryFiles, readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"

const fromJson = (json: object): ModelConfig => configFromJson("config.json", json)

const YARN = {
  type: "yarn",
  factor: 40,
  beta_fast: 32,
  beta_slow: 1,
  mscale: 1.0,
  mscale_all_dim: 1.0,
  original_max_position_embeddings: 4096,
}

const V3 = {
  model_type: "deepseek_v3",
  vocab_size: 129_280,
  hidden_size: 7168,
  intermediate_size: 18_432,
  moe_intermediate_size: 2048,
  num_hidden_layers: 61,
  num_attention_heads: 128,
  num_key_value_heads: 128,
  n_shared_experts: 1,
  n_routed_experts: 256,
  num_experts_per_tok: 8,
  first_k_dense_replace: 3,
  moe_layer_freq: 1,
  n_group: 8,
  topk_group: 4,
  topk_method: "noaux_tc",
  scoring_func: "sigmoid",
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  q_lora_rank: 1536,
  kv_lora_rank: 512,
  qk_nope_head_dim: 128,
  qk_rope_head_dim: 64,
  v_head_dim: 128,
  max_position_embeddings: 163_840,
  num_nextn_predict_layers: 1,
  rope_theta: 10_000,
  rope_scaling: YARN,
}

const V2_LITE = {
  ...V3,
  model_type: "deepseek_v2",
  vocab_size: 102_400,
  hidden_size: 2048,
  intermediate_size: 10_944,
  moe_intermediate_size: 1408,
  num_hidden_layers: 27,
  num_attention_heads: 16,
  num_key_value_heads: 16,
  n_shared_experts: 2,
  n_routed_experts: 64,
  num_experts_per_tok: 6,
  first_k_dense_replace: 1,
  n_group: 1,
  topk_group: 1,
  topk_method: "greedy",
  scoring_func: "softmax",
  norm_topk_prob: false,
  routed_scaling_factor: 1,
  q_lora_rank: null,
  rope_scaling: { ...YARN, mscale: 0.707, mscale_all_dim: 0.707 },
}

describe("config.json of DeepSeek models", () => {
  test("V3", () => {
    const config = fromJson(V3)
    expect(config).toMatchObject({
      num_key_value_heads: 1,
      head_dim: 192,
      mla: { q_lora_rank: 1536, kv_lora_rank: 512, split_kv_b: false },
      num_experts: 256,
      topk_method: "noaux_tc",
      n_group: 8,
      topk_group: 4,
      routed_scaling_factor: 2.5,
      n_shared_experts: 1,
      scoring_func: "sigmoid",
      rope: { rotary_dim: 64, interleaved: true, attention_factor: 1 },
    })
    // the square of 0.1 ln 40 + 1
    expect(config.attention_scale).toBeCloseTo(1.3688879 ** 2 / Math.sqrt(192), 6)
    expect([0, 2, 3, 60].map((i) => isMoeLayer(config, i))).toEqual([false, false, true, true])
    expect(maxContextLength(config)).toBe(163_840)
  })

  test("V3 caches 576 values a token and layer, in one head", () => {
    const config = fromJson(V3)
    const layers = kvLayers(config)
    expect(layers.length).toBe(61)
    expect(layers[0]).toEqual({ kvHeads: 1, kDim: 576, vDim: 512, valuesInKeys: true })
    expect(kvBytesPerPage(layers, 32, F16)).toBe(61 * 32 * 576 * 2)
    expect(expandedBytes(config)).toBe(64 * 2 ** 20)
  })

  test("V2-Lite", () => {
    const config = fromJson(V2_LITE)
    expect(config).toMatchObject({
      mla: { q_lora_rank: undefined },
      topk_method: "greedy",
      n_group: 1,
      topk_group: 1,
      norm_topk_prob: false,
      n_shared_experts: 2,
      rope: { attention_factor: 1 },
    })
    expect(config.attention_scale).toBeCloseTo((0.0707 * Math.log(40) + 1) ** 2 / Math.sqrt(192), 9)
  })

  test("a router and a softmax scale that the file does not describe", () => {
    const { topk_method: _m, scoring_func: _s, norm_topk_prob: _n, ...rest } = V3
    expect(fromJson(rest)).toMatchObject({
      topk_method: "noaux_tc",
      scoring_func: "sigmoid",
      norm_topk_prob: true,
    })
    const plain = fromJson({ ...rest, rope_scaling: null })
    expect(plain.attention_scale).toBe(1 / Math.sqrt(192))
    const other = fromJson({ ...rest, rope_scaling: { ...YARN, mscale_all_dim: 0.5, mscale: 1 } })
    const ratio = (0.1 * Math.log(40) + 1) / (0.05 * Math.log(40) + 1)
    expect(other.rope.attention_factor).toBeCloseTo(ratio, 9)
  })

  test("checkpoints whose halves rotate", () => {
    expect(fromJson({ ...V3, rope_interleave: false }).rope.interleaved).toBe(false)
    expect(fromJson({ ...V3, rope_interleave: true }).rope.interleaved).toBe(true)
  })

  test("impossible values are named", () => {
    const { kv_lora_rank: _k, ...rankless } = V3
    expect(failure(() => fromJson(rankless))).toContain("kv_lora_rank: missing")
    expect(failure(() => fromJson({ ...V3, n_group: 7 }))).toContain("n_group: 7 groups")
    expect(failure(() => fromJson({ ...V3, topk_group: 9 }))).toContain("topk_group: 9")
    expect(failure(() => fromJson({ ...V3, n_group: 256, topk_group: 4 }))).toContain(
      "num_experts_per_tok: 8, more than 4 groups of 1 hold",
    )
    expect(failure(() => fromJson({ ...V3, scoring_func: "tanh" }))).toContain("scoring_func")
    expect(failure(() => fromJson({ ...V3, topk_method: "best" }))).toContain("topk_method")
  })
})

function gguf(more: Readonly<Record<string, FixtureValue>>, tensors: readonly string[]): GgufFile {
  const keys: Record<string, FixtureValue> = {
    block_count: 2,
    context_length: 163_840,
    embedding_length: 64,
    feed_forward_length: 128,
    expert_feed_forward_length: 32,
    "attention.head_count": 4,
    "attention.head_count_kv": 4,
    "attention.layer_norm_rms_epsilon": f32(1e-6),
    "attention.kv_lora_rank": 32,
    "attention.key_length": 24,
    "attention.value_length": 16,
    "rope.dimension_count": 8,
    leading_dense_block_count: 1,
    expert_count: 6,
    expert_used_count: 2,
    expert_shared_count: 1,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": f32(40),
    "rope.scaling.original_context_length": 4096,
    "rope.scaling.yarn_log_multiplier": f32(0.0707),
    ...more,
  }
  const metadata = Object.entries(keys).map(([key, value]) => [`deepseek2.${key}`, value] as const)
  const entries = ["token_embd.weight", ...tensors].map((name) => ({
    name,
    dtype: F32,
    shape: [8, 64],
  }))
  const bytes = ggufBytes(
    { "general.architecture": "deepseek2", ...Object.fromEntries(metadata) },
    entries,
  )
  return openGguf("m.gguf", memoryFiles({ "m.gguf": bytes }))
}

describe("GGUF metadata of deepseek2", () => {
  test("files of before the split of kv_b, of before groups", () => {
    const config = configFromGguf(gguf({ expert_count: 160, expert_used_count: 6 }, []))
    expect(config).toMatchObject({
      model_type: "deepseek_v2",
      mla: {
        q_lora_rank: undefined,
        kv_lora_rank: 32,
        qk_nope_head_dim: 16,
        qk_rope_head_dim: 8,
        v_head_dim: 16,
        split_kv_b: false,
      },
      topk_method: "group_limited_greedy",
      n_group: 8,
      topk_group: 3,
      norm_topk_prob: false,
      routed_scaling_factor: 1,
    })
    expect(config.attention_scale).toBeCloseTo((0.0707 * Math.log(40) + 1) ** 2 / Math.sqrt(24), 6)
    expect([0, 1].map((i) => isMoeLayer(config, i))).toEqual([false, true])
  })

  test("files of today", () => {
    const config = configFromGguf(
      gguf(
        {
          "attention.head_count_kv": 1,
          "attention.key_length": 40,
          "attention.value_length": 32,
          "attention.key_length_mla": 24,
          "attention.value_length_mla": 16,
          "attention.q_lora_rank": 48,
          expert_gating_func: 2,
          expert_weights_norm: true,
          expert_weights_scale: f32(2.5),
          expert_group_count: 3,
          expert_group_used_count: 2,
        },
        ["blk.0.attn_k_b.weight", "blk.0.attn_q_a.weight", "blk.1.exp_probs_b.bias"],
      ),
    )
    expect(config).toMatchObject({
      model_type: "deepseek_v3",
      mla: { q_lora_rank: 48, qk_nope_head_dim: 16, v_head_dim: 16, split_kv_b: true },
      topk_method: "noaux_tc",
      n_group: 3,
      topk_group: 2,
      norm_topk_prob: true,
      routed_scaling_factor: 2.5,
    })
  })

  test("a model of the same architecture that this one is not", () => {
    const file = gguf({ "attention.temperature_scale": f32(0.1) }, [])
    expect(failure(() => configFromGguf(file))).toContain("attention.temperature_scale: 0.1")
  })

  test("layers that predict further tokens are not counted", () => {
    const config = configFromGguf(gguf({ block_count: 3, nextn_predict_layers: 1 }, []))
    expect(config.num_hidden_layers).toBe(2)
  })

  test("with a folder's config the file says how kv_b is stored", () => {
    const file = openGguf(golden("gguf", "deepseek2-v3-q4_1.gguf"), readWhole)
    const own = configFromGguf(file)
    const named: ModelConfig = { ...own, model_type: "kimi_k2", layout: "huggingface" }
    const joint = own.mla && { ...own.mla, split_kv_b: false }
    expect(withGgufLayout({ ...named, mla: joint }, file).mla?.split_kv_b).toBe(true)
    const other = configFromFolder(golden("hf", "deepseek_v2"))
    expect(failure(() => withGgufLayout(other, file))).toContain("holds no deepseek_v2 model")
  })
})
