import { describe, expect, test } from "bun:test"

import { configFromGguf } from "../../src/models/config-gguf.ts"
import { configFromFolder, configFromJson } from "../../src/models/config-hf.ts"
import {
  isMoeLayer,
  layerChunk,
  layerRope,
  layerWindow,
  type ModelConfig,
} from "../../src/models/config.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { failure } from "../fixtures/format-failure.ts"
import { f32, type FixtureValue, ggufBytes } from "../fixtures/gguf.ts"
import { memoryFiles, readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"

/** What differs from layer to layer: window, chunk, rope, experts. */
function layers(config: ModelConfig): (number | boolean)[][] {
  return config.layer_types.map((_, i) => [
    layerWindow(config, i),
    layerChunk(config, i),
    config.rope_layers[i] === true,
    isMoeLayer(config, i),
  ])
}

const fromJson = (json: object): ModelConfig => configFromJson("config.json", json)

const SMALLTHINKER = {
  model_type: "smallthinker",
  vocab_size: 151_936,
  hidden_size: 2560,
  num_hidden_layers: 4,
  num_attention_heads: 28,
  num_key_value_heads: 4,
  head_dim: 128,
  max_position_embeddings: 16_384,
  moe_num_primary_experts: 64,
  moe_num_active_primary_experts: 6,
  moe_ffn_hidden_size: 768,
  moe_enable_secondary_experts: false,
  rope_theta: 1.5e6,
  rope_layout: [0, 1, 1, 1],
  sliding_window_layout: [0, 1, 1, 1],
  sliding_window_size: 4096,
  use_qk_norm: false,
}

describe("smallthinker", () => {
  test("reference folders", () => {
    const sigmoid = configFromFolder(golden("hf", "smallthinker_sigmoid"))
    expect(sigmoid).toMatchObject({
      hidden_act: "relu",
      num_experts: 6,
      num_experts_per_tok: 3,
      moe_intermediate_size: 32,
      scoring_func: "sigmoid",
      moe_enable_early_router: true,
    })
    expect(layers(sigmoid)).toEqual([
      [0, 0, false, true],
      [8, 0, true, true],
      [8, 0, true, true],
    ])
    const softmax = configFromFolder(golden("hf", "smallthinker_softmax"))
    expect(softmax).toMatchObject({ scoring_func: "softmax", tie_word_embeddings: true })
    expect(softmax.rope_layers).toEqual([true, false, true])
  })

  test("the 21B's keys, layers without experts, and what no model has", () => {
    const config = fromJson({ ...SMALLTHINKER, moe_layer_layout: [0, 1, 1, 1] })
    expect(layers(config)).toEqual([
      [0, 0, false, false],
      [4096, 0, true, true],
      [4096, 0, true, true],
      [4096, 0, true, true],
    ])
    expect(config.intermediate_size).toBe(4096)
    expect(failure(() => fromJson({ ...SMALLTHINKER, use_qk_norm: true }))).toContain("use_qk_norm")
    expect(
      failure(() => fromJson({ ...SMALLTHINKER, moe_enable_secondary_experts: true })),
    ).toContain("moe_enable_secondary_experts: true")
    for (const key of ["rope_layout", "sliding_window_layout", "moe_layer_layout"])
      expect(failure(() => fromJson({ ...SMALLTHINKER, [key]: [0, 1] }))).toContain(
        `${key}: 2 entries for 4 layers`,
      )
    expect(failure(() => fromJson({ ...SMALLTHINKER, rope_layout: [0, 2, 1, 1] }))).toContain(
      "rope_layout.1: 2",
    )
  })

  test("GGUF", () => {
    const config = configFromGguf(openGguf(golden("gguf", "smallthinker-q4_0.gguf"), readWhole))
    expect(config).toMatchObject({
      model_type: "smallthinker",
      hidden_act: "relu",
      scoring_func: "sigmoid",
      norm_topk_prob: true,
      moe_enable_early_router: true,
    })
    expect(layers(config)).toEqual([
      [0, 0, false, true],
      [4096, 0, true, true],
      [4096, 0, true, true],
      [4096, 0, true, true],
      [0, 0, false, true],
    ])
    // the 4B has no window, and rotates everywhere
    const plain = configFromGguf(gguf("smallthinker", { expert_gating_func: 1 }))
    expect(layers(plain)).toEqual(Array(4).fill([0, 0, true, true]))
    expect(plain.scoring_func).toBe("softmax")
    expect(
      failure(() => configFromGguf(gguf("smallthinker", { expert_gating_func: 9 }))),
    ).toContain("smallthinker.expert_gating_func: 9, expected one of 1, 2, 3")
  })
})

/** The keys that Scout's text_config has, with fewer layers. */
const SCOUT = {
  model_type: "llama4_text",
  attention_chunk_size: 8192,
  bos_token_id: 200_000,
  eos_token_id: [200_001, 200_007, 200_008],
  head_dim: 128,
  hidden_act: "silu",
  hidden_size: 5120,
  interleave_moe_layer_step: 1,
  intermediate_size: 8192,
  intermediate_size_mlp: 16_384,
  max_position_embeddings: 10_485_760,
  no_rope_layers: [],
  num_attention_heads: 40,
  num_experts_per_tok: 1,
  num_hidden_layers: 8,
  num_key_value_heads: 8,
  num_local_experts: 16,
  rms_norm_eps: 1e-5,
  rope_scaling: {
    factor: 16,
    high_freq_factor: 1,
    low_freq_factor: 1,
    original_max_position_embeddings: 8192,
    rope_type: "llama3",
  },
  rope_theta: 500_000,
  use_qk_norm: true,
  vocab_size: 202_048,
}

describe("llama4_text", () => {
  test("reference folder", () => {
    const config = configFromFolder(golden("hf", "llama4_text"))
    expect(config).toMatchObject({
      intermediate_size: 64,
      moe_intermediate_size: 32,
      num_experts: 4,
      scoring_func: "sigmoid",
      qk_norm: true,
      attn_temperature: { scale: 0.8, floor: 4 },
    })
    expect(config.rope.interleaved).toBe(true)
    expect(layers(config)).toEqual([
      [0, 8, true, false],
      [0, 8, true, true],
      [0, 8, true, false],
      [0, 0, false, true],
    ])
  })

  test("Scout's folder, whose text model stands beside a vision tower", () => {
    const config = fromJson({ model_type: "llama4", text_config: SCOUT, vision_config: {} })
    expect(config).toMatchObject({
      model_type: "llama4_text",
      intermediate_size: 16_384,
      moe_intermediate_size: 8192,
      eos_token_id: [200_001, 200_007, 200_008],
      attn_temperature: { scale: 0.1, floor: 8192 },
    })
    expect(config.rope).toMatchObject({ type: "llama3", factor: 16 })
    const period = [
      [0, 8192, true, true],
      [0, 8192, true, true],
      [0, 8192, true, true],
      [0, 0, false, true],
    ]
    expect(layers(config)).toEqual([...period, ...period])
  })

  test("a model type that objects have as a property is unknown like any other", () => {
    for (const model_type of ["constructor", "toString"])
      expect(failure(() => fromJson({ model_type }))).toContain(
        `model_type: "${model_type}" is unknown`,
      )
  })

  test("Maverick: every other layer has experts, no q/k norm, numbers for booleans", () => {
    const config = fromJson({
      ...SCOUT,
      interleave_moe_layer_step: 2,
      num_local_experts: 128,
      use_qk_norm: false,
      rope_scaling: null,
      attn_temperature_tuning: 4,
    })
    expect(config.qk_norm).toBe(false)
    expect(config.attn_temperature).toEqual({ scale: 0.1, floor: 8192 })
    expect(layers(config).map((layer) => layer[3])).toEqual([
      ...[false, true, false, true],
      ...[false, true, false, true],
    ])
    expect(failure(() => fromJson({ ...SCOUT, moe_layers: [1, 8] }))).toContain("moe_layers: 8")
    const plain = fromJson({ ...SCOUT, attn_temperature_tuning: false, attention_chunk_size: null })
    expect(plain.attn_temperature).toBeUndefined()
    expect(layers(plain).every(([, chunk]) => chunk === 0)).toBe(true)
  })

  test("GGUF", () => {
    const config = configFromGguf(openGguf(golden("gguf", "llama4-q8_0.gguf"), readWhole))
    expect(config).toMatchObject({
      model_type: "llama4_text",
      scoring_func: "sigmoid",
      norm_topk_prob: false,
      qk_norm: true,
      attn_temperature: { scale: 0.1, floor: 8192 },
    })
    expect(config.rope.interleaved).toBe(true)
    expect(layers(config)).toEqual([
      [0, 8192, true, false],
      [0, 8192, true, true],
      [0, 8192, true, false],
      [0, 0, false, true],
    ])
    const step = { interleave_moe_layer_step: 1 }
    expect(configFromGguf(gguf("llama4", { ...step, expert_count: 128 })).qk_norm).toBe(false)
    const everywhere = configFromGguf(gguf("llama4", { ...step, "attention.sliding_window": 0 }))
    expect(layers(everywhere)).toEqual(Array(4).fill([0, 0, true, true]))
    expect(everywhere.attn_temperature).toBeUndefined()
    expect(failure(() => configFromGguf(gguf("llama4", {})))).toContain(
      "llama4.interleave_moe_layer_step: missing",
    )
  })
})

describe("gpt_oss", () => {
  const YARN = { type: "yarn", factor: 32, truncate: false, beta_fast: 32, beta_slow: 1 }

  test("reference folder", () => {
    const config = configFromFolder(golden("hf", "gpt_oss"))
    expect(config).toMatchObject({
      hidden_act: "swiglu_oai",
      attention_bias: true,
      attention_output_bias: true,
      moe_intermediate_size: 32,
      num_experts: 6,
      num_experts_per_tok: 3,
    })
    expect(layerRope(config, 0)).toMatchObject(YARN)
    expect(config.rope.attention_factor).toBeCloseTo(0.1 * Math.log(32) + 1, 12)
    expect(layers(config)).toEqual([
      [8, 0, true, true],
      [0, 0, true, true],
    ])
  })

  test("the 20b's keys, and constants that the kernels do not have", () => {
    const json = {
      model_type: "gpt_oss",
      attention_bias: true,
      eos_token_id: 200_002,
      experts_per_token: 4,
      hidden_act: "silu",
      hidden_size: 2880,
      initial_context_length: 4096,
      intermediate_size: 2880,
      max_position_embeddings: 131_072,
      num_attention_heads: 64,
      num_experts_per_tok: 4,
      num_hidden_layers: 4,
      num_key_value_heads: 8,
      num_local_experts: 32,
      rope_scaling: {
        beta_fast: 32,
        beta_slow: 1,
        factor: 32,
        original_max_position_embeddings: 4096,
        rope_type: "yarn",
        truncate: false,
      },
      rope_theta: 150_000,
      sliding_window: 128,
      swiglu_limit: 7,
      vocab_size: 201_088,
    }
    const config = fromJson(json)
    expect(config).toMatchObject({ num_experts: 32, head_dim: 64, moe_intermediate_size: 2880 })
    expect(config.rope).toMatchObject({ ...YARN, theta: 150_000 })
    expect(layers(config).map(([window]) => window)).toEqual([128, 0, 128, 0])
    expect(failure(() => fromJson({ ...json, swiglu_limit: 8 }))).toContain("swiglu_limit: 8")
    const quantized = (quant_method: string): object => ({
      ...json,
      quantization_config: { quant_method, modules_to_not_convert: ["lm_head"] },
    })
    expect(fromJson(quantized("mxfp4"))).toEqual(config)
    expect(failure(() => fromJson(quantized("hqq")))).toContain('"quant_method":"hqq"')
  })

  test("GGUF", () => {
    const config = configFromGguf(openGguf(golden("gguf", "gpt-oss-mxfp4.gguf"), readWhole))
    expect(config).toMatchObject({
      model_type: "gpt_oss",
      hidden_act: "swiglu_oai",
      attention_bias: true,
      attention_output_bias: true,
      head_dim: 64,
    })
    expect(config.rope).toMatchObject({ ...YARN, interleaved: false })
    expect(layers(config)).toEqual([
      [8, 0, true, true],
      [0, 0, true, true],
    ])
  })
})

describe("mixtral", () => {
  test("folder, and a llama file with experts", () => {
    const config = configFromFolder(golden("hf", "mixtral"))
    const same = { model_type: "mixtral", num_experts_per_tok: 2, norm_topk_prob: true }
    expect(config).toMatchObject({ ...same, num_experts: 8, moe_intermediate_size: 32 })
    expect(layers(config)[1]).toEqual([0, 0, true, true])
    const file = configFromGguf(openGguf(golden("gguf", "mixtral-q2_k.gguf"), readWhole))
    expect(file).toMatchObject({ ...same, num_experts: 3, moe_intermediate_size: 256 })
    expect(file.rope.interleaved).toBe(true)
    const none = configFromGguf(gguf("llama", { expert_count: 0 }))
    expect(none).toMatchObject({ model_type: "llama", num_experts: 0 })
  })
})

describe("qwen2_moe", () => {
  const JSON_57B = {
    model_type: "qwen2_moe",
    vocab_size: 151_936,
    hidden_size: 3584,
    intermediate_size: 18_944,
    num_hidden_layers: 4,
    num_attention_heads: 28,
    num_key_value_heads: 4,
    max_position_embeddings: 32_768,
    num_experts: 64,
    num_experts_per_tok: 8,
    moe_intermediate_size: 2560,
    shared_expert_intermediate_size: 20_480,
  }

  test("which layers have experts, biases, the shared expert", () => {
    const config = configFromFolder(golden("hf", "qwen2_moe"))
    expect(layers(config).map(([, , , isMoe]) => isMoe)).toEqual([true, false, true])
    expect(config).toMatchObject({
      attention_bias: true,
      attention_output_bias: false,
      norm_topk_prob: false,
      shared_expert_intermediate_size: 64,
    })
    const sparse = fromJson({ ...JSON_57B, decoder_sparse_step: 2, qkv_bias: false })
    expect(layers(sparse).map(([, , , isMoe]) => isMoe)).toEqual([false, true, false, true])
    expect(sparse.attention_bias).toBe(false)
  })

  test("GGUF, also one whose shared expert has no width of its own", () => {
    const file = configFromGguf(openGguf(golden("gguf", "qwen2moe-q5_1.gguf"), readWhole))
    expect(file).toMatchObject({ norm_topk_prob: false, shared_expert_intermediate_size: 64 })
    expect(configFromGguf(gguf("qwen2moe", {}))).toMatchObject({
      shared_expert_intermediate_size: 128,
      mlp_only_layers: [],
    })
  })
})

describe("glm4_moe", () => {
  const ROUTER = {
    scoring_func: "sigmoid",
    topk_method: "noaux_tc",
    norm_topk_prob: true,
    n_group: 1,
    n_shared_experts: 1,
  }

  test("folder and file", () => {
    const folder = configFromFolder(golden("hf", "glm4_moe"))
    const file = configFromGguf(openGguf(golden("gguf", "glm4moe-q4_0.gguf"), readWhole))
    for (const config of [folder, file]) {
      expect(config).toMatchObject({
        ...ROUTER,
        qk_norm: true,
        attention_bias: true,
        attention_output_bias: false,
        routed_scaling_factor: 2.5,
      })
      expect(layers(config)).toEqual([
        [0, 0, true, false],
        [0, 0, true, true],
      ])
      expect(config.rope.rotary_dim).toBe(config.head_dim / 2)
    }
  })

  test("the Air's keys: no q/k norms, a layer for predicting further", () => {
    const config = fromJson({
      model_type: "glm4_moe",
      vocab_size: 151_552,
      hidden_size: 4096,
      intermediate_size: 10_944,
      num_hidden_layers: 4,
      num_attention_heads: 96,
      num_key_value_heads: 8,
      head_dim: 128,
      max_position_embeddings: 131_072,
      attention_bias: true,
      n_routed_experts: 128,
      num_nextn_predict_layers: 1,
      rope_theta: 1e6,
      partial_rotary_factor: 0.5,
      use_qk_norm: false,
    })
    expect(config).toMatchObject({ ...ROUTER, qk_norm: false, num_experts: 128 })
    expect(config.rope.rotary_dim).toBe(64)
    const file = configFromGguf(
      gguf("glm4moe", {
        block_count: 5,
        nextn_predict_layers: 1,
        leading_dense_block_count: 1,
        expert_gating_func: 0,
      }),
    )
    expect(file).toMatchObject({ num_hidden_layers: 4, scoring_func: "sigmoid", qk_norm: false })
    expect(file.mlp_only_layers).toEqual([0])
  })
})

describe("minimax_m2", () => {
  const JSON_M2 = {
    model_type: "minimax_m2",
    vocab_size: 200_064,
    hidden_size: 3072,
    intermediate_size: 1536,
    num_hidden_layers: 2,
    num_attention_heads: 48,
    num_key_value_heads: 8,
    head_dim: 128,
    max_position_embeddings: 196_608,
    num_local_experts: 256,
    num_experts_per_tok: 8,
    attn_type_list: [1, 1],
    qk_norm_type: "per_layer",
    rotary_dim: 64,
    shared_intermediate_size: 0,
  }

  test("folder, published keys and file", () => {
    expect(configFromFolder(golden("hf", "minimax_m2"))).toMatchObject({
      qk_norm: true,
      scoring_func: "sigmoid",
      topk_method: "noaux_tc",
      moe_intermediate_size: 32,
      rope: { rotary_dim: 8, theta: 5e6 },
    })
    const config = fromJson(JSON_M2)
    expect(config).toMatchObject({ num_experts: 256, qk_norm: true, rope: { rotary_dim: 64 } })
    expect(fromJson({ ...JSON_M2, use_routing_bias: false }).topk_method).toBe("greedy")
    const file = configFromGguf(
      gguf("minimax-m2", { expert_gating_func: 2, "rope.dimension_count": 8 }),
    )
    expect(file).toMatchObject({ model_type: "minimax_m2", scoring_func: "sigmoid" })
    expect(file).toMatchObject({ norm_topk_prob: true, rope: { rotary_dim: 8 } })
  })

  test("what MiniMax-M2 has not", () => {
    for (const json of [
      { attn_type_list: [1, 0] },
      { qk_norm_type: "per_head" },
      { shared_intermediate_size: 512 },
    ]) {
      const [key] = Object.keys(json)
      expect(failure(() => fromJson({ ...JSON_M2, ...json }))).toContain(key as string)
    }
  })
})

/** A file of four layers of an architecture with experts. */
function gguf(architecture: string, more: Readonly<Record<string, FixtureValue>>): GgufFile {
  const keys: Record<string, FixtureValue> = {
    block_count: 4,
    context_length: 4096,
    embedding_length: 64,
    feed_forward_length: 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": f32(1e-5),
    expert_count: 4,
    expert_used_count: 2,
    expert_feed_forward_length: 32,
    ...more,
  }
  const metadata: Record<string, FixtureValue> = { "general.architecture": architecture }
  for (const [key, value] of Object.entries(keys)) metadata[`${architecture}.${key}`] = value
  const embedding = { name: "token_embd.weight", dtype: F32, shape: [100, 64] }
  return openGguf("m.gguf", memoryFiles({ "m.gguf": ggufBytes(metadata, [embedding]) }))
}

describe("smollm3 and internlm2", () => {
  test("which layers rotate", () => {
    expect(configFromFolder(golden("hf", "smollm3")).rope_layers).toEqual([true, true, false])
    const json = {
      model_type: "smollm3",
      vocab_size: 128_256,
      hidden_size: 2048,
      intermediate_size: 11_008,
      num_hidden_layers: 4,
      num_attention_heads: 16,
      max_position_embeddings: 65_536,
    }
    const config = fromJson(json)
    expect(config.rope_layers).toEqual([true, true, true, false])
    expect(config).toMatchObject({ num_key_value_heads: 4, tie_word_embeddings: true })
    const sliding = { use_sliding_window: true, sliding_window: 16 }
    expect(layers(fromJson({ ...json, ...sliding })).map(([window]) => window)).toEqual([
      0, 0, 0, 16,
    ])
    const file = configFromGguf(gguf("smollm3", { expert_count: 0 }))
    expect(file.rope_layers).toEqual([true, true, true, false])
    expect(file.rope.interleaved).toBe(true)
  })

  test("InternLM2's biases and rope", () => {
    const config = configFromFolder(golden("hf", "internlm2"))
    expect(config).toMatchObject({ attention_bias: false, attention_output_bias: false })
    expect(config.rope).toMatchObject({
      type: "dynamic",
      factor: 2.5,
      original_max_position_embeddings: 16,
    })
    const json = {
      model_type: "internlm2",
      vocab_size: 100,
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 1,
      num_attention_heads: 4,
      max_position_embeddings: 4096,
    }
    expect(fromJson(json)).toMatchObject({ attention_bias: true, attention_output_bias: true })
    const file = configFromGguf(gguf("internlm2", { expert_count: 0 }))
    expect(file).toMatchObject({ model_type: "internlm2", attention_bias: false })
    expect(file.rope.interleaved).toBe(true)
  })
})
