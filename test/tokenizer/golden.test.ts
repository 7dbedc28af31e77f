import { expect, test } from "bun:test"
import { existsSync, readdirSync } from "node:fs"
import { homedir } from "node:os"
import { join } from "node:path"

import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { golden } from "../setup.ts"
import { readGgufMetadata } from "./gguf-metadata.ts"

interface Case {
  readonly text: string
  readonly add_special?: boolean
  readonly parse_special: boolean
}

const { cases, ids } = (await Bun.file(golden("gguf", "tokenize.json")).json()) as {
  cases: Case[]
  ids: Record<string, number[][]>
}
const files = readdirSync(golden("gguf")).filter((name) => name.endsWith(".gguf"))

for (const [name, expected] of Object.entries(ids)) {
  test(`${name}: ids of ${cases.length} texts`, () => {
    const file = files.find((file) => file === `${name}.gguf` || file.startsWith(`${name}-00001`))!
    const tokenizer = Tokenizer.fromGguf(readGgufMetadata(golden("gguf", file)), file)
    expect(expected).toHaveLength(cases.length)
    for (const [i, { text, add_special, parse_special }] of cases.entries()) {
      const got = tokenizer.encode(text, {
        addSpecial: add_special ?? true,
        parseSpecial: parse_special,
      })
      expect({ text, ids: [...got] }).toEqual({ text, ids: expected[i]! })
    }
  })
}

const home = process.env["KT_HOME"] ?? join(homedir(), ".cache", "ktransformers")
const smol = join(home, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")

test.skipIf(!existsSync(smol))(
  existsSync(smol)
    ? "SmolLM2: ids of real texts"
    : `SmolLM2: ids of real texts (skipped: no ${smol})`,
  async () => {
    const tokenizer = Tokenizer.fromGguf(readGgufMetadata(smol), smol)
    const real = (await Bun.file(golden("real", "smollm2-135m.json")).json()) as {
      prompts: (Case & { ids: number[] })[]
      tokenize: (Case & { ids: number[] })[]
    }
    for (const { text, add_special, parse_special, ids } of [...real.prompts, ...real.tokenize]) {
      const got = tokenizer.encode(text, {
        addSpecial: add_special ?? true,
        parseSpecial: parse_special,
      })
      expect({ text, ids: [...got] }).toEqual({ text, ids })
    }
    expect(tokenizer.eogIds).toEqual([0, 2])
  },
)
