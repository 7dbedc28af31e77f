import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { convertFolder } from "../../src/convert/convert-folder.ts"
import { configFromGguf } from "../../src/models/config-gguf.ts"
import { ggufFamily } from "../../src/models/config-to-gguf.ts"
import { MODEL_TYPES, type ModelConfig } from "../../src/models/config.ts"
import { Backend } from "../../src/native/backend.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { GGUF_ARCHITECTURES } from "../../src/weights/names.ts"
import type { SafetensorsFile } from "../../src/weights/safetensors.ts"
import { loadModel } from "../models/build.ts"
import { HF_GOLDENS, openHfGolden } from "../models/goldens.ts"
import { Sequences } from "../models/sequences.ts"
import { relativeError } from "../ops/harness.ts"
import { golden } from "../setup.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-convert-"))
const backend = new Backend({ threads: 1, precision: "f32" })
afterAll(() => {
  backend[Symbol.dispose]()
  rmSync(folder, { recursive: true, force: true })
})

async function logitsOf(
  config: ModelConfig,
  weights: GgufFile | SafetensorsFile,
  prompts: readonly Int32Array[],
): Promise<Float32Array[]> {
  const { model, loaded } = await loadModel(config, weights, { backend })
  try {
    const length = prompts[0]!.length
    using sequences = new Sequences(model, backend, {
      count: prompts.length,
      maxTokens: length,
      promptLength: length,
    })
    return sequences.step(prompts.map((ids, sequence) => ({ sequence, ids })))
  } finally {
    loaded[Symbol.dispose]()
  }
}

test("every model type has its entry, and no other", () => {
  for (const type of MODEL_TYPES) {
    const { architecture } = ggufFamily("config.json", type)
    expect(GGUF_ARCHITECTURES).toContain(architecture)
  }
  expect(() => ggufFamily("config.json", "unknown")).toThrow(
    /model_type: unknown cannot be written/,
  )
})

describe("a converted folder computes what the folder does", () => {
  for (const name of HF_GOLDENS) {
    test(name, async () => {
      const { config, weights, tensors } = openHfGolden(name)
      const ids = new Int32Array(tensors.get("input_ids")!.bytes.buffer)
      const prompts = [ids.slice(0, ids.length / 2), ids.slice(ids.length / 2)]
      const wanted = await logitsOf(config, weights, prompts)
      weights.close()
      for (const type of ["f32", "bf16"]) {
        const path = join(folder, `${name}-${type}.gguf`)
        const { hasTokenizer } = await convertFolder(golden("hf", name), path, backend, { type })
        expect(hasTokenizer).toBe(false)
        const gguf = openGguf(path)
        const got = await logitsOf(configFromGguf(gguf), gguf, prompts)
        gguf.close()
        prompts.forEach((_, i) => {
          expect(relativeError(got[i]!, wanted[i]!)).toBeLessThanOrEqual(1e-5)
        })
      }
    })
  }
})
