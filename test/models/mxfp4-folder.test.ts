import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { convertFolder } from "../../src/convert/convert-folder.ts"
import { configFromFolder } from "../../src/models/config-hf.ts"
import { Backend } from "../../src/native/backend.ts"
import { dequantize } from "../../src/ops/index.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import { hfName } from "../../src/weights/names.ts"
import {
  openSafetensors,
  type TensorData,
  writeSafetensors,
} from "../../src/weights/safetensors.ts"
import type { WeightEntry } from "../../src/weights/source.ts"
import { relativeError } from "../ops/harness.ts"
import { loadModel } from "./build.ts"
import { type Golden, openGgufGolden } from "./goldens.ts"
import { Sequences } from "./sequences.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-mxfp4-"))
const backend = new Backend({ threads: 1, precision: "f32" })
afterAll(() => {
  rmSync(folder, { recursive: true })
  backend[Symbol.dispose]()
})

/** [experts, rows, n] of gate and of up as one stack whose rows alternate. */
function alternating<T extends Uint8Array | Float32Array>(
  gate: T,
  up: T,
  lines: number,
  make: (length: number) => T,
): T {
  const n = gate.length / lines
  const out = make(2 * gate.length)
  for (let line = 0; line < lines; line++) {
    out.set(gate.subarray(line * n, (line + 1) * n), 2 * line * n)
    out.set(up.subarray(line * n, (line + 1) * n), (2 * line + 1) * n)
  }
  return out
}

/** GGML's MXFP4 blocks as codes with neighbouring values in a byte, and scales. */
function published(blocks: Uint8Array): { codes: Uint8Array; scales: Uint8Array } {
  const count = blocks.length / 17
  const codes = new Uint8Array(count * 16)
  const scales = new Uint8Array(count)
  for (let b = 0; b < count; b++) {
    scales[b] = blocks[b * 17] as number
    for (let i = 0; i < 32; i++) {
      const byte = blocks[b * 17 + 1 + (i % 16)] as number
      const at = b * 16 + (i >> 1)
      codes[at] = (codes[at] as number) | (((byte >> (i < 16 ? 0 : 4)) & 15) << (4 * (i & 1)))
    }
  }
  return { codes, scales }
}

/** The reference GGUF as the folder that gpt-oss is published as: plain matrices in F32, experts in MXFP4. */
function writeFolder({ config, weights }: Golden): void {
  const tensors: Record<string, TensorData> = {}
  const stacks = new Map<string, Uint8Array>()
  const biases = new Map<string, Float32Array>()
  for (const name of weights.names()) {
    const { dtype, shape, address } = weights.get(name) as WeightEntry
    const path = hfName("gpt-oss", name) as string
    if (dtype.name === "MXFP4") stacks.set(path, weights.bytes(name))
    else {
      const data = dequantize(
        new Tensor(backend, dtype, shape, address, { owner: weights }),
      ).toFloat32Array()
      if (path.includes(".experts.")) biases.set(path, data)
      else tensors[path] = { shape, data }
    }
  }
  const { num_experts: E, hidden_size: D, moe_intermediate_size: I } = config
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const at = `model.layers.${layer}.mlp.experts`
    const part = (name: string): Uint8Array => stacks.get(`${at}.${name}`) as Uint8Array
    const bias = (name: string): Float32Array => biases.get(`${at}.${name}.bias`) as Float32Array
    const both = alternating(part("gate_proj"), part("up_proj"), E * I, (n) => new Uint8Array(n))
    const gateUp = published(both)
    const down = published(part("down_proj"))
    const gateUpShape = [E, 2 * I, D / 32]
    const downShape = [E, D, I / 32]
    tensors[`${at}.gate_up_proj_blocks`] = { shape: [...gateUpShape, 16], data: gateUp.codes }
    tensors[`${at}.gate_up_proj_scales`] = { shape: gateUpShape, data: gateUp.scales }
    tensors[`${at}.down_proj_blocks`] = { shape: [...downShape, 16], data: down.codes }
    tensors[`${at}.down_proj_scales`] = { shape: downShape, data: down.scales }
    const biasBoth = alternating(
      bias("gate_proj"),
      bias("up_proj"),
      E * I,
      (n) => new Float32Array(n),
    )
    tensors[`${at}.gate_up_proj_bias`] = { shape: [E, 2 * I], data: biasBoth }
    tensors[`${at}.down_proj_bias`] = { shape: [E, D], data: bias("down_proj") }
  }
  writeSafetensors(join(folder, "model.safetensors"), tensors)
  const { factor, theta, original_max_position_embeddings } = config.rope
  const json = {
    model_type: "gpt_oss",
    vocab_size: config.vocab_size,
    hidden_size: D,
    intermediate_size: I,
    num_hidden_layers: config.num_hidden_layers,
    num_attention_heads: config.num_attention_heads,
    num_key_value_heads: config.num_key_value_heads,
    head_dim: config.head_dim,
    max_position_embeddings: config.max_position_embeddings,
    num_local_experts: E,
    num_experts_per_tok: config.num_experts_per_tok,
    sliding_window: config.sliding_window,
    rope_theta: theta,
    rope_scaling: { rope_type: "yarn", factor, original_max_position_embeddings, truncate: false },
    quantization_config: { quant_method: "mxfp4", modules_to_not_convert: ["lm_head"] },
  }
  writeFileSync(join(folder, "config.json"), JSON.stringify(json))
}

test("a gpt-oss folder with MXFP4 experts computes what its GGUF does", async () => {
  const source = openGgufGolden("gpt-oss-mxfp4", "gpt-oss-mxfp4")
  writeFolder(source)
  const ids = new Int32Array(source.tensors.get("input_ids")?.bytes.buffer as ArrayBuffer)
  const want = source.tensors.get("logits")?.f32() as Float32Array
  const weights = openSafetensors(folder)
  const { model, loaded } = await loadModel(configFromFolder(folder), weights, { backend })
  const shape = { count: 1, maxTokens: ids.length, promptLength: ids.length }
  const sequences = new Sequences(model, backend, shape)
  const [got] = sequences.step([{ sequence: 0, ids }])
  expect(relativeError(got as Float32Array, want)).toBeLessThan(1e-4)
  sequences[Symbol.dispose]()
  loaded[Symbol.dispose]()
  for (const open of [weights, source.weights]) open.close()
})

test("converted back to GGUF, the experts' blocks are the same bytes", async () => {
  const { weights: source } = openGgufGolden("gpt-oss-mxfp4", "gpt-oss-mxfp4")
  const path = join(folder, "back.gguf")
  await convertFolder(folder, path, backend, { type: "f32" })
  const back = openGguf(path)
  let stacks = 0
  for (const name of source.names()) {
    if (source.get(name)?.dtype.name !== "MXFP4") continue
    stacks++
    expect(back.get(name)?.dtype.name).toBe("MXFP4")
    expect(back.get(name)?.shape).toEqual(source.get(name)!.shape)
    expect(back.bytes(name)).toEqual(source.bytes(name))
  }
  expect(stacks).toBe(6)
  for (const open of [back, source]) open.close()
})
