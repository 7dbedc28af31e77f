import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { FormatError } from "../../src/errors.ts"
import type { ModelConfig } from "../../src/models/config.ts"
import { modelClass, modelTypes } from "../../src/models/registry.ts"
import { Backend } from "../../src/native/backend.ts"
import { Attention } from "../../src/nn/attention.ts"
import { Linear } from "../../src/nn/layers.ts"
import { type Module, namedModules } from "../../src/nn/module.ts"
import { Experts } from "../../src/nn/moe.ts"
import { dequantize } from "../../src/ops/index.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { loadWeights } from "../../src/weights/load.ts"
import {
  openSafetensors,
  type TensorData,
  writeSafetensors,
} from "../../src/weights/safetensors.ts"
import type { WeightEntry } from "../../src/weights/source.ts"
import { buildModel, loadModel } from "./build.ts"
import { type Golden, openAllGoldens, openGgufGolden, openHfGolden } from "./goldens.ts"

const f32 = new Backend({ threads: 1, precision: "f32" })
const fast = new Backend({ threads: 1, precision: "fast" })
const folder = mkdtempSync(join(tmpdir(), "kt-load-"))
afterAll(() => {
  f32[Symbol.dispose]()
  fast[Symbol.dispose]()
  rmSync(folder, { recursive: true })
})

function at(root: Module, path: string): Module {
  const found = [...namedModules(root)].find(([name]) => name === path)?.[1]
  if (found === undefined) throw new Error(`no module ${path}`)
  return found
}

function linearAt(root: Module, path: string): Linear {
  const module = at(root, path)
  if (!(module instanceof Linear)) throw new Error(`${path} is no Linear`)
  return module
}

async function problem(config: ModelConfig, { weights }: Golden): Promise<string> {
  const { model } = await buildModel(config)
  try {
    loadWeights(model, weights, { backend: f32 })
  } catch (error) {
    expect(error).toBeInstanceOf(FormatError)
    return (error as FormatError).message
  }
  throw new Error("expected a FormatError")
}

describe("loading", () => {
  test.each(openAllGoldens().map((g) => [g.name, g] as const))(
    "%s: every parameter is bound, every byte counted",
    async (_name, { config, weights }) => {
      for (const [backend, fuse] of [
        [f32, false],
        [f32, true],
        [fast, true],
      ] as const) {
        const steps: [number, number][] = []
        const { model, loaded } = await loadModel(config, weights, {
          backend,
          fuse,
          onProgress: (done, total) => steps.push([done, total]),
        })
        for (const [path, module] of namedModules(model)) {
          // sinks are kept among what attention tells its kernel
          const fields = Object.values({
            ...module,
            ...(module instanceof Attention && module.params),
          })
          const tensors = fields.filter((value) => value instanceof Tensor)
          expect(tensors.length, path).toBe(module.parameters().length)
        }
        const last = steps.at(-1)
        expect(last?.[0]).toBe(last?.[1] as number)
        expect(steps.every(([done], i) => i === 0 || done >= (steps[i - 1]?.[0] ?? 0))).toBe(true)
        if (backend === f32 && weights.kind === "gguf") expect(loaded.packedBytes).toBe(0)
        loaded[Symbol.dispose]()
      }
      weights.close()
    },
  )

  test("rows of a fused projection become its parts", async () => {
    const { config, weights } = openHfGolden("phi3")
    const plain = await loadModel(config, weights, { backend: f32, fuse: false })
    const fused = await loadModel(config, weights, { backend: f32 })
    const rows = (path: string, root: Module): Float32Array =>
      dequantize(linearAt(root, path).weight).toFloat32Array()
    const layer = "model.layers.1"
    const parts = (names: readonly string[]): number[] =>
      names.flatMap((name) => [...rows(`${layer}.${name}`, fused.model)])
    expect(parts(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])).toEqual([
      ...rows(`${layer}.self_attn.qkv_proj`, plain.model),
    ])
    expect(parts(["mlp.gate_proj", "mlp.up_proj"])).toEqual([
      ...rows(`${layer}.mlp.gate_up_proj`, plain.model),
    ])
    plain.loaded[Symbol.dispose]()
    fused.loaded[Symbol.dispose]()
    weights.close()
  })

  test("experts stored one by one are stacked in order", async () => {
    const { config, weights } = openHfGolden("qwen3_moe")
    const { model, loaded } = await loadModel(config, weights, { backend: f32 })
    const experts = at(model, "model.layers.1.mlp.experts")
    if (!(experts instanceof Experts)) throw new Error("no experts")
    for (let i = 0; i < config.num_experts; i++) {
      const name = `model.layers.1.mlp.experts.${i}.down_proj.weight`
      expect(Buffer.from(experts.down_proj.select(i).bytes())).toEqual(
        Buffer.from(weights.bytes(name)),
      )
    }
    loaded[Symbol.dispose]()
    weights.close()
  })

  test("a tied head reads the embeddings", async () => {
    const { config, weights } = openGgufGolden("llama-tied-bf16", "llama-tied-bf16")
    const { model, loaded } = await loadModel(config, weights, { backend: f32 })
    expect(linearAt(model, "lm_head").weight.data).toBe(
      weights.get("token_embd.weight")?.address as number,
    )
    loaded[Symbol.dispose]()
    weights.close()
  })
})

describe("checkpoints that do not fit", () => {
  const llama = openHfGolden("llama")
  const qwen2 = openHfGolden("qwen2")

  test("all missing, misshapen and unused tensors are in one message", async () => {
    const { config } = llama
    const wider = { ...config, intermediate_size: config.intermediate_size + 32 }
    const message = await problem(wider, llama)
    const { hidden_size: D, intermediate_size: I } = config
    expect(message).toContain(
      `model.layers.0.mlp.gate_proj.weight has shape [${I}, ${D}], expected [${I + 32}, ${D}]`,
    )
    expect(message).toContain("model.layers.2.mlp.down_proj.weight has shape")
    const more = {
      ...config,
      num_hidden_layers: 4,
      layer_types: [...config.layer_types, "full_attention" as const],
    }
    expect(await problem(more, llama)).toContain("missing model.layers.3.self_attn.q_proj.weight")
    const noBias = { ...qwen2.config, attention_bias: false }
    expect(await problem(noBias, qwen2)).toContain("unused model.layers.0.self_attn.q_proj.bias")
  })

  test("many problems are counted", async () => {
    const { config } = llama
    const message = await problem({ ...config, hidden_size: config.hidden_size * 2 }, llama)
    expect(message).toMatch(/; and \d+ more$/)
  })

  test("GGUF names are the file's own", async () => {
    const gguf = openGgufGolden("qwen2-q8_0", "qwen2-q8_0")
    const message = await problem({ ...gguf.config, attention_bias: false }, gguf)
    expect(message).toContain("unused blk.0.attn_q.bias")
  })

  test("a type that no kernel reads is named with its tensor", async () => {
    const { config, weights } = llama
    const path = join(folder, "integers.safetensors")
    const name = "model.layers.0.self_attn.q_proj.weight"
    const { shape } = weights.get(name) as WeightEntry
    const [rows = 0, cols = 0] = shape
    writeSafetensors(path, { [name]: { shape, data: new Int32Array(rows * cols) } })
    const integers = openSafetensors(path)
    expect(await problem(config, { ...llama, weights: integers })).toContain(
      `${name} is of type I32, which no kernel reads here`,
    )
    integers.close()
  })

  test("buffers and layers for predicting several tokens are passed over", async () => {
    const { config, weights } = llama
    const tensors = new Map<string, TensorData>()
    for (const name of weights.names()) {
      const { shape, dtype } = weights.get(name) as WeightEntry
      tensors.set(name, { shape, dtype: dtype.name, data: weights.bytes(name) })
    }
    const path = join(folder, "model.safetensors")
    const write = (...extra: string[]): void => {
      const more = extra.map((name) => [name, { shape: [2], data: new Float32Array(2) }] as const)
      writeSafetensors(path, Object.fromEntries([...tensors, ...more]))
    }
    write("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.3.enorm.weight")
    const good = openSafetensors(path)
    const { loaded } = await loadModel(config, good, { backend: f32 })
    loaded[Symbol.dispose]()
    good.close()
    write("model.layers.0.surprise")
    const bad = openSafetensors(path)
    expect(await problem(config, { ...llama, weights: bad })).toContain(
      "unused model.layers.0.surprise",
    )
    bad.close()
  })
})

describe("the registry of models", () => {
  test("finds classes by type and by architecture", async () => {
    for (const type of modelTypes()) expect(await modelClass(type)).toBeDefined()
    expect(await modelClass("Qwen3MoeForCausalLM")).toBe(await modelClass("qwen3_moe"))
  })

  test("an unknown type is an error that lists the known ones", () => {
    expect(modelClass("rwkv")).rejects.toThrow(
      'unknown model type "rwkv"; known are llama, mistral, qwen2, qwen3, gemma3_text, phi3, qwen3_moe',
    )
  })
})
