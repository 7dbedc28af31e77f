import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

interface Entry {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}

const temporary = temporaryFolder()
const source = golden("hf", "llama")
const weights = readFileSync(join(source, "model.safetensors"))
const headerBytes = Number(weights.readBigUInt64LE(0))
const header = JSON.parse(weights.toString("utf8", 8, 8 + headerBytes)) as Record<string, Entry>
const UP = "model.layers.1.mlp.up_proj.weight"
const ids = join(temporary.path, "ids.json")

/** A copy of a golden folder with its configuration changed; its path. */
function copy(name: string, change: Readonly<Record<string, unknown>> = {}): string {
  const folder = join(temporary.path, name)
  mkdirSync(folder)
  const config = JSON.parse(readFileSync(join(source, "config.json"), "utf8")) as object
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, ...change }))
  writeFileSync(join(folder, "model.safetensors"), weights)
  return folder
}

/** The same with one tensor's entry in the header changed; its bytes stay. */
function withTensor(name: string, change: (entry: Entry) => Partial<Entry>): string {
  const folder = copy(name)
  const entry = header[UP]
  if (entry === undefined) throw new Error(`no tensor ${UP}`)
  const text = Buffer.from(JSON.stringify({ ...header, [UP]: { ...entry, ...change(entry) } }))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  const rest = weights.subarray(8 + headerBytes)
  writeFileSync(join(folder, "model.safetensors"), Buffer.concat([length, text, rest]))
  return folder
}

function withoutShard(name: string): string {
  const folder = copy(name)
  rmSync(join(folder, "model.safetensors"))
  const shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
  const weight_map = Object.fromEntries(
    Object.keys(header).map((tensor, i) => [tensor, shards[i % 2]]),
  )
  writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ weight_map }))
  writeFileSync(join(folder, shards[0] ?? ""), weights)
  return folder
}

function withFile(name: string, file: string, text: string): string {
  const folder = copy(name)
  writeFileSync(join(folder, file), text)
  return folder
}

beforeAll(() => writeFileSync(ids, "[[1, 2, 3]]"))
afterAll(() => temporary[Symbol.dispose]())

const logits = (folder: string): string[] => [
  "logits",
  folder,
  "--ids",
  ids,
  "--out",
  join(temporary.path, "o.safetensors"),
]
const run = (folder: string): string[] => ["run", folder, "-p", "x"]

const rows: [name: string, argv: () => string[], says: RegExp][] = [
  [
    "no tokenizer",
    () => run(copy("no-tokenizer")),
    /no-tokenizer\/tokenizer\.json: no such file: the model has no tokenizer\n.*--model-path/,
  ],
  [
    "a tokenizer that is no JSON",
    () => run(withFile("cut-tokenizer", "tokenizer.json", "{")),
    /cut-tokenizer\/tokenizer\.json: is not valid JSON/,
  ],
  [
    "a tokenizer without a vocabulary",
    () => run(withFile("odd-tokenizer", "tokenizer.json", '{"model": {"type": "Nope"}}')),
    /odd-tokenizer\/tokenizer\.json: model\.vocab is missing/,
  ],
  [
    "a missing shard",
    () => logits(withoutShard("shard")),
    /model-00002-of-00002\.safetensors: is missing, model\.safetensors\.index\.json names it\n.*download/,
  ],
  [
    "a tensor of another shape",
    () => logits(withTensor("shape", ({ shape }) => ({ shape: shape.toReversed() }))),
    /up_proj\.weight has shape \[48, 64\], expected \[64, 48\]/,
  ],
  [
    "a tensor of a type that is no weight's",
    () => logits(withTensor("dtype", () => ({ dtype: "I16" }))),
    /model\.layers\.1\.mlp\.up_proj\.weight is of type I16/,
  ],
  [
    "a tensor of an unknown type",
    () => logits(withTensor("unknown-dtype", () => ({ dtype: "F99" }))),
    /model\.safetensors: .*up_proj\.weight".*F99/,
  ],
  [
    "a tensor that lies outside the file",
    () => logits(withTensor("outside", () => ({ data_offsets: [0, 2 ** 40] }))),
    /model\.safetensors: .*\.weight"/,
  ],
  [
    "an unknown rope type",
    () =>
      logits(
        copy("rope", {
          rope_scaling: { rope_type: "spiral", factor: 2 },
          rope_parameters: undefined,
        }),
      ),
    /rope\/config\.json: rope_scaling\.rope_type: "spiral" is unknown; known are default, linear/,
  ],
  [
    "an unknown quantisation",
    () => logits(copy("quant", { quantization_config: { quant_method: "wavelet" } })),
    /quant\/config\.json: quantization_config\.quant_method: "wavelet".*\n.*GGUF/,
  ],
  [
    "an impossible number",
    () => logits(copy("number", { num_hidden_layers: -3 })),
    /number\/config\.json: num_hidden_layers: -3 /,
  ],
  [
    "a size that no memory has",
    () => logits(copy("huge", { hidden_size: 1e15 })),
    /huge\/config\.json: hidden_size: 1000000000000000 /,
  ],
  [
    "a size that the tensors have not",
    () => logits(copy("larger", { intermediate_size: 16_777_216 })),
    /larger: does not fit the model: .*has shape \[.*\], expected \[16777216, 48\]/,
  ],
  [
    "an unknown model type",
    () => logits(copy("type", { model_type: "mamba9" })),
    /type\/config\.json: model_type: "mamba9" is unknown; known are llama/,
  ],
  [
    "a configuration that is no JSON",
    () => logits(withFile("json", "config.json", "{")),
    /json\/config\.json: is no valid JSON/,
  ],
]

describe("a folder with something wrong is one sentence and a status", () => {
  test.each(rows)("%s", async (_name, argv, says) => {
    const result = await kt(argv(), { stdin: "" })
    expect(result.err).toMatch(says)
    const lines = result.err.trimEnd().split("\n")
    expect(lines.filter((line) => line.startsWith("kt: "))).toHaveLength(1)
    expect(result.err).not.toMatch(/\n\s+at /)
    expect(result).toMatchObject({ status: 1, out: "" })
  })

  test("logits need no tokenizer", async () => {
    const result = await kt(logits(copy("plain")), { stdin: "" })
    expect(result.status).toBe(0)
  })
})
