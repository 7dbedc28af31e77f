import { afterAll, describe, expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { convertFolder } from "../../src/convert/convert-folder.ts"
import { tokenizerFields } from "../../src/convert/tokenizer-fields.ts"
import { Backend } from "../../src/native/backend.ts"
import type { TokenizerJson } from "../../src/tokenizer/tokenizer-json.ts"
import { tokenizerJsonFromGguf } from "../../src/tokenizer/tokenizer-json.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import type { GgufMetadata } from "../../src/weights/metadata.ts"
import { readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"
import { ggufToFolder } from "./gguf-to-folder.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-tokenizer-"))
const backend = new Backend({ threads: 1 })
afterAll(() => {
  backend[Symbol.dispose]()
  rmSync(folder, { recursive: true, force: true })
})

const KEY = "tokenizer.ggml."

function metadataOf(file: string): GgufMetadata {
  return openGguf(golden("gguf", `${file}.gguf`), readWhole).metadata
}

/** A folder that holds a tokenizer alone. */
function tokenizerFolder(name: string, json: unknown, config: object): string {
  const path = join(folder, name)
  mkdirSync(path, { recursive: true })
  writeFileSync(join(path, "tokenizer.json"), JSON.stringify(json))
  writeFileSync(join(path, "tokenizer_config.json"), JSON.stringify(config))
  return path
}

describe("tokenizer.json as GGUF metadata", () => {
  for (const [file, modelType, pre] of [
    ["llama-rope-q4_k_m", "llama", "llama-bpe"],
    ["llama-f16", "llama", "smollm"],
    ["qwen2-q8_0", "qwen2", "qwen2"],
    ["deepseek2-lite-q5_1", "deepseek_v2", "deepseek-llm"],
    ["deepseek2-v3-q4_1", "deepseek_v3", "deepseek-v3"],
    ["glm4moe-q4_0", "glm4_moe", "glm4"],
    ["llama4-q8_0", "llama4_text", "llama4"],
    ["gpt-oss-mxfp4", "gpt_oss", "gpt-4o"],
  ] as const) {
    test(`${file}: the way of cutting words is found`, async () => {
      const metadata = metadataOf(file)
      const tokens = metadata.get(`${KEY}tokens`) as string[]
      const name = (id: unknown): string | null => (typeof id === "number" ? tokens[id]! : null)
      const path = tokenizerFolder(file, tokenizerJsonFromGguf(metadata, file), {
        bos_token: name(metadata.get(`${KEY}bos_token_id`)),
        eos_token: name(metadata.get(`${KEY}eos_token_id`)),
        chat_template: "{{ messages }}",
      })
      const fields = await tokenizerFields(path, modelType, tokens.length + 3, { eos: [] })
      const value = (key: string): unknown => fields.get(KEY + key)?.value
      expect(value("model")).toBe("gpt2")
      expect(value("pre")).toBe(pre)
      expect((value("tokens") as string[]).slice(0, tokens.length)).toEqual(tokens)
      // rows of the embedding without a token
      expect((value("tokens") as string[]).slice(tokens.length)).toEqual(
        [0, 1, 2].map((i) => `[PAD${tokens.length + i}]`),
      )
      expect(Array.from((value("token_type") as Int32Array).slice(-3))).toEqual([5, 5, 5])
      expect(value("merges")).toEqual(metadata.get(`${KEY}merges`))
      expect(value("bos_token_id")).toBe(metadata.get(`${KEY}bos_token_id`) as number)
      expect(value("eos_token_id")).toBe(metadata.get(`${KEY}eos_token_id`) as number)
      expect(fields.get("tokenizer.chat_template")?.value).toBe("{{ messages }}")
    })
  }

  /** A vocabulary with byte fallback as transformers converts it from sentencepiece: merges in the order of scores. */
  function metaspaceJson(metadata: GgufMetadata): TokenizerJson {
    const tokens = metadata.get(`${KEY}tokens`) as string[]
    const scores = metadata.get(`${KEY}scores`) as Float32Array
    const kinds = metadata.get(`${KEY}token_type`) as Int32Array
    const ids = new Map(tokens.map((text, id) => [text, id]))
    const merges: { text: string; score: number }[] = []
    tokens.forEach((text, id) => {
      if (kinds[id] !== 1) return
      const chars = [...text]
      for (let i = 1; i < chars.length; i++) {
        const pair = [chars.slice(0, i).join(""), chars.slice(i).join("")]
        if (pair.every((part) => ids.has(part)))
          merges.push({ text: pair.join(" "), score: scores[id]! })
      }
    })
    merges.sort((a, b) => b.score - a.score)
    const special = tokens.flatMap((content, id) =>
      kinds[id] === 3 || kinds[id] === 2 ? [{ id, content, special: true }] : [],
    )
    return {
      added_tokens: special,
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "\u2581" },
          { type: "Replace", pattern: { String: " " }, content: "\u2581" },
        ],
      },
      pre_tokenizer: null,
      post_processor: null,
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "\u2581" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
          { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
      },
      model: {
        type: "BPE",
        unk_token: "<unk>",
        byte_fallback: true,
        fuse_unk: true,
        vocab: Object.fromEntries(ids),
        merges: merges.map(({ text }) => text),
      },
    }
  }

  test("byte fallback: scores follow the merges", async () => {
    const metadata = metadataOf("llama-tied-bf16")
    const tokens = metadata.get(`${KEY}tokens`) as string[]
    const path = tokenizerFolder("metaspace", metaspaceJson(metadata), {
      bos_token: "<s>",
      eos_token: { content: "</s>" },
      add_bos_token: true,
    })
    const fields = await tokenizerFields(path, "llama", tokens.length, { eos: [2, 5] })
    const value = (key: string): unknown => fields.get(KEY + key)?.value
    expect(value("model")).toBe("llama")
    expect(value("tokens")).toEqual(tokens)
    expect(value("token_type")).toEqual(metadata.get(`${KEY}token_type`))
    expect(value("add_bos_token")).toBe(true)
    expect(value("add_space_prefix")).toBe(true)
    expect(value("eot_token_id")).toBe(5)
  })

  test("what has no counterpart is refused", async () => {
    const json = tokenizerJsonFromGguf(metadataOf("llama-f16"), "llama-f16")
    const path = (name: string, changed: object): string =>
      tokenizerFolder(name, { ...json, ...changed }, {})
    const fields = (where: string, rows = 400, pre?: string): Promise<unknown> =>
      tokenizerFields(where, "llama", rows, { eos: [] }, pre)
    const unigram = { model: { type: "Unigram", unk_id: 0, vocab: [["<unk>", 0]] } }
    expect(fields(path("unigram", unigram))).rejects.toThrow(/model\.type: "Unigram" cannot/)
    expect(fields(path("small", {}), 10)).rejects.toThrow(/the embedding has 10 rows/)
    expect(fields(path("pre", {}), 400, "nothing")).rejects.toThrow(/"nothing" is unknown/)
    const cut = {
      pre_tokenizer: {
        type: "Sequence",
        pretokenizers: [
          { type: "Split", pattern: { Regex: "[aeiou]" }, behavior: "Isolated", invert: false },
          { type: "ByteLevel", add_prefix_space: false, use_regex: false },
        ],
      },
    }
    expect(fields(path("cut", cut))).rejects.toThrow(/no known pre-tokenizer/)
  })
})

test("a GGUF written as a folder comes back as it was", async () => {
  const source = golden("gguf/llama-f16.gguf")
  const path = join(folder, "llama-f16")
  await ggufToFolder(source, path, backend)
  const out = join(folder, "back.gguf")
  const { hasTokenizer, extraKeys } = await convertFolder(path, out, backend, { type: "f16" })
  expect(hasTokenizer).toBe(true)
  expect(extraKeys).toEqual([])
  const before = openGguf(source, readWhole)
  const after = openGguf(out, readWhole)
  expect([...after.names()].toSorted()).toEqual([...before.names()].toSorted())
  for (const name of before.names()) {
    expect(after.get(name)?.dtype.name).toBe(before.get(name)!.dtype.name)
    expect(after.bytes(name)).toEqual(before.bytes(name))
  }
  for (const key of ["tokens", "token_type", "merges", "pre", "model", "eos_token_id"])
    expect(after.metadata.get(KEY + key)).toEqual(before.metadata.get(KEY + key)!)
  expect(JSON.parse(readFileSync(join(path, "config.json"), "utf8"))).toMatchObject({
    model_type: "llama",
  })
})
