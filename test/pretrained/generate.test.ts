import { describe, expect, test } from "bun:test"
import { join } from "node:path"

import {
  AutoConfig,
  AutoModelForCausalLM,
  AutoTokenizer,
  ConfigError,
  FormatError,
  optimizeAndLoadGguf,
  prefillAndGenerate,
  type PretrainedModel,
} from "../../src/index.ts"
import { readGoldenTensors } from "../fixtures/golden-tensors.ts"
import { golden, ROOT } from "../setup.ts"

function ints(path: string, name: string): Int32Array {
  const bytes = readGoldenTensors(path).get(name)?.bytes
  if (bytes === undefined) throw new Error(`${path} has no ${name}`)
  return new Int32Array(bytes.buffer)
}

const GGUF = golden("gguf", "llama-tied-bf16.gguf")
const REFERENCE = golden("gguf", "llama-tied-bf16.golden.safetensors")
const prompt = ints(REFERENCE, "input_ids")
const greedy = [...ints(REFERENCE, "greedy_ids")]

async function loaded(): Promise<PretrainedModel> {
  const config = await AutoConfig.fromPretrained(GGUF)
  const model = await AutoModelForCausalLM.fromConfig(config)
  await optimizeAndLoadGguf(model, undefined, GGUF, config, { precision: "f32", threads: 1 })
  return model
}

describe("the five lines of KTransformers' README", () => {
  test("from a GGUF, with a rule file", async () => {
    const rules = join(ROOT, "rules", "llama.yaml")
    const config = await AutoConfig.fromPretrained(GGUF)
    using model = await AutoModelForCausalLM.fromConfig(config)
    await optimizeAndLoadGguf(model, rules, GGUF, config, { precision: "f32", threads: 1 })
    const tokenizer = await AutoTokenizer.fromPretrained(GGUF)
    const seen: number[] = []
    const generated = await prefillAndGenerate(model, tokenizer, prompt, {
      maxNewTokens: greedy.length,
      eosTokenId: [],
      onToken: (id) => seen.push(id),
    })
    expect([...generated.ids]).toEqual(greedy)
    expect(seen).toEqual(greedy)
    expect(generated.text).toBe(tokenizer.decode(Int32Array.from(greedy), { skipSpecial: true }))
    expect(generated.promptTokens).toBe(prompt.length)
    expect(generated.prefillSeconds).toBeGreaterThan(0)
  })

  test.each(["qwen3", "qwen3_next"])("from a folder of safetensors: %s", async (name) => {
    const folder = golden("hf", name)
    const reference = join(folder, "golden.safetensors")
    const config = await AutoConfig.fromPretrained(folder)
    using model = await AutoModelForCausalLM.fromConfig(config)
    await optimizeAndLoadGguf(model, undefined, folder, config, { precision: "f32", threads: 1 })
    const first = ints(reference, "input_ids").subarray(0, 32)
    const out = await model.generate(first, { maxNewTokens: 8, eosTokenId: [] })
    expect([...out]).toEqual([...first, ...ints(reference, "greedy_ids").subarray(0, 8)])
  })
})

describe("generate", () => {
  test("stops after an end-of-text id, which it returns", async () => {
    using model = await loaded()
    const stop = greedy[2] as number
    const out = await model.generate(prompt, { maxNewTokens: 8, eosTokenId: stop })
    expect([...out.subarray(prompt.length)]).toEqual(greedy.slice(0, greedy.indexOf(stop) + 1))
  })

  test("the same seed draws the same ids; calls that overlap take turns", async () => {
    using model = await loaded()
    const options = { maxNewTokens: 12, eosTokenId: [], temperature: 1.5, seed: 7 }
    const [a, b, plain] = await Promise.all([
      model.generate(prompt, options),
      model.generate(prompt, options),
      model.generate(prompt, { maxNewTokens: 8, eosTokenId: [] }),
    ])
    expect([...a]).toEqual([...b])
    expect([...plain.subarray(prompt.length)]).toEqual(greedy)
    expect([...a]).not.toEqual([...plain, ...a.subarray(plain.length)])
  })

  test("needs weights and sensible options", async () => {
    const bare = await AutoModelForCausalLM.fromConfig(await AutoConfig.fromPretrained(GGUF))
    expect(bare.generate(prompt)).rejects.toThrow("the model has no weights yet")
    using model = await loaded()
    const failure = async (options: object): Promise<unknown> =>
      model.generate(prompt, options).catch((error: unknown) => error)
    expect(await failure({ maxNewTokens: 0 })).toBeInstanceOf(ConfigError)
    expect(await failure({ temperature: -1 })).toBeInstanceOf(ConfigError)
    const long = new Int32Array(model.config.max_position_embeddings + 1)
    expect(await model.generate(long).catch((error: unknown) => error)).toBeInstanceOf(ConfigError)
    // none of which keeps it from working
    const out = await model.generate(prompt, { maxNewTokens: 1, eosTokenId: [] })
    expect(out.at(-1)).toBe(greedy[0] as number)
  })
})

test("a path that is not there, and a folder without a model, are named", async () => {
  const failure = (path: string): Promise<unknown> =>
    AutoConfig.fromPretrained(path).catch((error: unknown) => error)
  expect(await failure("/nonexistent")).toBeInstanceOf(FormatError)
  expect(String(await failure("/nonexistent"))).toContain("/nonexistent: no such file or folder")
  expect(await failure(join(ROOT, "rules"))).toBeInstanceOf(FormatError)
})
