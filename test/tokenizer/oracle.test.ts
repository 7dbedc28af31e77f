import { describe, expect, test } from "bun:test"
import { existsSync, readdirSync } from "node:fs"
import { join } from "node:path"

import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { llamaCppModels, noLlamaCpp } from "./checkout.ts"
import { readGgufMetadata } from "./gguf-metadata.ts"

const files =
  llamaCppModels !== undefined
    ? readdirSync(llamaCppModels).filter((name) => /^ggml-vocab-.*\.gguf$/.test(name))
    : []

if (noLlamaCpp !== undefined) test.skip(`llama.cpp's vocabularies (${noLlamaCpp})`, () => {})

describe.each(files)("%s", (name) => {
  const path = join(llamaCppModels ?? "", name)
  const tokenizer = Tokenizer.fromGguf(readGgufMetadata(path), name)

  const has = existsSync(`${path}.inp`)
  test.skipIf(!has)(`ids of its texts${has ? "" : ` (no ${name}.inp beside it)`}`, async () => {
    const texts = (await Bun.file(`${path}.inp`).text()).split(/\n__ggml_vocab_test__\n/)
    const lines = (await Bun.file(`${path}.out`).text()).trimEnd().split("\n")
    // the file ends with a separator
    if (texts.at(-1) === "") texts.pop()
    expect(lines).toHaveLength(texts.length)
    for (const [i, text] of texts.entries()) {
      const ids = [...tokenizer.encode(text, { addSpecial: false })]
      expect({ text, ids: ids.join(" ") }).toEqual({ text, ids: lines[i]!.trim() })
    }
  })

  test("no text yields a control token", () => {
    for (let id = 0; id < tokenizer.vocabSize; id++) {
      if (!tokenizer.isSpecial(id)) continue
      const ids = [...tokenizer.encode(`a ${tokenizer.tokenText(id)} b`, { addSpecial: false })]
      const found = ids.filter((each) => tokenizer.isSpecial(each) && !isUnknown(each))
      expect({ id, found }).toEqual({ id, found: [] })
    }
    function isUnknown(id: number): boolean {
      return id === tokenizer.unknownId
    }
  })
})
