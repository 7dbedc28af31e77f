import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import {
  type PreTokenizer,
  preTokenizer,
  preTokenizerNames,
} from "../../src/tokenizer/pre-tokenizers.ts"
import { type TokenizerJson, tokenizerJsonFromGguf } from "../../src/tokenizer/tokenizer-json.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { golden } from "../setup.ts"
import { fuzzTexts } from "./fuzz-texts.ts"
import { readGgufMetadata } from "./gguf-metadata.ts"
import { JSON_TOKENIZERS } from "./json-tokenizers.ts"
import { askPython, noPython } from "./python.ts"

/** One file per pre-tokenizer. */
const BPE_FILES = [
  "llama-rope-q4_k_m",
  "llama-f16",
  "qwen2-q8_0",
  "deepseek2-lite-q5_1",
  "deepseek2-v3-q4_1",
  "glm4moe-q4_0",
  "llama4-q8_0",
  "gpt-oss-mxfp4",
]

const folder = mkdtempSync(join(tmpdir(), "kt-tokenizers-"))
afterAll(() => rmSync(folder, { recursive: true }))

const jsons: Record<string, TokenizerJson> = { ...JSON_TOKENIZERS }
for (const name of BPE_FILES)
  jsons[name] = tokenizerJsonFromGguf(readGgufMetadata(golden("gguf", `${name}.gguf`)), name)
// every pre-tokenizer of byte-level vocabularies, each with the same small vocabulary
const small = new Map(readGgufMetadata(golden("gguf", "llama-f16.gguf")))
const seen = new Set<PreTokenizer>()
for (const name of preTokenizerNames()) {
  const pre = preTokenizer(name)!
  if (seen.has(pre) || pre.metaspace === true) continue
  seen.add(pre)
  small.set("tokenizer.ggml.pre", name)
  jsons[`pre-tokenizer ${name}`] = tokenizerJsonFromGguf(small, name)
}
const names = Object.keys(jsons)
for (const [i, name] of names.entries())
  await Bun.write(join(folder, `${i}`, "tokenizer.json"), JSON.stringify(jsons[name]))

test.each(names)("%s: what is encoded is decoded", async (name) => {
  const tokenizer = await Tokenizer.fromPretrained(join(folder, `${names.indexOf(name)}`))
  const ids = tokenizer.encode("hello world", { addSpecial: false })
  expect(tokenizer.decode(ids)).toBe("hello world")
})

if (noPython !== undefined)
  test.skip(`ids as Python's tokenizers give them (${noPython})`, () => {})

describe("as Python's tokenizers", async () => {
  const texts = fuzzTexts(1000)
  const paths = Object.fromEntries(
    names.map((name, i) => [name, join(folder, `${i}`, "tokenizer.json")]),
  )
  const answers =
    noPython === undefined
      ? ((await askPython({ tokenizers: paths, texts })) as Record<string, number[][]>)
      : {}

  test.each(noPython === undefined ? names : [])("%s", async (name) => {
    const tokenizer = await Tokenizer.fromPretrained(join(folder, `${names.indexOf(name)}`))
    for (const [i, text] of texts.entries()) {
      const ids = [...tokenizer.encode(text, { addSpecial: false, parseSpecial: true })]
      expect({ text, ids }).toEqual({ text, ids: answers[name]![i]! })
    }
  })
})
