import { afterAll, describe, expect, test } from "bun:test"
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { engineConfig } from "../../src/config.ts"
import { convertFolder } from "../../src/convert/convert-folder.ts"
import { FloatRows } from "../../src/convert/float-rows.ts"
import { mergeHybrid } from "../../src/convert/merge.ts"
import { Engine } from "../../src/engine/engine.ts"
import { configFromGguf } from "../../src/models/config-gguf.ts"
import { configFromFolder } from "../../src/models/config-hf.ts"
import { Backend, deviceProblem } from "../../src/native/backend.ts"
import { ggufName } from "../../src/weights/names.ts"
import { openStored, openWeights } from "../../src/weights/open.ts"
import {
  openSafetensors,
  type SafetensorsFile,
  type TensorData,
  writeSafetensors,
} from "../../src/weights/safetensors.ts"
import { kt, temporaryFolder } from "../cli/kt.ts"
import { generateAll } from "../engine/golden-models.ts"
import { formats, writePair } from "../fixtures/quantized-folder.ts"
import { loadModel } from "../models/build.ts"
import { Sequences } from "../models/sequences.ts"
import { configOf, type Json, randomTensors, WIDE } from "../models/tensors.ts"
import { relativeError } from "../ops/harness.ts"
import { ROOT } from "../setup.ts"

const folder = temporaryFolder()
const before = process.env["KT_LOGICAL_DEVICES"]
process.env["KT_LOGICAL_DEVICES"] = "2"
const at = (name: string): string => join(folder.path, name)
const backend = new Backend({ threads: 2, precision: "f32" })
afterAll(() => {
  folder[Symbol.dispose]()
  backend[Symbol.dispose]()
  if (before === undefined) delete process.env["KT_LOGICAL_DEVICES"]
  else process.env["KT_LOGICAL_DEVICES"] = before
})

async function logits(path: string): Promise<Float32Array> {
  const ids = [5, 17, 99, 3, 250, 42, 8, 7, 61]
  const weights = openWeights(path)
  const config = weights.kind === "gguf" ? configFromGguf(weights) : configFromFolder(path)
  const { model, loaded } = await loadModel(config, weights, { backend })
  const shape = { count: 1, maxTokens: ids.length, promptLength: ids.length }
  const sequences = new Sequences(model, backend, shape)
  const [got] = sequences.step([{ sequence: 0, ids }])
  sequences[Symbol.dispose]()
  loaded[Symbol.dispose]()
  weights.close()
  return got!
}

/** The GGUF's experts one by one, in F32, by their Hugging Face names. */
function expertsOf(path: string, names: Iterable<string>): Map<string, Float32Array> {
  const gguf = openStored(path)
  if (gguf.kind !== "gguf") throw new Error("a GGUF")
  const out = new Map<string, Float32Array>()
  const rows = new FloatRows(backend)
  for (const name of names) {
    const [, head, expert, tail] = /^(.+\.experts)\.(\d+)\.(.+)$/.exec(name) ?? []
    if (head === undefined) continue
    const entry = gguf.get(ggufName(gguf.architecture, `${head}.${tail}`)!)!
    const [, high, wide] = entry.shape as [number, number, number]
    const values = new Float32Array(high * wide)
    let done = 0
    const range = { first: Number(expert) * high, count: high }
    rows.forEach(
      entry,
      (piece) => {
        values.set(piece.toFloat32Array(), done)
        done += piece.numel
      },
      range,
    )
    out.set(name, values)
  }
  rows[Symbol.dispose]()
  gguf.close()
  return out
}

interface Setting {
  readonly quantized: string
  readonly gguf: string
  readonly mixed: string
}

/** An FP8 folder, a GGUF of the same model, and a folder of the values that their hybrid stands for. */
async function setting(name: string, type: string): Promise<Setting> {
  const config: Json = { ...configOf(name), ...WIDE[name] }
  const model = await randomTensors(config)
  const [fp8] = formats(32, 128)
  const { quantized, plain } = writePair(at(`${name}-${type}`), config, model, fp8!)
  const source: Record<string, TensorData> = Object.fromEntries(model)
  const float = at(`${name}-${type}/float`)
  writePair(float, config, model, {
    ...fp8!,
    quantize: (data, rows, columns) => ({
      tensors: { weight: { shape: [rows, columns], data } },
      values: data,
    }),
  })
  const gguf = at(`${name}-${type}/model.gguf`)
  await convertFolder(join(float, "plain"), gguf, backend, { type })
  const experts = expertsOf(gguf, Object.keys(source))
  const read = openSafetensors(plain)
  const mixed: Record<string, TensorData> = {}
  for (const tensor of read.names()) {
    const { shape } = read.get(tensor)!
    const values = new Float32Array(read.bytes(tensor).slice().buffer)
    mixed[tensor] = { shape, data: experts.get(tensor) ?? values }
  }
  read.close()
  const file = join(plain, "model.safetensors")
  rmSync(file)
  writeSafetensors(file, mixed)
  return { quantized, gguf, mixed: plain }
}

describe("quantised folders", () => {
  for (const format of formats(32, 128).filter(({ name }) => /blocks|int4|^GPTQ$|AWQ/.test(name))) {
    test(`${format.name}: the GGUF of a folder computes what the folder does`, async () => {
      for (const name of ["deepseek_v3", "qwen3_moe"]) {
        const config = { ...configOf(name), ...WIDE[name] }
        const model = await randomTensors(config)
        const { quantized } = writePair(at(`${name} ${format.name}`), config, model, format)
        const gguf = at(`${name}.gguf`)
        await convertFolder(quantized, gguf, backend, { type: "F32" })
        expect(relativeError(await logits(gguf), await logits(quantized))).toBeLessThan(1e-5)
      }
    })
  }
})

describe("hybrid folders", () => {
  for (const [name, type] of [
    ["deepseek_v3", "Q4_0"],
    ["qwen3_moe", "Q8_0"],
    ["qwen3_moe", "F16"],
  ] as const) {
    test(`${name}: FP8 linear layers with ${type} experts`, async () => {
      const { quantized, gguf, mixed } = await setting(name, type)
      const out = at(`${name}-${type}/hybrid`)
      const {
        status,
        out: said,
        err,
      } = await kt([
        "merge",
        ...["--safetensor_path", quantized, "--gguf_path", gguf, "--output_path", out],
        "--json",
      ])
      expect(err).toBe("")
      expect(status).toBe(0)
      const layers = configFromFolder(out).num_hidden_layers
      expect(JSON.parse(said)).toMatchObject({ path: out, files: layers + 1 })
      expect(readdirSync(out).filter((file) => file.endsWith(".safetensors"))).toHaveLength(
        layers + 1,
      )
      const stored = openStored(out) as SafetensorsFile
      const stack = [...stored.names()].find((n) => n.endsWith("ffn_up_exps.weight"))!
      expect(stored.get(stack)).toMatchObject({ dtype: { name: "U8" } })
      expect(stored.get(stack.replace("weight", "ggml_type"))).toMatchObject({ shape: [] })
      expect(stored.get("blk.0.attn_output.weight_scale_inv")?.dtype.name).toBe("F32")
      stored.close()
      const weights = openWeights(out)
      const down = [...weights.names()].find((n) => n.endsWith("experts.down_proj"))!
      expect(weights.get(down)?.dtype.name).toBe(type)
      expect(weights.get("model.layers.0.self_attn.o_proj.weight")?.dtype.name).toBe("F8_E4M3")
      weights.close()
      expect(relativeError(await logits(out), await logits(mixed))).toBeLessThan(1e-5)
    })
  }

  for (const gpu of ["cpu:1", "cuda:0"]) {
    const problem = deviceProblem(gpu)
    const rules = readFileSync(join(ROOT, "rules", "deepseek-v3-gpu.yaml"), "utf8")
    test.skipIf(problem !== undefined)(
      `FP8 linear layers on ${gpu}, GGML experts on the CPU${problem === undefined ? "" : `: ${problem}`}`,
      async () => {
        const { quantized, gguf } = await setting("deepseek_v3", "Q4_K_M")
        const out = at(`placed-${gpu.replace(":", "")}`)
        mergeHybrid(quantized, gguf, out)
        const file = at("placed.yaml")
        writeFileSync(file, rules.replaceAll(/: cuda$/gm, `: "${gpu}"`))
        const config = { model: out, threads: 1, pageSize: 8, precision: "f32" as const }
        const prompts = [Int32Array.of(5, 17, 99, 3, 250, 42), Int32Array.of(8, 7, 61)]
        using one = await Engine.create(engineConfig({ ...config, device: "cpu" }))
        const want = generateAll(one, prompts)
        for (const precision of ["f32", "fast"] as const) {
          using engine = await Engine.create(engineConfig({ ...config, precision, rules: file }))
          const got = generateAll(engine, prompts)
          const devices = new Map(
            engine.details().modules.map(({ path, device }) => [path, device]),
          )
          expect(devices.get("model.layers.1.self_attn.o_proj")).toBe(gpu)
          expect(devices.get("model.layers.1.mlp.experts")).toBe("cpu")
          if (precision === "f32") expect(got).toEqual(want)
          else expect(got.map(({ length }) => length)).toEqual(want.map(({ length }) => length))
        }
      },
    )
  }

  test("what does not fit is said", async () => {
    const { quantized, gguf } = await setting("qwen3_moe", "Q8_0")
    const merge = (from: string, with_: string, to: string): string => {
      try {
        mergeHybrid(from, with_, to)
      } catch (error) {
        return (error as Error).message
      }
      throw new Error("expected an error")
    }
    expect(merge(quantized, gguf, quantized)).toContain("expected another one")
    expect(merge(quantized, quantized, at("x"))).toContain("expected a GGUF model")
    mergeHybrid(quantized, gguf, at("x"))
    expect(merge(quantized, gguf, at("x"))).toContain("expected a new or empty folder")
    const shard = join(at("x"), "model-00001-of-00002.safetensors")
    const change = (edit: (tensors: Record<string, TensorData>) => void): string => {
      const opened = openSafetensors(shard)
      const tensors: Record<string, TensorData> = {}
      for (const name of opened.names()) {
        const { dtype, shape } = opened.get(name)!
        tensors[name] = { shape, dtype: dtype.name, data: opened.bytes(name).slice() }
      }
      opened.close()
      edit(tensors)
      writeSafetensors(shard, tensors)
      try {
        openWeights(at("x")).close()
      } catch (error) {
        return (error as Error).message
      }
      throw new Error("expected an error")
    }
    const type = "blk.0.ffn_up_exps.ggml_type"
    const scalar = (n: bigint): TensorData => ({ shape: [], data: BigInt64Array.of(n) })
    expect(change((t) => (t[type] = scalar(77n)))).toContain(
      `tensor "${type}": is 77, expected the number of a GGML type`,
    )
    expect(change((t) => (t[type] = scalar(14n)))).toContain("expected whole blocks of 210 bytes")
    rmSync(shard)
    expect(() => openWeights(at("x"))).toThrow("model-00001-of-00002.safetensors: is missing")
    writeFileSync(join(quantized, "config.json"), "{}")
    const { status, err } = await kt(["merge", "--gguf", gguf, "--out", at("y")])
    expect(status).toBe(2)
    expect(err).toContain("--safetensor-path is missing")
  })
})
