import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { engineConfig } from "../../src/config.ts"
import { convertFolder } from "../../src/convert/convert-folder.ts"
import { Engine } from "../../src/engine/engine.ts"
import { configFromGguf } from "../../src/models/config-gguf.ts"
import { configFromFolder, configFromJson } from "../../src/models/config-hf.ts"
import { isMoeLayer, type ModelConfig } from "../../src/models/config.ts"
import { Backend } from "../../src/native/backend.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { openSafetensors, type SafetensorsFile } from "../../src/weights/safetensors.ts"
import { kt } from "../cli/kt.ts"
import { withByteTokenizer } from "../convert/byte-tokenizer.ts"
import { llamaCpp, missingProgram } from "../convert/llama-cpp.ts"
import { generateAll } from "../engine/golden-models.ts"
import { relativeError } from "../ops/harness.ts"
import { ernieLogits } from "../reference/ernie.ts"
import { loadModel } from "./build.ts"
import { ERNIE, ernieWeights, writeErnie } from "./ernie.ts"
import { Sequences } from "./sequences.ts"

const f32 = new Backend({ threads: 1, precision: "f32" })
const fast = new Backend({ threads: 1, precision: "fast" })
const folder = mkdtempSync(join(tmpdir(), "kt-ernie-"))
const weights = ernieWeights()
const prompt = Int32Array.from({ length: 24 }, (_, i) => (i * 89 + 7) % ERNIE.vocab_size)
const reference = ernieLogits(ERNIE, weights, prompt)
const wanted = Float32Array.from(reference.flat())

beforeAll(() => writeErnie(folder, weights))
afterAll(() => {
  f32[Symbol.dispose]()
  fast[Symbol.dispose]()
  rmSync(folder, { recursive: true })
})

async function logitsOf(
  config: ModelConfig,
  source: GgufFile | SafetensorsFile,
  backend: Backend,
  options: { readonly fuse?: boolean; readonly chunk?: number } = {},
): Promise<Float32Array> {
  const { fuse = true, chunk = prompt.length } = options
  const { model, loaded } = await loadModel(config, source, { backend, fuse })
  const limits = { count: 1, maxTokens: prompt.length, promptLength: prompt.length }
  using sequences = new Sequences(model, backend, limits)
  const rows: number[] = []
  for (let at = 0; at < prompt.length; at += chunk) {
    const [part] = sequences.step([{ sequence: 0, ids: prompt.subarray(at, at + chunk) }])
    rows.push(...(part as Float32Array))
  }
  loaded[Symbol.dispose]()
  source.close()
  return Float32Array.from(rows)
}

describe("ernie4_5_moe", () => {
  const fromFolder = (
    backend: Backend,
    options: { readonly fuse?: boolean; readonly chunk?: number } = {},
  ): Promise<Float32Array> =>
    logitsOf(configFromFolder(folder), openSafetensors(folder), backend, options)

  test("logits are the reference's, plain and fused, at once and in chunks", async () => {
    for (const fuse of [false, true])
      for (const chunk of [prompt.length, 7, 1])
        expect(relativeError(await fromFolder(f32, { fuse, chunk }), wanted)).toBeLessThan(1e-5)
  })

  test("a choice without the bias would be another", async () => {
    const unbiased = new Map(weights)
    for (const [name, { shape, data }] of weights)
      if (name.includes("moe_statics")) unbiased.set(name, { shape, data: data.map(() => 0) })
    const other = Float32Array.from(ernieLogits(ERNIE, unbiased, prompt).flat())
    expect(relativeError(other, wanted)).toBeGreaterThan(0.02)
  })

  test("fast: within the bounds for 16-bit activations", async () => {
    const got = await fromFolder(fast)
    const errors = reference.map((row, t) =>
      relativeError(got.subarray(t * row.length, (t + 1) * row.length), row),
    )
    expect(errors.toSorted((a, b) => a - b)[errors.length >> 1]).toBeLessThan(3e-2)
  })

  test("the engine's greedy ids are the reference's", async () => {
    const greedy: number[] = []
    for (let step = 0; step < 4; step++) {
      const row = ernieLogits(ERNIE, weights, [...prompt, ...greedy]).at(-1) as number[]
      greedy.push(row.indexOf(Math.max(...row)))
    }
    const options = { model: folder, threads: 1, pageSize: 8, precision: "f32" as const }
    using engine = await Engine.create(engineConfig({ ...options, maxBatchTokens: 16 }))
    for (const _ of ["cold", "warm"])
      expect(generateAll(engine, [prompt, prompt.subarray(3)], { maxTokens: 4 })[0]).toEqual(greedy)
  })

  test("a converted file computes the same", async () => {
    const path = join(folder, "model.gguf")
    await convertFolder(folder, path, f32, { type: "f32" })
    const gguf = openGguf(path)
    const config = configFromGguf(gguf)
    expect(config).toMatchObject({
      model_type: "ernie4_5_moe",
      topk_method: "noaux_tc",
      n_shared_experts: 2,
    })
    expect(relativeError(await logitsOf(config, gguf, f32), wanted)).toBeLessThan(1e-5)
  })

  test("which layers have experts", () => {
    const layers = (json: object): boolean[] => {
      const config = configFromJson("config.json", { ...ERNIE, num_hidden_layers: 6, ...json })
      return config.layer_types.map((_, i) => isMoeLayer(config, i))
    }
    expect(layers({})).toEqual([false, true, true, true, true, true])
    expect(layers({ moe_layer_start_index: 3, moe_layer_end_index: 4 })).toEqual(
      [0, 0, 0, 1, 1, 0].map(Boolean),
    )
    expect(layers({ moe_layer_interval: 2 })).toEqual([0, 1, 0, 1, 0, 1].map(Boolean))
    expect(() => layers({ use_bias: true })).toThrow("use_bias: true")
  })

  const reason = missingProgram("llama-perplexity")
  test.skipIf(reason !== undefined)(`as llama.cpp computes it [${reason ?? "found"}]`, async () => {
    const source = join(folder, "bytes")
    const model = join(folder, "small")
    writeErnie(model, weights)
    withByteTokenizer(model, source)
    const path = join(folder, "bytes.gguf")
    await convertFolder(source, path, f32, { type: "f32" })
    const text = join(folder, "text.txt")
    writeFileSync(text, "Some words of plain English, which are bytes to this model. ".repeat(4))
    const { status, text: log } = llamaCpp("llama-perplexity", [
      ...["-m", path, "-f", text, "-c", "32", "-b", "32", "-t", "1"],
      ...["-ctk", "f32", "-ctv", "f32", "-fa", "off"],
    ])
    expect(status === 0 ? "" : log).toBe("")
    const [, windows = "0", theirs] = [...log.matchAll(/\[(\d+)\]([\d.]+),/g)].at(-1) ?? []
    const args = ["--file", text, "--ctx", "32", "--windows", windows, "--precision", "f32"]
    const { out } = await kt(["perplexity", path, ...args, "--json"])
    const { ppl } = JSON.parse(out) as { ppl: number }
    expect(Math.abs(ppl / Number(theirs) - 1)).toBeLessThan(1e-4)
  })
})
