import { afterAll, expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
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

interface Folder {
  readonly modelType: string
  /** Its golden. */
  readonly text: string
  /** Where the checkpoint has a tensor of its language model. */
  readonly place: (name: string) => string
  readonly others: readonly string[]
  readonly key?: string
  readonly textType?: string | undefined
}

const inside = (name: string): string => `language_model.${name}`

const FOLDERS: readonly Folder[] = [
  {
    modelType: "llama4",
    text: "llama4_text",
    place: inside,
    others: ["vision_model.class_embedding", "multi_modal_projector.linear_1.weight"],
  },
  {
    modelType: "gemma3",
    text: "gemma3_text",
    place: inside,
    others: ["vision_tower.vision_model.encoder.weight", "multi_modal_projector.norm.weight"],
    textType: undefined,
  },
  {
    modelType: "mistral3",
    text: "mistral",
    place: (name) => name.replace(/^model\./, "model.language_model."),
    others: ["model.vision_tower.patch_conv.weight", "model.multi_modal_projector.norm.weight"],
  },
  {
    modelType: "internvl_chat",
    text: "internlm2",
    place: inside,
    others: ["vision_model.embeddings.class_embedding", "mlp1.0.weight"],
    key: "llm_config",
  },
  {
    modelType: "qwen3_vl",
    text: "qwen3",
    place: (name) => name.replace(/^model\./, "model.language_model."),
    others: ["model.visual.pos_embed.weight", "model.visual.merger.norm.weight"],
    textType: "qwen3_vl_text",
  },
  {
    modelType: "kimi_vl",
    text: "moonlight",
    place: inside,
    others: ["vision_tower.patch_embed.proj.weight", "multi_modal_projector.linear_1.weight"],
  },
]

test.each(FOLDERS.map((folder) => [folder.modelType, folder] as const))(
  "a %s folder gives its text model, and one line about the rest",
  async (modelType, { text, place, others, key = "text_config", ...more }) => {
    const path = join(folder, modelType)
    mkdirSync(path)
    const source = openSafetensors(golden("hf", text))
    const tensors: Record<string, TensorData> = {}
    for (const name of source.names()) {
      const { shape, dtype } = source.get(name) as WeightEntry
      tensors[place(name)] = { shape, dtype: dtype.name, data: source.bytes(name) }
    }
    for (const name of others) tensors[name] = { shape: [2], data: new Float32Array(2) }
    writeSafetensors(join(path, "model.safetensors"), tensors)
    source.close()
    const inner = JSON.parse(readFileSync(golden("hf", text, "config.json"), "utf8"))
    if ("textType" in more) inner.model_type = more.textType
    const config = { model_type: modelType, [key]: inner, vision_config: { hidden_size: 8 } }
    writeFileSync(join(path, "config.json"), JSON.stringify(config))

    const reference = openHfGolden(text)
    const ids = (name: string): Int32Array => {
      const { bytes } = reference.tensors.get(name) as { bytes: Uint8Array<ArrayBuffer> }
      return new Int32Array(bytes.buffer)
    }
    const [prompts, greedy] = [ids("input_ids"), ids("greedy_ids")]
    const log: string[] = []
    const options = { model: path, threads: 1, pageSize: 8, precision: "f32" as const }
    using engine = await Engine.create(engineConfig(options), {
      onLog: (_level, message) => log.push(message),
    })
    const half = prompts.length / 2
    const got = generateAll(engine, [prompts.subarray(0, half), prompts.subarray(half)])
    expect(got).toEqual([[...greedy.subarray(0, 8)], [...greedy.subarray(8)]])
    expect(log.filter((line) => line.includes("passed over"))).toEqual([
      "2 tensors of the vision part are passed over: the text model runs alone",
    ])
    reference.weights.close()
  },
)
