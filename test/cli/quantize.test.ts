import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { readdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { F32 } from "../../src/tensor/dtype.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import { type FixtureTensor, writeGguf } from "../fixtures/gguf.ts"
import { readWhole } from "../fixtures/sources.ts"
import { randomArray } from "../ops/harness.ts"
import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

const folder = temporaryFolder()
const at = (name: string): string => join(folder.path, name)
afterAll(() => folder[Symbol.dispose]())

const EXPERTS = 3
const COLUMNS = 256
const ROWS = 16

function values(length: number, seed: number): FixtureTensor["data"] & {} {
  return new Uint8Array(randomArray(length, seed).buffer)
}

beforeAll(() => {
  writeGguf(
    at("in.gguf"),
    {
      "general.architecture": "llama",
      "general.name": "test",
      "llama.block_count": 1,
      "llama.attention.head_count": 1,
      "llama.expert_count": EXPERTS,
    },
    [
      { name: "token_embd.weight", dtype: F32, shape: [8, COLUMNS], data: values(2048, 1) },
      { name: "blk.0.attn_norm.weight", dtype: F32, shape: [COLUMNS], data: values(COLUMNS, 2) },
      { name: "blk.0.attn_q.weight", dtype: F32, shape: [ROWS, COLUMNS], data: values(4096, 3) },
      {
        name: "blk.0.ffn_gate_exps.weight",
        dtype: F32,
        shape: [EXPERTS, ROWS, COLUMNS],
        data: values(EXPERTS * ROWS * COLUMNS, 4),
      },
    ],
  )
})

/** Importance of the attention's columns, and of each expert's: the first columns of expert e count e + 1 times. */
const ATTENTION = Float32Array.from({ length: COLUMNS }, (_, i) => (i < 64 ? 8 : 0.5))
const STACK = Float32Array.from({ length: EXPERTS * COLUMNS }, (_, i) =>
  i % COLUMNS < 64 ? 4 ** Math.floor(i / COLUMNS) : 0.25,
)

function legacyImatrix(path: string): void {
  const parts: Uint8Array[] = []
  const int = (n: number): void => void parts.push(new Uint8Array(Int32Array.of(n).buffer))
  const text = (s: string): void => {
    int(s.length)
    parts.push(new TextEncoder().encode(s))
  }
  const entry = (name: string, calls: number, data: Float32Array): void => {
    text(name)
    int(calls)
    int(data.length)
    parts.push(new Uint8Array(data.map((v) => v * calls).buffer))
  }
  int(2)
  entry("blk.0.attn_q.weight", 4, ATTENTION)
  entry("blk.0.ffn_gate_exps.weight", 8, STACK)
  int(17)
  text("a text")
  writeFileSync(path, Buffer.concat(parts))
}

function ggufImatrix(path: string): void {
  const tensor = (name: string, shape: number[], data: Float32Array): FixtureTensor => ({
    name,
    dtype: F32,
    shape,
    data: new Uint8Array(data.slice().buffer),
  })
  const counts = Float32Array.of(2, 4, 8)
  const sums = STACK.map((v, i) => v * counts[Math.floor(i / COLUMNS)]!)
  writeGguf(
    path,
    { "general.type": "imatrix", "imatrix.datasets": ["a text"], "imatrix.chunk_count": 17 },
    [
      tensor(
        "blk.0.attn_q.weight.in_sum2",
        [1, COLUMNS],
        ATTENTION.map((v) => v * 2),
      ),
      tensor("blk.0.attn_q.weight.counts", [1, 1], Float32Array.of(2)),
      tensor("blk.0.ffn_gate_exps.weight.in_sum2", [EXPERTS, COLUMNS], sums),
      tensor("blk.0.ffn_gate_exps.weight.counts", [EXPERTS, 1], counts),
    ],
  )
}

async function quantized(out: string, ...args: string[]): Promise<Map<string, Uint8Array>> {
  const { status, err } = await kt(["quantize", at("in.gguf"), at(out), ...args])
  expect(err).toBe("")
  expect(status).toBe(0)
  const gguf = openGguf(at(out), readWhole)
  return new Map([...gguf.names()].map((name) => [name, gguf.bytes(name).slice()]))
}

describe("kt quantize", () => {
  test("matrices in the new type, all else as it was", async () => {
    await quantized("q4.gguf", "Q4_K_M", "--tensor-type", "gate_exps=q8_0")
    const source = openGguf(at("in.gguf"), readWhole)
    const gguf = openGguf(at("q4.gguf"), readWhole)
    const types = [...gguf.names()].map((name) => [name, gguf.get(name)?.dtype.name])
    expect(types).toEqual([
      ["token_embd.weight", "Q6_K"],
      ["blk.0.attn_norm.weight", "F32"],
      ["blk.0.attn_q.weight", "Q4_K"],
      ["blk.0.ffn_gate_exps.weight", "Q8_0"],
    ])
    expect(gguf.bytes("blk.0.attn_norm.weight")).toEqual(source.bytes("blk.0.attn_norm.weight"))
    expect(gguf.get("blk.0.ffn_gate_exps.weight")?.shape).toEqual([EXPERTS, ROWS, COLUMNS])
    for (const [key, value] of source.metadata) expect(gguf.metadata.get(key)).toEqual(value)
    expect(gguf.metadata.get("general.file_type")).toBe(15)
    expect(gguf.metadata.get("general.quantization_version")).toBe(2)
    expect(readdirSync(folder.path).filter((name) => name.endsWith(".tmp"))).toEqual([])
  })

  test("an importance matrix in either format changes what it speaks of, expert by expert", async () => {
    legacyImatrix(at("i.dat"))
    ggufImatrix(at("i.gguf"))
    const plain = await quantized("plain.gguf", "Q4_K_S")
    const legacy = await quantized("legacy.gguf", "Q4_K_S", "--imatrix", at("i.dat"))
    const modern = await quantized("modern.gguf", "Q4_K_S", "--imatrix", at("i.gguf"))
    expect(modern).toEqual(legacy)
    expect(openGguf(at("modern.gguf"), readWhole).metadata.get("quantize.imatrix.dataset")).toBe(
      "a text",
    )
    expect(modern.get("token_embd.weight")).toEqual(plain.get("token_embd.weight")!)
    expect(modern.get("blk.0.attn_q.weight")).not.toEqual(plain.get("blk.0.attn_q.weight")!)
    const expert = (file: Map<string, Uint8Array>, e: number): Uint8Array => {
      const bytes = file.get("blk.0.ffn_gate_exps.weight")!
      return bytes.subarray((e * bytes.length) / EXPERTS, ((e + 1) * bytes.length) / EXPERTS)
    }
    // expert 0's columns are 1 and 0.25, expert 2's 16 and 0.25
    for (let e = 0; e < EXPERTS; e++) expect(expert(modern, e)).not.toEqual(expert(plain, e))
  })

  test("below three bits, with a warning unless there is an importance matrix", async () => {
    const args = ["quantize", at("in.gguf"), at("low.gguf"), "IQ2_XXS"]
    const plain = await kt(args)
    expect(plain.status).toBe(0)
    expect(plain.err).toContain("IQ2_XXS without --imatrix")
    const types = [...openGguf(at("low.gguf"), readWhole).names()].map(
      (name) => openGguf(at("low.gguf"), readWhole).get(name)?.dtype.name,
    )
    expect(types).toEqual(["Q5_K", "F32", "IQ2_XXS", "IQ2_XXS"])
    legacyImatrix(at("i.dat"))
    expect((await kt([...args, "--imatrix", at("i.dat")])).err).toBe("")
  })

  test("a split, and what would be done", async () => {
    const args = ["quantize", at("in.gguf"), at("parts.gguf"), "F16"]
    const { out, status } = await kt([...args, "--split-max-size", "10K", "--json"])
    expect(status).toBe(0)
    const { paths } = JSON.parse(out) as { paths: string[] }
    expect(paths.length).toBeGreaterThan(1)
    expect(openGguf(paths[0]!, readWhole).files).toHaveLength(paths.length)
    const dry = await kt([
      "quantize",
      at("in.gguf"),
      at("dry.gguf"),
      "Q3_K_M",
      "--dry-run",
      "--json",
    ])
    const { tensors } = JSON.parse(dry.out) as { tensors: { name: string; to: string }[] }
    expect(tensors.map(({ to }) => to)).toEqual(["Q6_K", "F32", "Q3_K", "Q3_K"])
    expect(readdirSync(folder.path)).not.toContain("dry.gguf")
  })

  test.each([
    [["in.gguf", "o.gguf", "Q9"], 1, /"Q9" is no file type/],
    [["in.gguf", "in.gguf", "Q8_0"], 1, /in\.gguf is the input itself/],
    [
      ["in.gguf", "o.gguf", "Q8_0", "--tensor-type", "x"],
      2,
      /--tensor-type x: expected REGEX=TYPE/,
    ],
    [["in.gguf", "o.gguf", "Q8_0", "--tensor-type", "(=q8_0"], 2, /--tensor-type \(=q8_0/],
    [["in.gguf", "o.gguf", "Q8_0", "--split-max-size", "-1"], 2, /expected a size/],
    [["in.gguf", "o.gguf", "Q4_K_M", "--imatrix", "in.gguf"], 1, /holds no importance values/],
    [["in.gguf", "o.gguf", "Q4_K_M", "--imatrix", "no.dat"], 1, /no\.dat: no such file/],
  ] as const)("%j", async (args, status, message) => {
    const result = await kt(["quantize", ...args], { cwd: folder.path })
    expect(result.err).toMatch(message)
    expect(result.status).toBe(status)
    expect(readdirSync(folder.path).filter((name) => /^\.?o\.gguf/.test(name))).toEqual([])
  })

  test("a model quantised already needs to be asked for", async () => {
    const args = ["quantize", golden("gguf/gemma3-q5_0.gguf"), at("again.gguf"), "Q8_0"]
    const refused = await kt(args)
    expect(refused.status).toBe(1)
    expect(refused.err).toMatch(/is Q5_0, quantised already[^]*--allow-requantize/)
    expect((await kt([...args, "--allow-requantize"])).status).toBe(0)
  })
})
