import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

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

describe.skipIf(noPython !== undefined)("as Python's tokenizers", async () => {
  const texts = fuzzTexts(1000)
  const paths = Object.fromEntries(
    names.map((name, i) => [name, join(folder, `${i}`, "tokenizer.json")]),
  )
  const answers =
    noPython === undefined
      ? ((await askPython({ tokenizers: paths, texts })) as Record<string, number[][]>)
      : {}

  test.each(names)("%s", async (name) => {
    const tokenizer = await Tokenizer.fromPretrained(join(folder, `${names.indexOf(name)}`))
    for (const [i, text] of texts.entries()) {
      const ids = [...tokenizer.encode(text, { addSpecial: false, parseSpecial: true })]
      expect({ text, ids }).toEqual({ text, ids: answers[name]![i]! })
    }
  })
})
