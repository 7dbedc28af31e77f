import { afterAll, describe, expect, test } from "bun:test"
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { type Shape, SHAPES, sizedShape } from "../../bench/shapes.ts"
import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

const folder = temporaryFolder()
afterAll(() => folder[Symbol.dispose]())
const at = (name: string): string => join(folder.path, name)

const MODEL = golden("gguf", "qwen3moe-mixed.gguf")
const RATES = ["--gpu-bandwidth", "1000", "--ram-bandwidth", "50"]

describe("kt plan", () => {
  test("for a GPU that is not here: a table, JSON and a rule file that plans the same", async () => {
    const sizes = ["--vram", "3G", "--ram", "4G", "--ctx", "512", ...RATES]
    const shown = await kt(["plan", MODEL, ...sizes])
    expect(shown).toMatchObject({ status: 0, err: "" })
    expect(shown.out).toMatch(/^DEVICE .*WHAT\ncuda:0 .*layers 0-8, experts of layers 0-8/)
    expect(shown.out).toMatch(
      /context 512 tokens; about \d+ tokens\/s for one sequence \(reading weights \d.* ms, 102 launches 0\.51 ms\)\n$/,
    )
    const yaml = at("made.yaml")
    const made = await kt(["plan", MODEL, ...sizes, "--yaml", yaml, "--json"])
    expect(readFileSync(yaml, "utf8")).toContain('generate_device: "cuda:0"')
    const again = await kt(["plan", MODEL, ...sizes, "--rules", yaml, "--json"])
    expect(JSON.parse(again.out)).toEqual(JSON.parse(made.out))
    const { devices, contextLength } = JSON.parse(made.out)
    expect(contextLength).toBe(512)
    expect(devices).toMatchObject([{ device: "cuda:0", bandwidth: 1e12, freeBytes: 3e9 }])
  })

  test("rules with the experts on the CPU, and two GPUs", async () => {
    const hybrid = ["--rules", "qwen3-moe-gpu", "--vram", "3G", "--ram", "4G", ...RATES]
    const { out } = await kt(["plan", MODEL, ...hybrid, "--json"])
    expect(JSON.parse(out).devices).toMatchObject([
      { device: "cuda:0", what: "layers 0-8, head" },
      { device: "cpu", what: "experts of layers 0-8, embeddings", kvBytes: 0 },
    ])
    const two = await kt(["plan", MODEL, "--vram", "3G,3G", "--ram", "4G", ...RATES, "--json"])
    expect(JSON.parse(two.out).devices.map((row: { device: string }) => row.device)).toEqual([
      "cuda:0",
      "cuda:1",
    ])
  })

  test("from config.json alone: DeepSeek-V3's shape with 139000 tokens in 24 GB", async () => {
    const sized = sizedShape(SHAPES["deepseek-v3"] as Shape, undefined, 129_280)
    writeFileSync(at("config.json"), JSON.stringify(sized))
    const plan = (...more: string[]): ReturnType<typeof kt> =>
      kt(
        [
          "plan",
          folder.path,
          "--type",
          "Q4_K_M",
          "--vram",
          "24G",
          "--ram",
          "512G",
          "--ctx",
          "139000",
        ].concat(RATES, "--json", more),
      )
    const shown = await plan("--max-batch-size", "1")
    expect(shown).toMatchObject({ status: 0, err: "" })
    const { devices, contextLength, step } = JSON.parse(shown.out)
    expect(contextLength).toBe(139_000)
    const [gpu, cpu] = devices
    expect(gpu.what).toMatch(/^layers 0-60, \d+ experts of others, head$/)
    expect(cpu).toMatchObject({ what: "experts of layers 3-60, embeddings", kvBytes: 0 })
    // pages of 64 latents of 576 halves in 61 layers
    expect(gpu.kvBytes).toBe(Math.ceil(139_000 / 64) * 64 * 576 * 2 * 61)
    expect(gpu.totalBytes).toBeLessThan(24e9)
    // a larger chunk takes more, a longer context does not
    const long = await plan("--max-batch-size", "1", "--ctx", "60000")
    expect(JSON.parse(long.out).contextLength).toBe(60_000)
    expect(JSON.parse(long.out).devices[0].workspaceBytes).toBe(gpu.workspaceBytes)
    const wide = await plan("--max-batch-size", "1", "--chunk-size", "1024")
    expect(JSON.parse(wide.out).devices[0].workspaceBytes).toBeGreaterThan(gpu.workspaceBytes)
    expect(step.handovers).toBe(58)
    expect(1 / (step.readSeconds + step.launchSeconds + step.handoverSeconds)).toBeCloseTo(
      step.tokensPerSecond,
    )
    const missing = await kt(["plan", at("nothing"), "--type", "Q4_K_M"])
    expect(missing.status).toBe(1)
    expect(missing.err).toContain("config.json")
  }, 30_000)

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
    "3G",
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
