import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { FormatError } from "../../src/errors.ts"
import { configFromFolder } from "../../src/models/config-hf.ts"
import { Backend } from "../../src/native/backend.ts"
import { loadWeights } from "../../src/weights/load.ts"
import { openWeights } from "../../src/weights/open.ts"
import {
  openSafetensors,
  type TensorData,
  writeSafetensors,
} from "../../src/weights/safetensors.ts"
import { formats, QUANTISED, writePair } from "../fixtures/quantized-folder.ts"
import { relativeError } from "../ops/harness.ts"
import { buildModel, loadModel } from "./build.ts"
import { Sequences } from "./sequences.ts"
import { configOf, goldenTensors, type Json, randomTensors, WIDE } from "./tensors.ts"

const IDS = [5, 17, 99, 3, 250, 42, 8, 7, 61, 120, 33]
const MODELS = ["llama", "qwen3_moe", "deepseek_v3", "phi3", "internlm2"] as const

const folder = mkdtempSync(join(tmpdir(), "kt-quantized-"))
const exact = new Backend({ threads: 2, precision: "f32" })
const fast = new Backend({ threads: 2, precision: "fast" })
afterAll(() => {
  rmSync(folder, { recursive: true })
  for (const backend of [exact, fast]) backend[Symbol.dispose]()
})

async function logits(path: string, backend: Backend): Promise<[Float32Array, Set<string>]> {
  const weights = openWeights(path)
  if (weights.kind !== "safetensors") throw new Error("a folder of safetensors")
  const types = new Set(
    [...weights.names()].filter((n) => QUANTISED.test(n)).map((n) => weights.get(n)!.dtype.name),
  )
  const { model, loaded } = await loadModel(configFromFolder(path), weights, { backend })
  const sequences = new Sequences(model, backend, {
    count: 1,
    maxTokens: IDS.length,
    promptLength: IDS.length,
  })
  const [got] = sequences.step([{ sequence: 0, ids: IDS }])
  sequences[Symbol.dispose]()
  loaded[Symbol.dispose]()
  weights.close()
  return [got!, types]
}

/** Types that each form becomes, where blocks fit. */
const TYPES: Readonly<Record<string, string>> = {
  "FP8 in blocks": "F8_E4M3",
  "FP8 with a scale a row": "F8_E4M3",
  "FP8 with one scale": "F8_E4M3",
  "compressed-tensors int4": "I4_BF16",
  "compressed-tensors int4 with zero points": "I4_ZERO",
  "GPTQ, symmetric": "Q4_0",
  GPTQ: "I4_ZERO",
  "GPTQ in activation order": "F32",
  "GPTQ of 8 bits": "Q8_0",
  AWQ: "I4_ZERO",
}

for (const name of MODELS) {
  describe(name, () => {
    for (const format of formats(8, 16)) {
      test(`${format.name} of narrow matrices computes what its values do`, async () => {
        const at = join(folder, name, "narrow", format.name)
        const paths = writePair(at, configOf(name), goldenTensors(name), format)
        const [got, types] = await logits(paths.quantized, exact)
        expect([...types]).toEqual(["F32"])
        const [want] = await logits(paths.plain, exact)
        expect(relativeError(got, want)).toBeLessThan(1e-6)
      })
    }
    for (const format of formats(32, 128)) {
      test(`${format.name} computes what its values do`, async () => {
        const config = { ...configOf(name), ...WIDE[name] }
        const paths = writePair(
          join(folder, name, "wide", format.name),
          config,
          await randomTensors(config),
          format,
        )
        const [got, types] = await logits(paths.quantized, exact)
        expect([...types]).toEqual([TYPES[format.name]!])
        const [want] = await logits(paths.plain, exact)
        expect(relativeError(got, want)).toBeLessThan(1e-5)
        const [quick] = await logits(paths.quantized, fast)
        // with int8 activations a router may choose another expert of nearly the same score
        expect(relativeError(quick, want)).toBeLessThan(name === "llama" ? 0.03 : 0.2)
      })
    }
  })
}

test("how much is widened is said", async () => {
  const [fp8] = formats(8, 16)
  const { quantized } = writePair(
    join(folder, "note"),
    configOf("llama"),
    goldenTensors("llama"),
    fp8!,
  )
  const weights = openWeights(quantized)
  const { model } = await buildModel(configFromFolder(quantized))
  const notes: string[] = []
  loadWeights(model, weights, { backend: exact, onNote: (note) => notes.push(note) })[
    Symbol.dispose
  ]()
  expect(notes).toEqual([
    "21 quantised tensors are widened to F32, 0.0 GiB: no type of the kernels holds their scales",
  ])
  // what they become is what the memory plan counts
  expect(weights.totalBytes).toBe(
    [...weights.names()].reduce((sum, name) => sum + weights.get(name)!.byteLength, 0),
  )
  weights.close()
})

describe("quantised folders that are wrong", () => {
  type Change = (tensors: Record<string, TensorData>, config: Json) => void
  const Q = "model.layers.0.self_attn.q_proj"
  const cases: [format: string, says: string, change: Change][] = [
    ["FP8 in blocks", "without scales", (t) => delete t[`${Q}.weight_scale_inv`]],
    [
      "FP8 in blocks",
      "expected [4, 3] (blocks of 16 x 16), [64, 1] or [1]",
      (t) => (t[`${Q}.weight_scale_inv`] = { shape: [2, 3], data: new Float32Array(6) }),
    ],
    [
      "FP8 in blocks",
      `quantization_config.quant_method: "hqq"`,
      (_, config) => (config["quantization_config"] = { quant_method: "hqq" }),
    ],
    [
      "compressed-tensors int4",
      `needs a tensor "${Q}.weight_shape"`,
      (t) => delete t[`${Q}.weight_shape`],
    ],
    [
      "compressed-tensors int4",
      "expected I32 [64, 4]",
      (t) => (t[`${Q}.weight_shape`] = { shape: [2], data: Int32Array.of(64, 32) }),
    ],
    [
      "compressed-tensors int4",
      "expected a matrix's rows and columns",
      (t) => (t[`${Q}.weight_shape`] = { shape: [2], data: Int32Array.of(64, -1) }),
    ],
    ["GPTQ", `needs a tensor "${Q}.scales"`, (t) => delete t[`${Q}.scales`]],
    [
      "GPTQ",
      "quantization_config.group_size: 7, expected a divisor of the",
      (_, config) => Object.assign(config["quantization_config"] as Json, { group_size: 7 }),
    ],
    [
      "GPTQ",
      "holds group 9, expected 0 to 5",
      (t) => (t[`${Q}.g_idx`] = { shape: [48], data: new Int32Array(48).fill(9) }),
    ],
    [
      "GPTQ",
      "quantization_config.bits: 3",
      (_, config) => Object.assign(config["quantization_config"] as Json, { bits: 3 }),
    ],
    [
      "AWQ",
      `quantization_config.version: "gemv", expected "gemm"`,
      (_, config) => Object.assign(config["quantization_config"] as Json, { version: "gemv" }),
    ],
    [
      "AWQ",
      `quantization_config.quant_method: "none", expected "gptq" or "awq" for tensor`,
      (_, config) => delete config["quantization_config"],
    ],
  ]
  for (const [name, says, change] of cases) {
    test(`${name}: ${says}`, () => {
      const at = join(folder, "wrong", says.replaceAll(/\W+/g, "-"))
      const format = formats(8, 16).find((known) => known.name === name)!
      const { quantized } = writePair(at, configOf("llama"), goldenTensors("llama"), format)
      const file = join(quantized, "model.safetensors")
      const opened = openSafetensors(file)
      const tensors: Record<string, TensorData> = {}
      for (const tensor of opened.names()) {
        const { dtype, shape } = opened.get(tensor)!
        tensors[tensor] = { shape, dtype: dtype.name, data: opened.bytes(tensor).slice() }
      }
      opened.close()
      const config = JSON.parse(readFileSync(join(quantized, "config.json"), "utf8")) as Json
      change(tensors, config)
      writeSafetensors(file, tensors)
      writeFileSync(join(quantized, "config.json"), JSON.stringify(config))
      let message = ""
      try {
        openWeights(quantized).close()
      } catch (error) {
        expect(error).toBeInstanceOf(FormatError)
        message = (error as FormatError).message
      }
      expect(message).toContain(says)
      expect(message).toContain(quantized)
    })
  }
})
