import { describe, expect, test } from "bun:test"

import { samplingFrom } from "../../src/cli/sampling.ts"
import { breakerTokens, readSamplers } from "../../src/server/samplers.ts"
import { at, byteTokenizer, json, testServer } from "./fakes.ts"

const FIELDS = {
  typical_p: 0.8,
  top_n_sigma: 1.5,
  xtc_probability: 0.5,
  xtc_threshold: 0.2,
  dynatemp_range: 0.3,
  dynatemp_exponent: 2,
  dry_multiplier: 0.8,
  dry_base: 1.5,
  dry_allowed_length: 3,
  dry_penalty_last_n: -1,
  dry_sequence_breakers: ["ab"],
  mirostat: 2,
  mirostat_tau: 4,
  mirostat_eta: 0.2,
  repeat_last_n: 10,
  samplers: ["penalties", "top-k", "typical_p", "temp"],
}
const WANTED = {
  typicalP: 0.8,
  topNSigma: 1.5,
  xtcProbability: 0.5,
  xtcThreshold: 0.2,
  dynatempRange: 0.3,
  dynatempExponent: 2,
  dryMultiplier: 0.8,
  dryBase: 1.5,
  dryAllowedLength: 3,
  dryPenaltyLastN: -1,
  dryBreakers: [[97, 98]],
  mirostat: 2,
  mirostatTau: 4,
  mirostatEta: 0.2,
  penaltyLastN: 10,
  samplers: ["penalties", "top_k", "typ_p", "temperature"],
} as const

const messages = [{ role: "user", content: "hi" }]
/** Every route that takes samplers, and a body with these fields. */
const ROUTES: readonly [string, (fields: object) => object][] = [
  ["/completion", (fields) => ({ prompt: "a", ...fields })],
  ["/v1/completions", (fields) => ({ prompt: "a", ...fields })],
  ["/v1/chat/completions", (fields) => ({ messages, ...fields })],
  ["/api/generate", (fields) => ({ model: "fake", prompt: "a", stream: false, options: fields })],
  ["/api/chat", (fields) => ({ model: "fake", messages, stream: false, options: fields })],
]

describe("samplers", () => {
  for (const [path, body] of ROUTES) {
    test(`of ${path} reach the engine`, async () => {
      const { post, client } = testServer()
      expect((await post(path, body(FIELDS))).status).toBe(200)
      expect(client.calls[0]?.params).toMatchObject(WANTED)
      await post(path, body({ samplers: "kt", top_n_sigma: -1, typical_p: null }))
      const { samplers, topNSigma, typicalP, dryBreakers } = client.calls[1]!.params
      expect([samplers, topNSigma, typicalP, dryBreakers] as unknown[]).toEqual([
        ["top_k", "temperature"],
        0,
        undefined,
        undefined,
      ])
    })

    test(`of ${path} are checked by name and value`, async () => {
      const { post } = testServer()
      for (const [field, value] of [
        ["typical_p", 1.5],
        ["xtc_probability", -0.1],
        ["xtc_threshold", 2],
        ["dynatemp_range", -1],
        ["dry_multiplier", -2],
        ["dry_allowed_length", 1.5],
        ["dry_penalty_last_n", -2],
        ["mirostat", 3],
        ["mirostat_tau", "x"],
        ["repeat_last_n", -5],
        ["samplers", ["top_q"]],
        ["samplers", "kk"],
        ["samplers", []],
        ["dry_sequence_breakers", [""]],
      ] as const) {
        const response = await post(path, body({ [field]: value }))
        expect(response.status).toBe(400)
        const answer = JSON.stringify(await json(response))
        expect(answer).toContain(field)
      }
    })
  }

  test("by name, alias and letter", () => {
    expect(readSamplers(["DRY", "min-p", "topk", "nucleus"])).toEqual([
      "dry",
      "min_p",
      "top_k",
      "top_p",
    ])
    expect(readSamplers("edskypmxt")).toHaveLength(9)
    expect(readSamplers("kz")).toContain('"z" is no sampler')
    expect(readSamplers(["xtc", "xtc"])).toContain("named once")
  })

  test("breakers are tokens that hold them, or begin them and go on", () => {
    const tokenizer = byteTokenizer
    expect(breakerTokens(tokenizer, ["a"])).toEqual([[97]])
    expect(breakerTokens(tokenizer, ["abc", "\n"])).toEqual([[97, 98, 99], [10]])
    expect(breakerTokens(tokenizer, ["a"])).toBe(breakerTokens(tokenizer, ["a"]))
  })

  test("defaults of the command line and of a model's folder", async () => {
    const none = { "dry-sequence-breaker": [] } as unknown as Parameters<typeof samplingFrom>[0]
    expect(samplingFrom({ ...none, "typical-p": 0.5, samplers: "kt" })).toMatchObject({
      typicalP: 0.5,
      samplers: ["top_k", "temperature"],
      temperature: 0.8,
    })
    expect(samplingFrom({ ...none, samplers: "temp;min_p" }).samplers).toEqual([
      "temperature",
      "min_p",
    ])
    expect(() => samplingFrom({ ...none, samplers: "top_q" })).toThrow("--samplers top_q")
    const folder = `${process.env["TMPDIR"] ?? "/tmp"}/kt-samplers-${process.pid}`
    await Bun.write(
      `${folder}/generation_config.json`,
      JSON.stringify({ temperature: 0.6, top_k: 20, typical_p: 0.9, eos_token_id: 2 }),
    )
    await Bun.write(`${folder}/x.gguf`, "weights")
    expect(samplingFrom({ ...none, "top-k": 5 }, 7, `${folder}/x.gguf`)).toMatchObject({
      temperature: 0.6,
      topK: 5,
      typicalP: 0.9,
      maxTokens: 7,
    })
  })
})

test("properties show the order", async () => {
  const { app } = testServer()
  const props = await json(app.request("/props"))
  expect(at(props, "default_generation_settings", "params", "samplers")).toHaveLength(9)
})
