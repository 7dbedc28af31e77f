import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { convertFolder } from "../../src/convert/convert-folder.ts"
import { Backend } from "../../src/native/backend.ts"
import { kt } from "../cli/kt.ts"
import { HF_GOLDENS } from "../models/goldens.ts"
import { golden } from "../setup.ts"
import { withByteTokenizer } from "./byte-tokenizer.ts"
import { llamaCpp, missingProgram } from "./llama-cpp.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-llama-cpp-"))
const backend = new Backend({ threads: 1 })
afterAll(() => {
  backend[Symbol.dispose]()
  rmSync(folder, { recursive: true, force: true })
})

/** Models that llama.cpp loads and computes differently, because it fixes what these tiny ones vary. */
const DIFFERENT: Readonly<Record<string, string>> = {
  gemma3_text: "its attention scale is the head's own",
  phi3: "it takes the long factors wherever its own context is longer than the original one",
  smollm3: "its layers without rope are every fourth",
  smallthinker_softmax: "its layers without rope are every fourth",
  llama4_text: "its chunks and temperature have the published sizes",
  gpt_oss: "its YaRN rounds its bounds",
  kimi_k2: "its YaRN has the usual bounds",
  deepseek_v2: "its groups of experts are chosen by the best two",
}

/** Models that llama.cpp cannot load. */
const REFUSED: Readonly<Record<string, string>> = {
  qwen2_moe: "it knows no dense layer among those with experts",
  deepseek_v2_lite: "it tells the models without q_lora by their number of layers",
  moonlight: "it tells the models without q_lora by their number of layers",
}

// windows of 8 tokens are within every model's sliding windows and chunks
const CONTEXT = "8"
const TEXT = "Windows of eight bytes, each evaluated alone; half of each counts. ".repeat(6)

const reason = missingProgram("llama-perplexity")
describe.skipIf(reason !== undefined)(`converted files in llama.cpp [${reason ?? "found"}]`, () => {
  const text = join(folder, "text.txt")
  for (const name of HF_GOLDENS) {
    const note = REFUSED[name] ?? DIFFERENT[name]
    test(note === undefined ? name : `${name}: ${note}`, async () => {
      writeFileSync(text, TEXT)
      const source = join(folder, "model")
      rmSync(source, { recursive: true, force: true })
      withByteTokenizer(golden("hf", name), source)
      const path = join(folder, "model.gguf")
      await convertFolder(source, path, backend, { type: "f32" })
      const { status, text: log } = llamaCpp("llama-perplexity", [
        ...["-m", path, "-f", text, "-c", CONTEXT, "-b", CONTEXT, "-t", "1"],
        ...["-ctk", "f32", "-ctv", "f32", "-fa", "off"],
      ])
      if (name in REFUSED) {
        expect(status).not.toBe(0)
        return
      }
      expect(status === 0 ? "" : log).toBe("")
      const running = [...log.matchAll(/\[(\d+)\]([\d.]+),/g)]
      const theirs = Number(running.at(-1)?.[2])
      expect(theirs).toBeGreaterThan(1)
      if (name in DIFFERENT) return
      const windows = running.at(-1)?.[1] ?? "0"
      const args = ["--file", text, "--ctx", CONTEXT, "--windows", windows, "--precision", "f32"]
      const { out, status: ours } = await kt(["perplexity", path, ...args, "--json"])
      expect(ours).toBe(0)
      const { ppl } = JSON.parse(out) as { ppl: number }
      expect(Math.abs(ppl / theirs - 1)).toBeLessThan(1e-4)
    })
  }
})
