import { afterAll, describe, expect, test } from "bun:test"
import { readdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { openGguf } from "../../src/weights/gguf.ts"
import { withByteTokenizer } from "../convert/byte-tokenizer.ts"
import { readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

const folder = temporaryFolder()
const at = (name: string): string => join(folder.path, name)
afterAll(() => folder[Symbol.dispose]())

describe("kt convert", () => {
  test("a folder with a tokenizer, quantised on the way", async () => {
    withByteTokenizer(golden("hf", "qwen3"), at("qwen3"))
    const { status, out, err } = await kt(["convert", at("qwen3"), at("q.gguf"), "--type", "q8_0"])
    expect(err).toBe("")
    expect(status).toBe(0)
    expect(out).toContain("qwen3, Q8_0, 35 tensors")
    const gguf = openGguf(at("q.gguf"), readWhole)
    expect(gguf.get("token_embd.weight")?.dtype.name).toBe("F16") // rows of 48 fit no block
    expect(gguf.get("blk.0.attn_output.weight")?.dtype.name).toBe("Q8_0")
    expect(gguf.get("blk.0.attn_norm.weight")?.dtype.name).toBe("F32")
    expect(gguf.metadata.get("general.file_type")).toBe(7)
    expect(gguf.metadata.get("tokenizer.ggml.tokens")).toHaveLength(256)
    const text = await kt(["tokenize", at("q.gguf"), "-p", "héllo", "--json"])
    expect(JSON.parse(text.out)).toMatchObject({ ids: [104, 195, 169, 108, 108, 111] })
  })

  test("without a tokenizer and beyond the format's keys, with a warning; in parts", async () => {
    const args = ["convert", golden("hf", "llama_dynamic"), at("d.gguf"), "--json"]
    const { status, out, err } = await kt([...args, "--split-max-size", "50K"])
    expect(status).toBe(0)
    expect(err).toContain("has no tokenizer.json")
    expect(err).toContain("no keys for this model's rope")
    const result = JSON.parse(out) as { paths: string[]; fileType: string; extraKeys: string[] }
    expect(result.fileType).toBe("BF16")
    expect(result.extraKeys).toEqual(["rope"])
    expect(result.paths.length).toBeGreaterThan(1)
    const gguf = openGguf(result.paths[0]!, readWhole)
    expect(gguf.files).toHaveLength(result.paths.length)
    expect(JSON.parse(String(gguf.metadata.get("kt.config")))).toMatchObject({
      rope: { type: "dynamic", factor: 2.5 },
    })
  })

  test("what cannot be converted leaves no file", async () => {
    withByteTokenizer(golden("hf", "llama"), at("bad"))
    writeFileSync(at("bad/config.json"), JSON.stringify({ model_type: "unknown" }))
    const unknown = await kt(["convert", at("bad"), at("o.gguf")])
    expect(unknown.status).toBe(1)
    expect(unknown.err).toContain('model_type: "unknown" is unknown')
    const type = await kt(["convert", golden("hf", "llama"), at("o.gguf"), "--type", "q9"])
    expect(type.err).toContain('"q9" is no file type')
    const place = await kt(["convert", golden("hf", "llama"), at("no/o.gguf")])
    expect(place.err).toContain("cannot be written")
    expect(readdirSync(folder.path).filter((name) => name.includes("o.gguf"))).toEqual([])
  })
})
