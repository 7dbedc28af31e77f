import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { configFromGguf } from "../../src/models/config-gguf.ts"
import { Backend } from "../../src/native/backend.ts"
import { dequantize } from "../../src/ops/index.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import {
  fieldsOf,
  type GgufField,
  type GgufTensorPlan,
  GgufWriter,
} from "../../src/weights/gguf-writer.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import type { WeightEntry } from "../../src/weights/source.ts"
import { relativeError } from "../ops/harness.ts"
import { loadModel } from "./build.ts"
import { openGgufGolden } from "./goldens.ts"
import { Sequences } from "./sequences.ts"

const NAME = "deepseek2-v3-q4_1"
const HEADS = 2
const [NOPE, VALUE, RANK] = [32, 32, 64]

const folder = mkdtempSync(join(tmpdir(), "kt-joint-"))
const backend = new Backend({ threads: 1, precision: "f32" })
afterAll(() => {
  backend[Symbol.dispose]()
  rmSync(folder, { recursive: true, force: true })
})

function values(file: GgufFile, name: string): Float32Array {
  const { dtype, shape, address } = file.get(name) as WeightEntry
  const weight = new Tensor(backend, dtype, shape, address, { owner: file })
  const out = dequantize(weight).toFloat32Array()
  backend.resetStep()
  return out
}

/** kv_b of a layer as files of before the split hold it: per head the keys' rows, then the values'. */
function joint(file: GgufFile, layer: number): Float32Array {
  const keys = values(file, `blk.${layer}.attn_k_b.weight`)
  const own = values(file, `blk.${layer}.attn_v_b.weight`)
  const out = new Float32Array(HEADS * (NOPE + VALUE) * RANK)
  for (let h = 0; h < HEADS; h++) {
    const start = h * (NOPE + VALUE) * RANK
    for (let n = 0; n < NOPE; n++)
      for (let r = 0; r < RANK; r++)
        out[start + n * RANK + r] = keys[(h * RANK + r) * NOPE + n] as number
    out.set(own.subarray(h * VALUE * RANK, (h + 1) * VALUE * RANK), start + NOPE * RANK)
  }
  return out
}

/** The reference file with joint kv_b, under the keys of its time, and a layer that predicts a further token. */
function rewritten(file: GgufFile): string {
  const path = join(folder, "joint.gguf")
  const fields = fieldsOf(file.metadata, file.metadataTypes)
  const set = (key: string, value: number): void =>
    void fields.set(`deepseek2.${key}`, { type: "u32", value })
  fields.delete("deepseek2.attention.key_length_mla")
  fields.delete("deepseek2.attention.value_length_mla")
  set("attention.head_count_kv", HEADS)
  set("attention.key_length", 48)
  set("attention.value_length", VALUE)
  set("block_count", 3)
  set("nextn_predict_layers", 1)
  const plans: (GgufTensorPlan & { bytes: Uint8Array })[] = []
  for (const name of file.names()) {
    const { dtype, shape } = file.get(name) as WeightEntry
    const layer = /^blk\.(\d+)\.attn_k_b/.exec(name)?.[1]
    if (name.includes("attn_v_b")) continue
    if (layer === undefined) plans.push({ name, dtype, shape, bytes: file.bytes(name) })
    else {
      const bytes = new Uint8Array(joint(file, Number(layer)).buffer)
      const rows = HEADS * (NOPE + VALUE)
      plans.push({ name: `blk.${layer}.attn_kv_b.weight`, dtype: F32, shape: [rows, RANK], bytes })
    }
  }
  const further = new Uint8Array(64 * 128 * 4)
  plans.push({ name: "blk.2.nextn.eh_proj.weight", dtype: F32, shape: [64, 128], bytes: further })
  using writer = new GgufWriter(path, fields, plans)
  for (const { name, bytes } of plans) writer.write(name, bytes)
  writer.finish()
  return path
}

test("a GGUF with joint kv_b and a further layer gives the reference's logits", async () => {
  const source = openGgufGolden(NAME, NAME)
  const weights = openGguf(rewritten(source.weights as GgufFile))
  const config = configFromGguf(weights)
  expect(config.mla?.split_kv_b).toBe(false)
  expect({ ...config, mla: undefined }).toEqual({ ...source.config, mla: undefined })
  const { model, loaded } = await loadModel(config, weights, { backend })
  const bytes = source.tensors.get("input_ids")?.bytes as Uint8Array
  const ids = new Int32Array(bytes.slice().buffer)
  const options = { count: 1, maxTokens: ids.length, promptLength: ids.length }
  using sequences = new Sequences(model, backend, options)
  const [logits] = sequences.step([{ sequence: 0, ids }])
  const want = source.tensors.get("logits")?.f32() as Float32Array
  expect(relativeError(logits as Float32Array, want)).toBeLessThan(1e-4)
  loaded[Symbol.dispose]()
  weights.close()
  source.weights.close()
})
