import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { convertFolder } from "../../src/convert/convert-folder.ts"
import { FormatError } from "../../src/errors.ts"
import { configFromGguf } from "../../src/models/config-gguf.ts"
import { configFromFolder } from "../../src/models/config-hf.ts"
import type { ModelConfig } from "../../src/models/config.ts"
import { Backend } from "../../src/native/backend.ts"
import { Linear } from "../../src/nn/layers.ts"
import { namedModules } from "../../src/nn/module.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import {
  openSafetensors,
  type SafetensorsFile,
  type TensorData,
  writeSafetensors,
} from "../../src/weights/safetensors.ts"
import type { Checkpoint, WeightEntry } from "../../src/weights/source.ts"
import { relativeError } from "../ops/harness.ts"
import { golden } from "../setup.ts"
import { loadModel } from "./build.ts"
import { openHfGolden } from "./goldens.ts"
import { Sequences } from "./sequences.ts"

const f32 = new Backend({ threads: 1, precision: "f32" })
const folder = mkdtempSync(join(tmpdir(), "kt-internlm2-"))
afterAll(() => {
  f32[Symbol.dispose]()
  rmSync(folder, { recursive: true })
})

const { config, weights } = openHfGolden("internlm2")
const { head_dim: d, num_attention_heads: heads, num_key_value_heads: groups } = config
const perGroup = heads / groups

/** Row of wqkv that is row r of q, k or v, one row at a time from the layout's definition. */
const rowOf = {
  q_proj: (r: number): number => {
    const head = Math.floor(r / d)
    const group = Math.floor(head / perGroup)
    return (group * (perGroup + 2) + (head % perGroup)) * d + (r % d)
  },
  k_proj: (r: number): number => (Math.floor(r / d) * (perGroup + 2) + perGroup) * d + (r % d),
  v_proj: (r: number): number => (Math.floor(r / d) * (perGroup + 2) + perGroup + 1) * d + (r % d),
}
const rowsOf = { q_proj: heads * d, k_proj: groups * d, v_proj: groups * d }
const PARTS = ["q_proj", "k_proj", "v_proj"] as const

function tensorsOf(source: Checkpoint): Map<string, TensorData> {
  const out = new Map<string, TensorData>()
  for (const name of source.names()) {
    const { shape, dtype } = source.get(name) as WeightEntry
    out.set(name, { shape, dtype: dtype.name, data: source.bytes(name) })
  }
  return out
}

const LLAMA: readonly (readonly [RegExp, string])[] = [
  [/^model\.tok_embeddings\./, "model.embed_tokens."],
  [/^output\./, "lm_head."],
  [/\.attention_norm\./, ".input_layernorm."],
  [/\.ffn_norm\./, ".post_attention_layernorm."],
  [/\.attention\.wo\./, ".self_attn.o_proj."],
  [/\.feed_forward\.w1\./, ".mlp.gate_proj."],
  [/\.feed_forward\.w3\./, ".mlp.up_proj."],
  [/\.feed_forward\.w2\./, ".mlp.down_proj."],
]

/** The same checkpoint with the tensors that Llama has. */
function llamaShaped(tensors: Map<string, TensorData>): Map<string, TensorData> {
  const out = new Map<string, TensorData>()
  for (const [name, tensor] of tensors) {
    const fused = /^(.+)\.attention\.wqkv\.(weight|bias)$/.exec(name)
    if (fused === null) {
      const rename = LLAMA.find(([pattern]) => pattern.test(name))
      out.set(rename === undefined ? name : name.replace(...rename), tensor)
      continue
    }
    const data = tensor.data as Uint8Array
    const rowBytes = data.byteLength / (tensor.shape[0] as number)
    for (const part of PARTS) {
      const rows = Array.from({ length: rowsOf[part] }, (_, r) => {
        const at = rowOf[part](r) * rowBytes
        return [...data.subarray(at, at + rowBytes)]
      })
      const shape = tensor.shape.with(0, rows.length)
      const whole = `${fused[1]}.self_attn.${part}.${fused[2]}`
      out.set(whole, { ...tensor, shape, data: Uint8Array.from(rows.flat()) })
    }
  }
  return out
}

/** The checkpoint with small biases. */
function biasedTensors(): Map<string, TensorData> {
  const own = tensorsOf(weights)
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const bias = (n: number): TensorData => {
      const values = Float32Array.from({ length: n }, (_, i) => Math.sin(i + layer / 2))
      return { shape: [n], dtype: "F32", data: new Uint8Array(values.buffer) }
    }
    own.set(`model.layers.${layer}.attention.wqkv.bias`, bias((perGroup + 2) * groups * d))
    own.set(`model.layers.${layer}.attention.wo.bias`, bias(config.hidden_size))
  }
  return own
}

async function logitsOf(
  own: ModelConfig,
  source: GgufFile | SafetensorsFile,
): Promise<Float32Array> {
  const { model, loaded } = await loadModel(own, source, { backend: f32 })
  const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 37) % own.vocab_size)
  using sequences = new Sequences(model, f32, { count: 1, maxTokens: 24, promptLength: 24 })
  const [logits] = sequences.step([{ sequence: 0, ids }])
  loaded[Symbol.dispose]()
  return logits as Float32Array
}

async function linears(
  own: ModelConfig,
  tensors: Map<string, TensorData>,
): Promise<Map<string, Buffer>> {
  const path = join(folder, "model.safetensors")
  writeSafetensors(path, Object.fromEntries(tensors))
  const source = openSafetensors(path)
  const { model, loaded } = await loadModel(own, source, { backend: f32 })
  const out = new Map<string, Buffer>()
  for (const [name, module] of namedModules(model)) {
    if (!(module instanceof Linear)) continue
    out.set(`${name}.weight`, Buffer.from(module.weight.bytes()))
    if (module.bias !== null) out.set(`${name}.bias`, Buffer.from(module.bias.bytes()))
  }
  loaded[Symbol.dispose]()
  source.close()
  return out
}

describe("internlm2", () => {
  test("wqkv and the projections of Llama's shape load alike", async () => {
    const own = tensorsOf(weights)
    expect(await linears(config, own)).toEqual(await linears(config, llamaShaped(own)))
  })

  test("biases too", async () => {
    const withBias: ModelConfig = { ...config, attention_bias: true, attention_output_bias: true }
    const own = biasedTensors()
    const fused = await linears(withBias, own)
    expect(fused).toEqual(await linears(withBias, llamaShaped(own)))
    expect(fused.has("model.layers.1.self_attn.k_proj.bias")).toBe(true)
  })

  test("a converted file has the parts, in GGUF's order of rows", async () => {
    const json = JSON.parse(readFileSync(golden("hf", "internlm2", "config.json"), "utf8"))
    writeFileSync(join(folder, "config.json"), JSON.stringify({ ...json, bias: true }))
    writeSafetensors(join(folder, "model.safetensors"), Object.fromEntries(biasedTensors()))
    const path = join(folder, "converted.gguf")
    await convertFolder(folder, path, f32, { type: "f32" })
    const source = openSafetensors(folder)
    const gguf = openGguf(path)
    const wanted = await logitsOf(configFromFolder(folder), source)
    expect(relativeError(await logitsOf(configFromGguf(gguf), gguf), wanted)).toBeLessThan(1e-5)
    source.close()
    gguf.close()
  })

  test("a wqkv of another shape is named", async () => {
    const wider = { ...config, num_attention_heads: 2 * heads }
    const failing = linears(wider, tensorsOf(weights))
    expect(failing).rejects.toBeInstanceOf(FormatError)
    expect(failing).rejects.toThrow(
      `model.layers.0.attention.wqkv.weight has shape [${(perGroup + 2) * groups * d}, ${config.hidden_size}], expected [${(2 * perGroup + 2) * groups * d}, ${config.hidden_size}]`,
    )
  })
})
