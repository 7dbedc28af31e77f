import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { configFromFolder } from "../../src/models/config-hf.ts"
import { Backend } from "../../src/native/backend.ts"
import {
  openSafetensors,
  type TensorData,
  writeSafetensors,
} from "../../src/weights/safetensors.ts"
import type { WeightEntry } from "../../src/weights/source.ts"
import { relativeError } from "../ops/harness.ts"
import { golden } from "../setup.ts"
import { loadModel } from "./build.ts"
import { Sequences } from "./sequences.ts"

const root = mkdtempSync(join(tmpdir(), "kt-smallthinker-"))
const backend = new Backend({ threads: 1, precision: "f32" })
afterAll(() => {
  rmSync(root, { recursive: true })
  backend[Symbol.dispose]()
})

const reference = golden("hf", "smallthinker_sigmoid")
const config = JSON.parse(readFileSync(join(reference, "config.json"), "utf8"))
const IDS = Int32Array.from({ length: 20 }, (_, i) => (i * 37 + 11) % 256)

/** Logits of the reference's weights under other names, some of them all one value, with other keys of the config. */
async function logits(
  changes: Readonly<Record<string, unknown>>,
  rename: (name: string) => string | undefined,
  constant: (name: string) => number | undefined = () => undefined,
): Promise<Float32Array> {
  const folder = mkdtempSync(join(root, "m-"))
  const source = openSafetensors(reference)
  const tensors: Record<string, TensorData> = {}
  for (const name of source.names()) {
    const { shape, dtype } = source.get(name) as WeightEntry
    const to = rename(name)
    const isRouter = name.endsWith("primary_router.weight")
    const rows = isRouter ? (changes.moe_num_primary_experts as number) : (shape[0] as number)
    const bytes = source.bytes(name)
    const data = bytes.slice(0, (bytes.length / (shape[0] as number)) * rows)
    const value = constant(name)
    const count = shape.reduce((product, size) => product * size, 1)
    if (value !== undefined) tensors[name] = { shape, data: new Float32Array(count).fill(value) }
    else if (to !== undefined)
      tensors[to] = { shape: [rows, ...shape.slice(1)], dtype: dtype.name, data }
  }
  writeSafetensors(join(folder, "model.safetensors"), tensors)
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, ...changes }))
  source.close()
  const weights = openSafetensors(folder)
  const { model, loaded } = await loadModel(configFromFolder(folder), weights, { backend })
  const shape = { count: 1, maxTokens: IDS.length, promptLength: IDS.length }
  const sequences = new Sequences(model, backend, shape)
  const [out] = sequences.step([{ sequence: 0, ids: IDS }])
  const kept = (out as Float32Array).slice()
  sequences[Symbol.dispose]()
  loaded[Symbol.dispose]()
  weights.close()
  return kept
}

const isOther = (name: string, experts: number): boolean => {
  const expert = /\.experts\.(\d+)\./.exec(name)
  return expert !== null && Number(expert[1]) >= experts
}

test("a layer without experts computes what one expert that is always chosen does", async () => {
  const one = {
    moe_num_primary_experts: 1,
    moe_num_active_primary_experts: 1,
    dense_ffn_hidden_size: config.moe_ffn_hidden_size,
  }
  const sparse = await logits(one, (name) => (isOther(name, 1) ? undefined : name))
  const dense = await logits({ ...one, moe_layer_layout: [1, 0, 1] }, (name) => {
    if (isOther(name, 1)) return undefined
    if (!name.includes("layers.1.block_sparse_moe")) return name
    return name.includes("router") ? undefined : name.replace(".experts.0.", ".")
  })
  expect(relativeError(dense, sparse)).toBeLessThan(1e-6)
})

test("a router that is not early sees what the experts see", async () => {
  const all = { moe_num_primary_experts: config.moe_num_primary_experts }
  const late = { moe_enable_early_router: false }
  const same = (name: string): string => name
  const early = await logits(all, same)
  expect(relativeError(await logits({ ...all, ...late }, same), early)).toBeGreaterThan(1e-2)
  // without attention and norm weights it sees the same times a positive number, which chooses the same single expert
  const one = { ...all, moe_num_active_primary_experts: 1 }
  const plain = (name: string): number | undefined =>
    name.endsWith("o_proj.weight")
      ? 0
      : name.endsWith("post_attention_layernorm.weight")
        ? 1
        : undefined
  const chosen = await logits(one, same, plain)
  expect(relativeError(await logits({ ...one, ...late }, same, plain), chosen)).toBeLessThan(1e-6)
})
