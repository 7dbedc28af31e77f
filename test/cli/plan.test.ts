import { afterAll, describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"

import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

const folder = temporaryFolder()
afterAll(() => folder[Symbol.dispose]())
const at = (name: string): string => join(folder.path, name)

const MODEL = golden("gguf", "qwen3moe-mixed.gguf")
const RATES = ["--gpu-bandwidth", "1000", "--ram-bandwidth", "50"]

describe("kt plan", () => {
  test("for a GPU that is not here: a table, JSON and a rule file that plans the same", async () => {
    const sizes = ["--vram", "1G", "--ram", "4G", "--ctx", "512", ...RATES]
    const shown = await kt(["plan", MODEL, ...sizes])
    expect(shown).toMatchObject({ status: 0, err: "" })
    expect(shown.out).toMatch(/^DEVICE .*WHAT\ncuda:0 .*layers 0-8, experts of layers 0-8/)
    expect(shown.out).toMatch(/context 512 tokens; about \d+ tokens\/s for one sequence\n$/)
    const yaml = at("made.yaml")
    const made = await kt(["plan", MODEL, ...sizes, "--yaml", yaml, "--json"])
    expect(readFileSync(yaml, "utf8")).toContain('generate_device: "cuda:0"')
    const again = await kt(["plan", MODEL, ...sizes, "--rules", yaml, "--json"])
    expect(JSON.parse(again.out)).toEqual(JSON.parse(made.out))
    const { devices, contextLength } = JSON.parse(made.out)
    expect(contextLength).toBe(512)
    expect(devices).toMatchObject([{ device: "cuda:0", bandwidth: 1e12, freeBytes: 1e9 }])
  })

  test("rules with the experts on the CPU, and two GPUs", async () => {
    const hybrid = ["--rules", "qwen3-moe-gpu", "--vram", "1G", "--ram", "4G", ...RATES]
    const { out } = await kt(["plan", MODEL, ...hybrid, "--json"])
    expect(JSON.parse(out).devices).toMatchObject([
      { device: "cuda:0", what: "layers 0-8, head" },
      { device: "cpu", what: "experts of layers 0-8, embeddings", kvBytes: 0 },
    ])
    const two = await kt(["plan", MODEL, "--vram", "1G,1G", "--ram", "4G", ...RATES, "--json"])
    expect(JSON.parse(two.out).devices.map((row: { device: string }) => row.device)).toEqual([
      "cuda:0",
      "cuda:1",
    ])
  })

  test("what does not fit is an error with the sizes", async () => {
    const small = await kt([
      "plan",
      MODEL,
      "--rules",
      "qwen3-moe-gpu",
      "--vram",
      "100M",
      "--ram",
      "4G",
      ...RATES,
    ])
    expect(small.status).toBe(1)
    expect(small.err).toMatch(/not enough memory on cuda:0: .* are needed, 95 MiB are free/)
    const nothing = await kt([
      "plan",
      MODEL,
      "--vram",
      "100M",
      "--ram",
      "4G",
      "--yaml",
      at("no.yaml"),
    ])
    expect(nothing.err).toContain("nothing was placed automatically")
  })
})

test("kt experts record: what a text uses, for kt plan to place by", async () => {
  const counts = at("experts.json")
  const text = ["--file", "-", "--out", counts, "--window", "32"]
  const recorded = await kt(["experts", "record", MODEL, ...text, "--json"], {
    stdin: "the text whose experts are counted, ".repeat(6),
  })
  expect(recorded.status).toBe(0)
  const { tokens, layers } = JSON.parse(readFileSync(counts, "utf8"))
  expect(Object.keys(layers)).toHaveLength(9)
  for (const uses of Object.values(layers) as number[][])
    expect(uses.reduce((a, b) => a + b, 0)).toBe(2 * tokens)
  const planned = await kt([
    "plan",
    MODEL,
    "--vram",
    "1G",
    "--ram",
    "4G",
    "--expert-stats",
    counts,
    ...RATES,
  ])
  expect(planned).toMatchObject({ status: 0, err: "" })
  const dense = golden("gguf", "llama-f16.gguf")
  const refused = await kt(["experts", "record", dense, ...text], { stdin: "some words of a text" })
  expect(refused.err).toContain("the model has no experts")
})
