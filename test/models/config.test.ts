import { afterAll, describe, expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import fc from "fast-check"

import { FormatError } from "../../src/errors.ts"
import { configFromGguf, withGgufLayout } from "../../src/models/config-gguf.ts"
import { configFromFolder, configFromJson } from "../../src/models/config-hf.ts"
import {
  isMoeLayer,
  layerRope,
  layerWindow,
  maxContextLength,
  MODEL_TYPES,
  type ModelConfig,
} from "../../src/models/config.ts"
import { F16, F32 } from "../../src/tensor/dtype.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { openSafetensors } from "../../src/weights/safetensors.ts"
import type { Checkpoint } from "../../src/weights/source.ts"
import { failure } from "../fixtures/format-failure.ts"
import {
  array,
  f32,
  f32Tensor,
  type FixtureTensor,
  type FixtureValue,
  ggufBytes,
} from "../fixtures/gguf.ts"
import { memoryFiles, readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-config-"))
afterAll(() => rmSync(folder, { recursive: true }))

function windows(config: ModelConfig): number[] {
  return config.layer_types.map((_, i) => layerWindow(config, i))
}

/** Shapes that the config promises, against the tensors of the checkpoint it came with. */
function expectShapes(
  config: ModelConfig,
  weights: Checkpoint,
  name: (path: string) => string,
): void {
  const { hidden_size: D, num_attention_heads: H, num_key_value_heads: KV, head_dim: d } = config
  const shape = (path: string): readonly number[] | undefined => weights.get(name(path))?.shape
  const layer = `model.layers.${config.num_hidden_layers - 1}`
  expect(shape("model.embed_tokens.weight")).toEqual([config.vocab_size, D])
  expect(shape("lm_head.weight") === undefined).toBe(config.tie_word_embeddings)
  expect(shape(`${layer}.self_attn.o_proj.weight`)).toEqual([D, H * d])
  if (config.model_type === "phi3") {
    expect(shape(`${layer}.self_attn.qkv_proj.weight`)).toEqual([(H + 2 * KV) * d, D])
    expect(shape(`${layer}.mlp.gate_up_proj.weight`)).toEqual([2 * config.intermediate_size, D])
    return
  }
  expect(shape(`${layer}.self_attn.q_proj.weight`)).toEqual([H * d, D])
  expect(shape(`${layer}.self_attn.k_proj.weight`)).toEqual([KV * d, D])
  expect(shape(`${layer}.self_attn.q_proj.bias`) !== undefined).toBe(config.attention_bias)
  expect(shape(`${layer}.self_attn.o_proj.bias`) !== undefined).toBe(config.attention_output_bias)
  expect(shape(`${layer}.self_attn.q_norm.weight`)).toEqual(config.qk_norm ? [d] : undefined)
  const isMoe = isMoeLayer(config, config.num_hidden_layers - 1)
  expect(shape(`${layer}.mlp.gate.weight`)).toEqual(isMoe ? [config.num_experts, D] : undefined)
  if (!isMoe) expect(shape(`${layer}.mlp.gate_proj.weight`)).toEqual([config.intermediate_size, D])
}

const HF = [
  "llama",
  "llama_dynamic",
  "mistral",
  "qwen2",
  "qwen3",
  "gemma3_text",
  "phi3",
  "qwen3_moe",
]

describe("Hugging Face reference folders", () => {
  const configs = Object.fromEntries(HF.map((name) => [name, configFromFolder(golden("hf", name))]))
  const of = (name: string): ModelConfig => configs[name] as ModelConfig

  test.each(HF)("%s fits its tensors", (name) => {
    expectShapes(of(name), openSafetensors(golden("hf", name), readWhole), (path) => path)
    const raw = JSON.parse(readFileSync(golden("hf", name, "config.json"), "utf8"))
    for (const key of [
      "hidden_size",
      "vocab_size",
      "rms_norm_eps",
      "max_position_embeddings",
      "bos_token_id",
    ] as const) {
      expect(of(name)[key]).toBe(raw[key])
    }
    expect(of(name).eos_token_id).toEqual([2])
    expect(of(name).layout).toBe("huggingface")
    expect(of(name).rope.interleaved).toBe(false)
    if (name !== "gemma3_text") expect(of(name).attention_scale).toBe(of(name).head_dim ** -0.5)
  })

  test("rope", () => {
    expect(of("llama").rope).toMatchObject({
      type: "llama3",
      theta: 20000,
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 28,
      attention_factor: 1,
      rotary_dim: 16,
    })
    expect(of("llama_dynamic").rope).toMatchObject({
      type: "dynamic",
      factor: 2.5,
      original_max_position_embeddings: 16,
    })
    expect(maxContextLength(of("llama_dynamic"))).toBe(40)
    expect(of("qwen2").rope).toMatchObject({ type: "default", theta: 1e6, factor: 1 })
    expect(of("qwen3_moe").rope).toMatchObject({ type: "default", theta: 1e6 })
    const phi = of("phi3").rope
    expect(phi).toMatchObject({ type: "longrope", factor: 4, original_max_position_embeddings: 16 })
    expect(phi.attention_factor).toBeCloseTo(Math.sqrt(1.5), 12)
    expect(phi.long_factor?.[7]).toBe(6.5)
    expect(phi.short_factor?.[0]).toBe(1)
  })

  test("windows", () => {
    expect(windows(of("mistral"))).toEqual([10, 10, 10])
    expect(windows(of("qwen2"))).toEqual([0, 0])
    expect(windows(of("qwen3"))).toEqual([0, 0, 0])
    expect(windows(of("gemma3_text"))).toEqual([8, 8, 0])
    expect(windows(of("phi3"))).toEqual([0, 0, 0])
    expect(of("qwen2").sliding_window).toBeUndefined()
  })

  test("what is particular", () => {
    const gemma = of("gemma3_text")
    expect(gemma).toMatchObject({
      norm_offset: 1,
      hidden_act: "gelu_pytorch_tanh",
      qk_norm: true,
      head_dim: 24,
    })
    expect(gemma.attention_scale).toBeCloseTo(14 ** -0.5, 15)
    expect(gemma.embedding_scale).toBeCloseTo(Math.sqrt(48), 15)
    expect([0, 1, 2].map((i) => layerRope(gemma, i).theta)).toEqual([10000, 10000, 1e6])
    expect(of("qwen3_moe")).toMatchObject({
      num_experts: 6,
      num_experts_per_tok: 3,
      moe_intermediate_size: 32,
      norm_topk_prob: true,
    })
    expect(of("qwen2")).toMatchObject({
      attention_bias: true,
      attention_output_bias: false,
      norm_offset: 0,
    })
  })
})

const BASE = {
  vocab_size: 100,
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 4096,
}

function fromJson(json: object): ModelConfig {
  return configFromJson("config.json", { model_type: "llama", ...BASE, ...json })
}

describe("config.json", () => {
  test("both forms of transformers say the same", () => {
    const scaling = {
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 512,
    }
    const old = fromJson({ rope_theta: 5e5, rope_scaling: scaling, torch_dtype: "bfloat16" })
    expect(
      fromJson({ rope_parameters: { ...scaling, rope_theta: 5e5 }, dtype: "bfloat16" }),
    ).toEqual(old)
    const gemma = { model_type: "gemma3_text", sliding_window: 8 }
    const linear = { rope_type: "linear", factor: 8 }
    const four = fromJson({
      ...gemma,
      rope_theta: 1e6,
      rope_local_base_freq: 10000,
      rope_scaling: linear,
      sliding_window_pattern: 2,
    })
    const five = fromJson({
      ...gemma,
      layer_types: ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
      rope_parameters: {
        full_attention: { ...linear, rope_theta: 1e6 },
        sliding_attention: { rope_type: "default", rope_theta: 10000 },
      },
    })
    expect(five).toEqual(four)
    expect(layerRope(five, 1)).toMatchObject({ type: "linear", factor: 8, theta: 1e6 })
    expect(layerRope(five, 0)).toMatchObject({ type: "default", factor: 1, theta: 10000 })
  })

  test("scaling types", () => {
    const yarn = { type: "yarn", factor: 4, original_max_position_embeddings: 1024 }
    expect(fromJson({ rope_scaling: yarn }).rope.attention_factor).toBeCloseTo(
      0.1 * Math.log(4) + 1,
      12,
    )
    expect(maxContextLength(fromJson({ rope_scaling: yarn }))).toBe(4096)
    expect(
      maxContextLength(
        fromJson({ rope_scaling: { ...yarn, original_max_position_embeddings: 4096 } }),
      ),
    ).toBe(16384)
    expect(
      fromJson({ rope_scaling: { ...yarn, mscale: 0.707, mscale_all_dim: 0.707 } }).rope
        .attention_factor,
    ).toBe(1)
    expect(fromJson({ rope_scaling: { ...yarn, attention_factor: 1.5 } }).rope).toMatchObject({
      attention_factor: 1.5,
      beta_fast: 32,
      beta_slow: 1,
    })
    const long = { type: "su", short_factor: Array(6).fill(1), long_factor: Array(6).fill(2) }
    const phi = fromJson({
      model_type: "phi3",
      rope_scaling: long,
      partial_rotary_factor: 0.75,
      original_max_position_embeddings: 1024,
    })
    expect(phi.rope).toMatchObject({ type: "longrope", rotary_dim: 12, factor: 4 })
    expect(fromJson({ rope_scaling: { type: "linear", factor: 2 } }).rope).toMatchObject({
      type: "linear",
      factor: 2,
    })
  })

  test("windows and layers by key", () => {
    const qwen = {
      model_type: "qwen2",
      use_sliding_window: true,
      sliding_window: 16,
      max_window_layers: 3,
    }
    expect(windows(fromJson(qwen))).toEqual([0, 0, 0, 16])
    expect(windows(fromJson({ ...qwen, use_sliding_window: false }))).toEqual([0, 0, 0, 0])
    expect(windows(fromJson({ model_type: "mistral", sliding_window: null }))).toEqual([0, 0, 0, 0])
    expect(windows(fromJson({ model_type: "mistral" }))).toEqual([4096, 4096, 4096, 4096])
    const moe = fromJson({
      model_type: "qwen3_moe",
      num_experts: 4,
      num_experts_per_tok: 2,
      moe_intermediate_size: 32,
      decoder_sparse_step: 2,
      mlp_only_layers: [3],
    })
    expect([0, 1, 2, 3].map((i) => isMoeLayer(moe, i))).toEqual([false, true, false, false])
    expect(isMoeLayer(fromJson({}), 1)).toBe(false)
    expect(fromJson({ attention_bias: true, mlp_bias: true })).toMatchObject({
      attention_bias: true,
      attention_output_bias: true,
      mlp_bias: true,
    })
  })

  test("a checkpoint with a vision part gives its language model", () => {
    const config = configFromJson("config.json", {
      model_type: "gemma3",
      eos_token_id: [1, 106],
      text_config: {
        model_type: "gemma3_text",
        hidden_size: 2560,
        intermediate_size: 10240,
        num_hidden_layers: 34,
        rope_scaling: { factor: 8, rope_type: "linear" },
        sliding_window: 1024,
      },
      vision_config: {},
    })
    expect(config).toMatchObject({
      model_type: "gemma3_text",
      vocab_size: 262208,
      head_dim: 256,
      num_key_value_heads: 4,
      eos_token_id: [1, 106],
      tie_word_embeddings: true,
    })
    expect(config.layer_types.filter((t) => t === "full_attention")).toHaveLength(5)
    expect(config.rope).toMatchObject({ type: "linear", factor: 8, theta: 1e6 })
  })

  test("generation_config.json says what ends a text", () => {
    const path = join(folder, "gen")
    mkdirSync(path)
    writeFileSync(
      join(path, "config.json"),
      JSON.stringify({ model_type: "llama", ...BASE, eos_token_id: 2 }),
    )
    expect(configFromFolder(path).eos_token_id).toEqual([2])
    writeFileSync(join(path, "generation_config.json"), JSON.stringify({ eos_token_id: [5, 6] }))
    expect(configFromFolder(path).eos_token_id).toEqual([5, 6])
    writeFileSync(join(path, "generation_config.json"), JSON.stringify({ eos_token_id: "x" }))
    expect(failure(() => configFromFolder(path))).toContain(
      `generation_config.json: eos_token_id: "x"`,
    )
    writeFileSync(join(path, "config.json"), "{")
    expect(failure(() => configFromFolder(path))).toContain("config.json: is no valid JSON")
    expect(failure(() => configFromFolder(join(folder, "none")))).toContain(
      "config.json: no such file",
    )
  })

  test.each([
    [
      { model_type: "mamba" },
      `config.json: model_type: "mamba" is unknown; known are ${MODEL_TYPES.join(", ")}`,
    ],
    [{ model_type: undefined }, "model_type: missing is unknown"],
    [{ hidden_size: "64" }, 'hidden_size: "64" ('],
    [{ hidden_size: undefined }, "hidden_size: missing ("],
    [{ hidden_size: -1 }, "hidden_size: -1 ("],
    [{ hidden_size: 2 ** 40 }, "hidden_size: 1099511627776 ("],
    [{ num_hidden_layers: 1.5 }, "num_hidden_layers: 1.5 ("],
    [{ num_key_value_heads: 3 }, "num_attention_heads: 4 is no multiple of num_key_value_heads 3"],
    [{ hidden_size: 65 }, "head_dim: missing, and hidden_size 65 is no multiple of 4 heads"],
    [{ head_dim: 15 }, "rotary dimension: 15"],
    [{ hidden_act: "swish2" }, 'hidden_act: "swish2" is unknown'],
    [
      { rope_scaling: { type: "ntk", factor: 2 } },
      'rope_scaling.rope_type: "ntk" is unknown; known are default, linear',
    ],
    [{ rope_scaling: { factor: 2 } }, "rope_scaling.rope_type: missing is unknown"],
    [{ rope_scaling: { type: "linear" } }, "rope_scaling: type linear needs a factor"],
    [{ rope_scaling: { type: "linear", factor: 0.5 } }, "rope_scaling: factor 0.5 is below 1"],
    [{ rope_scaling: { type: "linear", factor: "2" } }, 'rope_scaling.factor: "2" ('],
    [{ rope_scaling: { type: "llama3", factor: 2 } }, "type llama3 needs low_freq_factor"],
    [{ rope_scaling: { type: "longrope" } }, "type longrope needs short_factor and long_factor"],
    [
      { rope_scaling: { type: "longrope", factor: 2, short_factor: [1], long_factor: [1] } },
      "short_factor has 1 values, expected 8",
    ],
    [{ rope_theta: 0 }, "rope_theta: 0 ("],
    [{ layer_types: ["full_attention"] }, "layer_types: 1 entries for 4 layers"],
    [{ layer_types: ["other_attention"] }, 'layer_types.0: "other_attention" ('],
    [
      { layer_types: Array(4).fill("sliding_attention") },
      "sliding_window: missing, but layer_types has sliding_attention",
    ],
    [
      { model_type: "qwen3_moe", num_experts: 2, num_experts_per_tok: 3 },
      "num_experts_per_tok: 3, expected 1 to num_experts 2",
    ],
    [
      { quantization_config: { quant_method: "hqq" } },
      'quantization_config: {"quant_method":"hqq"}',
    ],
    [{ model_type: "qwen3_moe", num_experts: null }, "num_experts: null, expected a number"],
    [{ eos_token_id: -1 }, "eos_token_id: -1 ("],
    [{ model_type: "gemma3" }, "text_config: missing ("],
    [
      { model_type: "some_vl", text_config: { model_type: "rwkv" } },
      'text_config.model_type: "rwkv" is unknown; known are llama, ',
    ],
  ])("refuses %j", (change, message) => {
    expect(failure(() => fromJson(change))).toContain(message)
  })

  test("refuses what is no object", () => {
    for (const json of [null, 3, "x", []])
      expect(failure(() => configFromJson("config.json", json))).toStartWith("config.json: ")
  })

  test("fuzz: any values give a config or a FormatError", () => {
    const keys = [
      ...Object.keys(BASE),
      "head_dim",
      "rope_scaling",
      "rope_parameters",
      "layer_types",
      "sliding_window",
      "eos_token_id",
      "text_config",
      "rope_layout",
      "moe_layer_layout",
      "no_rope_layers",
      "moe_layers",
      "attention_chunk_size",
    ]
    const value = fc.oneof(
      fc.jsonValue(),
      fc.integer(),
      fc.double(),
      fc.record({ type: fc.constantFrom("yarn", "longrope", "linear"), factor: fc.double() }),
    )
    fc.assert(
      fc.property(
        fc.constantFrom(...MODEL_TYPES, "gemma3", "llama4"),
        fc.dictionary(fc.constantFrom(...keys), value),
        (model_type, change) => {
          try {
            fromJson({ ...change, model_type })
          } catch (error) {
            if (!(error instanceof FormatError)) throw error
          }
        },
      ),
      { numRuns: 3000 },
    )
  })
})

describe("GGUF reference files", () => {
  const open = (name: string): GgufFile => openGguf(golden("gguf", `${name}.gguf`), readWhole)
  const GGUF = [
    "llama-rope-q4_k_m",
    "llama-tied-bf16",
    "llama-f16",
    "qwen2-q8_0",
    "qwen3-iq4_xs",
    "gemma3-q5_0",
    "qwen3moe-mixed",
    "qwen3moe-split-q8_0-00001-of-00002",
  ]

  test.each(GGUF)("%s fits its tensors", async (name) => {
    const { ggufName } = await import("../../src/weights/names.ts")
    const gguf = open(name)
    const config = configFromGguf(gguf)
    expectShapes(config, gguf, (path) => ggufName(gguf.architecture, path) ?? "")
    expect(config.layout).toBe("gguf")
    expect(config.norm_offset).toBe(0)
    expect(config.rope.interleaved).toBe(gguf.architecture === "llama")
    expect(config).toMatchObject({
      bos_token_id: 1,
      eos_token_id: [2],
      max_position_embeddings: 4096,
    })
    expect(config.rms_norm_eps).toBeCloseTo(gguf.architecture === "llama" ? 1e-5 : 1e-6, 9)
  })

  test("rope factors come from the tensor", () => {
    const { rope } = configFromGguf(open("llama-rope-q4_k_m"))
    expect(rope).toMatchObject({ type: "default", theta: 20000, rotary_dim: 32, factor: 1 })
    expect(rope.freq_factors).toHaveLength(16)
    expect(rope.freq_factors?.[0]).toBe(1)
    expect(Math.max(...(rope.freq_factors ?? []))).toBeGreaterThan(1)
    expect(configFromGguf(open("llama-f16")).rope.freq_factors).toBeUndefined()
  })

  test("gemma3", () => {
    const config = configFromGguf(open("gemma3-q5_0"))
    expect(windows(config)).toEqual([8, 8, 8, 8, 8, 0])
    expect([0, 5].map((i) => layerRope(config, i).theta)).toEqual([10000, 1e6])
    expect(config).toMatchObject({
      hidden_act: "gelu_pytorch_tanh",
      attention_scale: 0.25,
      embedding_scale: 8,
      model_type: "gemma3_text",
    })
  })

  test("qwen3moe", () => {
    const config = configFromGguf(open("qwen3moe-split-q8_0-00001-of-00002"))
    expect(config).toMatchObject({
      model_type: "qwen3_moe",
      num_experts: 5,
      num_experts_per_tok: 3,
      moe_intermediate_size: 32,
      norm_topk_prob: true,
      head_dim: 32,
    })
  })

  test("other architectures are refused with the known ones", () => {
    expect(failure(() => configFromGguf(gguf("mpt")))).toContain(
      `general.architecture: "mpt" is unknown; known are llama, qwen2, qwen3, `,
    )
    expect(failure(() => configFromGguf(gguf("qwen2", { expert_count: 3 })))).toContain(
      "qwen2.expert_count: 3, only dense models",
    )
  })
})

function gguf(
  architecture: string,
  more: Readonly<Record<string, FixtureValue | undefined>> = {},
  tensors: readonly FixtureTensor[] = [],
): GgufFile {
  const metadata: Record<string, FixtureValue | undefined> = {
    "general.architecture": architecture,
    [`${architecture}.block_count`]: 4,
    [`${architecture}.context_length`]: 4096,
    [`${architecture}.embedding_length`]: 64,
    [`${architecture}.feed_forward_length`]: 128,
    [`${architecture}.attention.head_count`]: 4,
    [`${architecture}.attention.head_count_kv`]: 2,
    [`${architecture}.attention.layer_norm_rms_epsilon`]: f32(1e-5),
    ...Object.fromEntries(
      Object.entries(more).map(([key, value]) => [
        key.includes("ggml") ? key : `${architecture}.${key}`,
        value,
      ]),
    ),
  }
  const present = Object.entries(metadata).filter(
    (entry): entry is [string, FixtureValue] => entry[1] !== undefined,
  )
  const embedding = { name: "token_embd.weight", dtype: F32, shape: [100, 64] }
  return openGguf(
    "m.gguf",
    memoryFiles({ "m.gguf": ggufBytes(Object.fromEntries(present), [embedding, ...tensors]) }),
  )
}

describe("GGUF metadata", () => {
  test("defaults", () => {
    expect(configFromGguf(gguf("llama"))).toMatchObject({
      head_dim: 16,
      tie_word_embeddings: true,
      vocab_size: 100,
      eos_token_id: [],
      num_experts: 0,
    })
    expect(configFromGguf(gguf("llama")).rope).toMatchObject({
      theta: 10000,
      rotary_dim: 16,
      interleaved: true,
    })
    const output = { name: "output.weight", dtype: F32, shape: [100, 64] }
    expect(configFromGguf(gguf("llama", {}, [output])).tie_word_embeddings).toBe(false)
  })

  test("scaling", () => {
    const linear = { "rope.scaling.type": "linear", "rope.scaling.factor": f32(4) }
    expect(configFromGguf(gguf("llama", linear)).rope).toMatchObject({ type: "linear", factor: 4 })
    expect(configFromGguf(gguf("llama", { "rope.scale_linear": f32(2) })).rope).toMatchObject({
      type: "linear",
      factor: 2,
    })
    const yarn = {
      "rope.scaling.type": "yarn",
      "rope.scaling.factor": f32(4),
      "rope.scaling.original_context_length": 1024,
    }
    const rope = configFromGguf(gguf("qwen3", yarn)).rope
    expect(rope).toMatchObject({
      type: "yarn",
      factor: 4,
      original_max_position_embeddings: 1024,
      interleaved: false,
    })
    expect(rope.attention_factor).toBeCloseTo(1 + 0.1 * Math.log(4), 12)
    const factors = [
      f32Tensor("rope_factors_long.weight", [6], Array(6).fill(2)),
      f32Tensor("rope_factors_short.weight", [6], Array(6).fill(1)),
    ]
    const long = {
      "rope.dimension_count": 12,
      "rope.scaling.original_context_length": 1024,
      "rope.scaling.attn_factor": f32(1.25),
      "attention.sliding_window": 2048,
    }
    const phi = configFromGguf(gguf("phi3", long, factors))
    expect(phi.rope).toMatchObject({
      type: "longrope",
      factor: 4,
      attention_factor: 1.25,
      rotary_dim: 12,
      long_factor: Array(6).fill(2),
    })
    expect(windows(phi)).toEqual([2048, 2048, 2048, 2048])
    const gemma = configFromGguf(
      gguf("gemma3", {
        ...linear,
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": 2,
      }),
    )
    expect(windows(gemma)).toEqual([8, 0, 8, 0])
    expect(layerRope(gemma, 0)).toMatchObject({ type: "default", factor: 1, theta: 10000 })
    expect(layerRope(gemma, 1)).toMatchObject({ type: "linear", factor: 4 })
    const listed = {
      "attention.sliding_window": 8,
      "attention.sliding_window_pattern": array("bool", [false, true, true, false]),
    }
    expect(windows(configFromGguf(gguf("gemma3", listed)))).toEqual([0, 8, 8, 0])
  })

  test("ids and values of other widths", () => {
    const ids = {
      "tokenizer.ggml.eos_token_id": 5,
      "tokenizer.ggml.eot_token_id": 7,
      "tokenizer.ggml.eom_token_id": 5,
    }
    expect(configFromGguf(gguf("llama", ids)).eos_token_id).toEqual([5, 7])
    expect(configFromGguf(gguf("llama", { embedding_length: 64n })).hidden_size).toBe(64)
    expect(
      configFromGguf(gguf("llama", { "attention.head_count_kv": array("i32", [2, 2, 2, 2]) }))
        .num_key_value_heads,
    ).toBe(2)
  })

  test.each([
    [{ block_count: undefined }, "m.gguf: llama.block_count: missing"],
    [{ block_count: 0 }, "llama.block_count: 0, expected a positive integer"],
    [{ embedding_length: "x" }, "llama.embedding_length: x, expected an integer"],
    [{ embedding_length: -4 }, "llama.embedding_length: -4"],
    [{ embedding_length: 65 }, "head_dim: missing, and hidden_size 65"],
    [{ "attention.head_count": 0 }, "llama.attention.head_count: 0, expected a positive integer"],
    [
      { "attention.head_count_kv": array("i32", [2, 1, 2, 2]) },
      "2 and 1, expected the same value for every layer",
    ],
    [{ "attention.head_count_kv": 3 }, "num_attention_heads: 4 is no multiple"],
    [{ "attention.value_length": 8 }, "llama.attention.value_length: 8, expected key_length 16"],
    [
      { "attention.layer_norm_rms_epsilon": f32(Number.NaN) },
      "layer_norm_rms_epsilon: NaN, expected a number from 0 to 1",
    ],
    [{ "attention.layer_norm_rms_epsilon": undefined }, "layer_norm_rms_epsilon: missing"],
    [{ "rope.dimension_count": 20 }, "rotary dimension: 20"],
    [{ "rope.scaling.type": "ntk" }, 'llama.rope.scaling.type: "ntk" is unknown'],
    [{ "rope.scaling.type": "linear" }, "llama.rope: type linear needs a factor"],
    [{ "tokenizer.ggml.eos_token_id": "x" }, "tokenizer.ggml.eos_token_id: x, expected a token id"],
  ])("refuses %j", (change: Record<string, FixtureValue | undefined>, message) => {
    expect(failure(() => configFromGguf(gguf("llama", change)))).toContain(message)
  })

  test("a mixture of experts must say how many", () => {
    expect(failure(() => configFromGguf(gguf("qwen3moe")))).toBe(
      "m.gguf: qwen3moe.expert_count: missing",
    )
    const none = { expert_count: 4, expert_used_count: 2 }
    expect(failure(() => configFromGguf(gguf("qwen3moe", none)))).toContain(
      "expert_feed_forward_length: missing",
    )
    const most = { ...none, expert_used_count: 5, expert_feed_forward_length: 32 }
    expect(failure(() => configFromGguf(gguf("qwen3moe", most)))).toContain(
      "num_experts_per_tok: 5",
    )
  })

  test("refuses tensors that cannot be factors, and a file without embedding", () => {
    const half = { name: "rope_freqs.weight", dtype: F16, shape: [8] }
    expect(failure(() => configFromGguf(gguf("llama", {}, [half])))).toContain(
      'tensor "rope_freqs.weight": F16 [8]',
    )
    const short = f32Tensor("rope_freqs.weight", [4], [1, 1, 1, 1])
    expect(failure(() => configFromGguf(gguf("llama", {}, [short])))).toContain(
      "freq_factors has 4 values, expected 8",
    )
    const zero = f32Tensor("rope_freqs.weight", [8], Array(8).fill(0))
    expect(failure(() => configFromGguf(gguf("llama", {}, [zero])))).toContain(
      "freq_factors holds 0",
    )
    const path = golden("gguf", "llama-f16.gguf")
    const whole = openGguf(path, readWhole)
    const vocabulary: GgufFile = { ...whole, get: () => undefined }
    expect(failure(() => configFromGguf(vocabulary))).toContain("has no tensor token_embd.weight")
  })
})

test("fuzz: a damaged header gives a configuration or a FormatError", () => {
  const tokenizer = { "tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 7 }
  const metadata = {
    "general.architecture": "gemma3",
    "gemma3.block_count": 2,
    "gemma3.context_length": 64,
    "gemma3.embedding_length": 8,
    "gemma3.feed_forward_length": 8,
    "gemma3.attention.head_count": 2,
    "gemma3.attention.layer_norm_rms_epsilon": f32(1e-6),
    "gemma3.attention.sliding_window": 8,
    "gemma3.attention.sliding_window_pattern": array("bool", [true, false]),
    "gemma3.rope.scaling.type": "yarn",
    "gemma3.rope.scaling.factor": f32(2),
    ...tokenizer,
  }
  const factors = f32Tensor("rope_freqs.weight", [2], [1, 2])
  const bytes = ggufBytes(metadata, [
    { name: "token_embd.weight", dtype: F32, shape: [8, 8] },
    factors,
  ])
  const read = (data: Uint8Array): ModelConfig =>
    configFromGguf(openGguf("m", memoryFiles({ m: data })))
  expect(read(bytes).rope).toMatchObject({ type: "yarn", freq_factors: [1, 2] })
  let survived = 0
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 255 }), (at, value) => {
      const damaged = bytes.slice()
      damaged[at] = value
      try {
        read(damaged)
        survived++
      } catch (error) {
        if (!(error instanceof FormatError)) throw error
      }
    }),
    { numRuns: 5000 },
  )
  expect(survived).toBeGreaterThan(0)
})

test("weights of a GGUF under a Hugging Face configuration", () => {
  const config = fromJson({
    model_type: "mistral",
    sliding_window: 10,
    tie_word_embeddings: false,
    vocab_size: 128,
  })
  const merged = withGgufLayout(config, gguf("llama"))
  expect(merged).toMatchObject({
    model_type: "mistral",
    layout: "gguf",
    sliding_window: 10,
    tie_word_embeddings: true,
    vocab_size: 100,
  })
  expect(merged.rope.interleaved).toBe(true)
  const gemma = fromJson({ model_type: "gemma3_text", head_dim: 16 })
  const layout = withGgufLayout(gemma, gguf("gemma3"))
  expect(layout).toMatchObject({ norm_offset: 0, layer_types: gemma.layer_types })
  expect(layout.rope_local?.interleaved).toBe(false)
  expect(failure(() => withGgufLayout(fromJson({}), gguf("qwen3")))).toContain(
    '"qwen3" holds no llama model',
  )
  expect(
    failure(() => withGgufLayout(fromJson({ num_hidden_layers: 3 }), gguf("llama"))),
  ).toContain("num_hidden_layers: 4, but config.json says 3")
})
