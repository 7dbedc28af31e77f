import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { engineConfig } from "../../src/config.ts"
import { Engine } from "../../src/engine/engine.ts"
import {
  openSafetensors,
  type TensorData,
  writeSafetensors,
} from "../../src/weights/safetensors.ts"
import type { WeightEntry } from "../../src/weights/source.ts"
import { generateAll } from "../engine/golden-models.ts"
import { golden } from "../setup.ts"
import { openHfGolden } from "./goldens.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-vision-"))
afterAll(() => rmSync(folder, { recursive: true }))

test("a llama4 folder gives its text model, and one line about the vision part", async () => {
  const source = openSafetensors(golden("hf", "llama4_text"))
  const tensors: Record<string, TensorData> = {}
  for (const name of source.names()) {
    const { shape, dtype } = source.get(name) as WeightEntry
    tensors[`language_model.${name}`] = { shape, dtype: dtype.name, data: source.bytes(name) }
  }
  for (const name of ["vision_model.class_embedding", "multi_modal_projector.linear_1.weight"])
    tensors[name] = { shape: [2], data: new Float32Array(2) }
  writeSafetensors(join(folder, "model.safetensors"), tensors)
  const text = JSON.parse(readFileSync(golden("hf", "llama4_text", "config.json"), "utf8"))
  const config = { model_type: "llama4", text_config: text, vision_config: { hidden_size: 8 } }
  writeFileSync(join(folder, "config.json"), JSON.stringify(config))
  source.close()

  const reference = openHfGolden("llama4_text")
  const ids = (name: string): Int32Array => {
    const { bytes } = reference.tensors.get(name) as { bytes: Uint8Array<ArrayBuffer> }
    return new Int32Array(bytes.buffer)
  }
  const [prompts, greedy] = [ids("input_ids"), ids("greedy_ids")]
  const log: string[] = []
  const options = { model: folder, threads: 1, pageSize: 8, precision: "f32" as const }
  const engine = await Engine.create(engineConfig(options), {
    onLog: (_level, message) => log.push(message),
  })
  const half = prompts.length / 2
  const got = generateAll(engine, [prompts.subarray(0, half), prompts.subarray(half)])
  expect(got).toEqual([[...greedy.subarray(0, 8)], [...greedy.subarray(8)]])
  expect(log).toContain("2 tensors of the vision part are passed over: the text model runs alone")
  engine[Symbol.dispose]()
  reference.weights.close()
})
