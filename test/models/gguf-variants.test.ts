import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { configFromGguf } from "../../src/models/config-gguf.ts"
import { Backend } from "../../src/native/backend.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { fieldsOf, type GgufField, GgufWriter } from "../../src/weights/gguf-writer.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import type { WeightEntry } from "../../src/weights/source.ts"
import { relativeError } from "../ops/harness.ts"
import { loadModel } from "./build.ts"
import { openGgufGolden } from "./goldens.ts"
import { Sequences } from "./sequences.ts"

const f32 = new Backend({ threads: 1, precision: "f32" })
const fast = new Backend({ threads: 1, precision: "fast" })
const folder = mkdtempSync(join(tmpdir(), "kt-variants-"))
afterAll(() => {
  f32[Symbol.dispose]()
  fast[Symbol.dispose]()
  rmSync(folder, { recursive: true })
})

/** A tensor of a rewritten file. */
type Part = Pick<WeightEntry, "name" | "dtype" | "shape"> & { readonly bytes: Uint8Array }

/** A golden as other converters write it: its tensors and keys changed. */
function rewritten(
  name: string,
  change: (part: Part) => Part[],
  more: { readonly fields?: Record<string, GgufField>; readonly parts?: readonly Part[] } = {},
): string {
  const { weights } = openGgufGolden(name, name)
  if (weights.kind !== "gguf") throw new Error("no GGUF")
  const fields = fieldsOf(weights.metadata, weights.metadataTypes)
  for (const [key, field] of Object.entries(more.fields ?? {})) fields.set(key, field)
  const parts = [...weights.names()].flatMap((tensor) => {
    const { dtype, shape } = weights.get(tensor) as WeightEntry
    return change({ name: tensor, dtype, shape, bytes: weights.bytes(tensor) })
  })
  const all = [...parts, ...(more.parts ?? [])]
  const path = join(folder, `${name}.gguf`)
  using writer = new GgufWriter(path, fields, all)
  for (const part of all) writer.write(part.name, part.bytes)
  writer.finish()
  weights.close()
  return path
}

/** Logits of the golden's prompt, and the golden's own. */
async function logitsOf(
  path: string,
  name: string,
  backend: Backend,
): Promise<{ got: Float32Array; wanted: Float32Array }> {
  const { tensors, weights: original } = openGgufGolden(name, name)
  original.close()
  const ids = new Int32Array((tensors.get("input_ids")?.bytes as Uint8Array<ArrayBuffer>).buffer)
  const gguf = openGguf(path)
  const { model, loaded } = await loadModel(configFromGguf(gguf), gguf, { backend })
  const limits = { count: 1, maxTokens: ids.length, promptLength: ids.length }
  using sequences = new Sequences(model, backend, limits)
  const [got] = sequences.step([{ sequence: 0, ids }])
  loaded[Symbol.dispose]()
  gguf.close()
  return { got: got as Float32Array, wanted: tensors.get("logits")?.f32() as Float32Array }
}

describe("files of other converters", () => {
  test("a Mixtral of early 2024: each expert a tensor, no width of experts", async () => {
    const name = "mixtral-q2_k"
    const path = rewritten(name, (part) => {
      const stack = /^(.+)_exps\.weight$/.exec(part.name)
      if (stack === null) return [part]
      const [experts = 0, ...shape] = part.shape
      const size = part.bytes.byteLength / experts
      return Array.from({ length: experts }, (_, i) => ({
        ...part,
        name: `${stack[1]}.${i}.weight`,
        shape,
        bytes: part.bytes.subarray(i * size, (i + 1) * size),
      }))
    })
    const { got, wanted } = await logitsOf(path, name, f32)
    expect(relativeError(got, wanted)).toBeLessThan(1e-4)
    const stacked = await logitsOf(path, name, fast)
    const whole = openGgufGolden(name, name)
    whole.weights.close()
    const plain = await logitsOf(whole.weights.path, name, fast)
    expect(relativeError(stacked.got, plain.got)).toBeLessThan(1e-6)
  })

  test("a GLM-4.5 with its layer for predicting a further token", async () => {
    const name = "glm4moe-q4_0"
    const vector = (tensor: string): Part => {
      const bytes = new Uint8Array(new Float32Array(64).fill(9).buffer)
      return { name: tensor, dtype: F32, shape: [64], bytes }
    }
    const path = rewritten(name, (part) => [part], {
      fields: {
        "glm4moe.block_count": { type: "u32", value: 3 },
        "glm4moe.nextn_predict_layers": { type: "u32", value: 1 },
      },
      parts: [
        vector("blk.2.attn_norm.weight"),
        vector("blk.2.nextn.enorm.weight"),
        vector("blk.2.nextn.hnorm.weight"),
      ],
    })
    const { got, wanted } = await logitsOf(path, name, f32)
    expect(relativeError(got, wanted)).toBeLessThan(1e-4)
  })

  test("a Qwen2-MoE whose shared gate is a matrix of one row", async () => {
    const name = "qwen2moe-q5_1"
    const path = rewritten(name, (part) =>
      part.name.endsWith("ffn_gate_inp_shexp.weight")
        ? [{ ...part, shape: [1, ...part.shape] }]
        : [part],
    )
    const { got, wanted } = await logitsOf(path, name, f32)
    expect(relativeError(got, wanted)).toBeLessThan(1e-4)
  })
})
