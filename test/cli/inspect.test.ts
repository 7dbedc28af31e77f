import { afterAll, describe, expect, test } from "bun:test"
import { join } from "node:path"

import { writeGguf } from "../fixtures/gguf.ts"
import { readGoldenTensors } from "../fixtures/golden-tensors.ts"
import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

const folder = temporaryFolder()
afterAll(() => folder[Symbol.dispose]())

interface Inspected {
  readonly tensorCount: number
  readonly files: readonly string[]
  readonly architecture: string | null
  readonly metadata: Readonly<Record<string, unknown>>
  readonly tensors: readonly { name: string; type: string; shape: number[]; bytes: number }[]
}

async function inspected(...args: string[]): Promise<Inspected> {
  const { out, err, status } = await kt(["inspect", ...args, "--json"])
  expect(err).toBe("")
  expect(status).toBe(0)
  return JSON.parse(out) as Inspected
}

describe("kt inspect", () => {
  test("a GGUF: metadata and tensors", async () => {
    const file = golden("gguf/gemma3-q5_0.gguf")
    const all = await inspected(file)
    expect(all.architecture).toBe("gemma3")
    expect(all.metadata["gemma3.block_count"]).toBe(6)
    expect(all.metadata["tokenizer.ggml.tokens"]).toMatchObject({ length: 352 })
    expect(all.tensors).toHaveLength(all.tensorCount)
    const norm = all.tensors.find(({ name }) => name === "blk.0.attn_norm.weight")
    expect(norm).toMatchObject({ type: "F32", shape: [64], bytes: 256 })
    const full = await inspected(file, "--full", "--filter", "ggml.tokens$")
    expect(full.metadata["tokenizer.ggml.tokens"]).toHaveLength(352)
    expect(full.tensors).toEqual([])
    const { out } = await kt(["inspect", file, "--filter", "blk\\.0\\.attn_q"])
    expect(out).toMatch(/blk\.0\.attn_q\.weight\s+Q5_0\s+\[64, 64\]\s+2\.75 KiB/)
    expect(out).not.toContain("blk.1")
  })

  test("a split, a folder of safetensors, and a vocabulary alone", async () => {
    const split = await inspected(golden("gguf/qwen3moe-split-q8_0-00001-of-00002.gguf"))
    expect(split.files).toHaveLength(2)
    expect(split.tensors).toHaveLength(27)
    const sharded = await inspected(golden("hf/mixtral"), "--no-metadata")
    expect(sharded.architecture).toBe("mixtral")
    expect(sharded.files).toHaveLength(2)
    expect(sharded.metadata).toBeUndefined()
    const vocabulary = join(folder.path, "vocab.gguf")
    writeGguf(vocabulary, { "general.architecture": "llama", "tokenizer.ggml.model": "llama" })
    expect((await inspected(vocabulary)).tensorCount).toBe(0)
  })

  test("a bad expression is a wrong command line", async () => {
    const { err, status } = await kt(["inspect", golden("gguf/gemma3-q5_0.gguf"), "--filter", "("])
    expect(status).toBe(2)
    expect(err).toContain("--filter (")
  })
})

describe("kt tensor", () => {
  test("a quantised tensor in F32, as the reference dequantises it", async () => {
    const vectors = readGoldenTensors(golden("quant/q4_k.safetensors"))
    const { bytes } = vectors.get("quant")!
    const { Q4_K } = await import("../../src/tensor/dtype.ts")
    const file = join(folder.path, "q4.gguf")
    writeGguf(file, { "general.architecture": "llama" }, [
      { name: "w.weight", dtype: Q4_K, shape: [6, 512], data: bytes },
    ])
    const out = join(folder.path, "w.safetensors")
    const { status, err } = await kt(["tensor", file, "w.weight", "--out", out])
    expect(err).toBe("")
    expect(status).toBe(0)
    const written = readGoldenTensors(out).get("w.weight")!
    expect(written).toMatchObject({ dtype: "F32", shape: [6, 512] })
    expect(written.f32()).toEqual(vectors.get("dequant")!.f32())
  })

  test("an unknown name is an error with near ones", async () => {
    const file = golden("gguf/gemma3-q5_0.gguf")
    const args = [
      "tensor",
      file,
      "blk.0.attn_qq.weight",
      "--out",
      join(folder.path, "no.safetensors"),
    ]
    const { status, err } = await kt(args)
    expect(status).toBe(1)
    expect(err).toContain("did you mean blk.0.attn_q.weight")
  })
})
