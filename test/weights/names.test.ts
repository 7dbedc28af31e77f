import { describe, expect, test } from "bun:test"

import { FormatError } from "../../src/errors.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import {
  checkpointNames,
  CONFIG_TENSORS,
  GGUF_ARCHITECTURES,
  ggufName,
  hfName,
} from "../../src/weights/names.ts"
import { openSafetensors } from "../../src/weights/safetensors.ts"
import { ggufBytes } from "../fixtures/gguf.ts"
import { memoryFiles, readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"

describe("reference files", () => {
  test.each([
    "llama-rope-q4_k_m",
    "llama-tied-bf16",
    "llama-f16",
    "qwen2-q8_0",
    "qwen3-iq4_xs",
    "gemma3-q5_0",
    "qwen3moe-mixed",
    "qwen3moe-split-q8_0-00001-of-00002",
    "smallthinker-q4_0",
    "llama4-q8_0",
    "gpt-oss-mxfp4",
    "mixtral-q2_k",
    "qwen2moe-q5_1",
    "glm4moe-q4_0",
  ])("every tensor of %s has a place in the model and comes back", (file) => {
    const gguf = openGguf(golden("gguf", `${file}.gguf`), readWhole)
    for (const name of gguf.names()) {
      if (CONFIG_TENSORS.has(name)) continue
      const path = hfName(gguf.architecture, name)
      expect(path).toStartWith(name.startsWith("output.") ? "lm_head" : "model.")
      expect(ggufName(gguf.architecture, path ?? "")).toBe(name)
    }
  })

  test.each([
    ["llama", "llama"],
    ["mistral", "llama"],
    ["qwen2", "qwen2"],
    ["qwen3", "qwen3"],
    ["gemma3_text", "gemma3"],
    ["phi3", "phi3"],
    ["qwen3_moe", "qwen3moe"],
    ["smallthinker_sigmoid", "smallthinker"],
    ["smollm3", "smollm3"],
    ["mixtral", "llama"],
    ["qwen2_moe", "qwen2moe"],
    ["glm4_moe", "glm4moe"],
    ["minimax_m2", "minimax-m2"],
  ])("every tensor of the %s checkpoint has a GGUF name and comes back", (model, architecture) => {
    const weights = openSafetensors(golden("hf", model), readWhole)
    const seen = new Set<string>()
    for (const path of weights.names()) {
      const name = ggufName(architecture, path) ?? ""
      expect(hfName(architecture, name)).toBe(path)
      seen.add(name)
    }
    expect(seen.size).toBe([...weights.names()].length)
    expect(seen).toContain("token_embd.weight")
  })
})

test("names as converters write them", () => {
  expect(ggufName("llama", "model.layers.3.self_attn.q_proj.weight")).toBe("blk.3.attn_q.weight")
  expect(ggufName("qwen2", "model.layers.12.self_attn.k_proj.bias")).toBe("blk.12.attn_k.bias")
  expect(ggufName("llama", "lm_head.weight")).toBe("output.weight")
  expect(ggufName("llama", "model.layers.0.post_attention_layernorm.weight")).toBe(
    "blk.0.ffn_norm.weight",
  )
  expect(ggufName("gemma3", "model.layers.0.post_attention_layernorm.weight")).toBe(
    "blk.0.post_attention_norm.weight",
  )
  expect(ggufName("gemma3", "model.layers.0.pre_feedforward_layernorm.weight")).toBe(
    "blk.0.ffn_norm.weight",
  )
  expect(ggufName("gemma3", "model.layers.0.post_feedforward_layernorm.weight")).toBe(
    "blk.0.post_ffw_norm.weight",
  )
  expect(ggufName("phi3", "model.layers.1.self_attn.qkv_proj.weight")).toBe("blk.1.attn_qkv.weight")
  expect(ggufName("phi3", "model.layers.1.mlp.gate_up_proj.weight")).toBe("blk.1.ffn_up.weight")
  expect(ggufName("qwen3moe", "model.layers.3.mlp.gate.weight")).toBe("blk.3.ffn_gate_inp.weight")
})

test("tensors that are no weight or bias of a module, and biases of experts", () => {
  const sinks = "model.layers.3.self_attn.sinks"
  expect(ggufName("gpt-oss", sinks)).toBe("blk.3.attn_sinks.weight")
  expect(hfName("gpt-oss", "blk.3.attn_sinks.weight")).toBe(sinks)
  const bias = "model.layers.3.mlp.experts.up_proj.bias"
  expect(ggufName("gpt-oss", bias)).toBe("blk.3.ffn_up_exps.bias")
  expect(hfName("gpt-oss", "blk.3.ffn_up_exps.bias")).toBe(bias)
  expect(ggufName("gpt-oss", "model.layers.3.mlp.router.bias")).toBe("blk.3.ffn_gate_inp.bias")
})

test("experts, stacked and one by one", () => {
  const stack = "model.layers.3.mlp.experts.gate_proj"
  expect(ggufName("qwen3moe", stack)).toBe("blk.3.ffn_gate_exps.weight")
  expect(ggufName("qwen3moe", `${stack}.weight`)).toBe("blk.3.ffn_gate_exps.weight")
  expect(ggufName("qwen3moe", "model.layers.3.mlp.experts.7.down_proj.weight")).toBe(
    "blk.3.ffn_down.7.weight",
  )
  expect(hfName("qwen3moe", "blk.3.ffn_gate_exps.weight")).toBe(stack)
  expect(hfName("qwen3moe", "blk.3.ffn_down.7.weight")).toBe(
    "model.layers.3.mlp.experts.7.down_proj.weight",
  )
  expect(hfName("qwen3moe", "blk.3.ffn_down.weight")).toBe("model.layers.3.mlp.down_proj.weight")
  const gguf = checkpointNames(openGguf(golden("gguf", "qwen3moe-mixed.gguf"), readWhole))
  expect(gguf.stored(stack)).toBe("blk.3.ffn_gate_exps.weight")
  expect(gguf.storedExpert(stack, 2)).toBe("blk.3.ffn_gate.2.weight")
  const hf = openSafetensors(golden("hf", "qwen3_moe"), readWhole)
  const name = checkpointNames(hf).storedExpert("model.layers.1.mlp.experts.up_proj", 5) ?? ""
  expect(hf.get(name)?.shape).toEqual([32, 48])
})

test("names that are not there", () => {
  for (const path of [
    "model.layers.3.self_attn.q_norm.weight",
    "model.layers.3.self_attn.q_proj",
    "model.layers.x.self_attn.q_proj.weight",
    "model.layers.3.mlp.experts.gate_proj",
    "model.constructor.weight",
    "constructor.weight",
    "",
  ]) {
    expect(ggufName("llama", path)).toBeUndefined()
  }
  for (const name of ["blk.0.attn_q", "blk.0.attn_z.weight", "rope_freqs.weight"]) {
    expect(hfName("llama", name)).toBeUndefined()
  }
  expect(hfName("qwen2", "blk.0.ffn_gate_exps.weight")).toBeUndefined()
  expect(hfName("llama", "blk.0.ffn_up.7.weight")).toBe(
    "model.layers.0.block_sparse_moe.experts.7.w3.weight",
  )
  expect(ggufName("toString", "lm_head.weight")).toBeUndefined()
  expect(hfName("other", "output.weight")).toBeUndefined()
})

test("an unknown architecture lists the known ones", () => {
  const gguf = openGguf("m", memoryFiles({ m: ggufBytes({ "general.architecture": "mamba" }) }))
  expect(() => checkpointNames(gguf)).toThrow(FormatError)
  expect(() => checkpointNames(gguf)).toThrow(
    `"mamba" is unknown; known are ${GGUF_ARCHITECTURES.join(", ")}`,
  )
})

test("language models inside multimodal checkpoints", () => {
  const entry = { dtype: "F32", shape: [0], data_offsets: [0, 0] }
  const names = (embed: string): ReturnType<typeof checkpointNames> => {
    const header = new TextEncoder().encode(JSON.stringify({ [embed]: entry }))
    const bytes = Buffer.concat([
      new Uint8Array(new BigUint64Array([BigInt(header.length)]).buffer),
      header,
    ])
    return checkpointNames(openSafetensors("m", memoryFiles({ m: bytes })))
  }
  const inner = names("language_model.model.embed_tokens.weight")
  expect(inner.stored("model.norm.weight")).toBe("language_model.model.norm.weight")
  expect(inner.stored("lm_head.weight")).toBe("language_model.lm_head.weight")
  const outer = names("model.language_model.embed_tokens.weight")
  expect(outer.stored("model.norm.weight")).toBe("model.language_model.norm.weight")
  expect(outer.stored("lm_head.weight")).toBe("lm_head.weight")
  expect(names("model.embed_tokens.weight").stored("model.norm.weight")).toBe("model.norm.weight")
})
