import { afterAll, describe, expect, test } from "bun:test"

import { startEngine } from "../../src/worker/client.ts"
import type { EngineClient, GenerateParams, TokenEvent } from "../../src/worker/protocol.ts"
import { GREEDY } from "../engine/fake-runner.ts"
import { type GoldenModel, goldenModels } from "../engine/golden-models.ts"
import { tableOf } from "../engine/token-table.ts"

const model = goldenModels().find(({ name }) => name === "gguf/llama-f16") as GoldenModel
const open: EngineClient[] = []
afterAll(async () => {
  for (const client of open) await client.close()
})

async function start(options: Record<string, unknown> = {}): Promise<EngineClient> {
  const client = await startEngine({ model: model.path, threads: 1, pageSize: 8, ...options })
  open.push(client)
  return client
}

async function tokens(stream: AsyncIterable<readonly TokenEvent[]>): Promise<number[]> {
  const out: number[] = []
  for await (const events of stream) {
    for (const event of events) {
      if (event.finish === "error") throw new Error(event.error)
      out.push(event.token)
    }
  }
  return out
}

describe("a model in the Worker", () => {
  test("greedy ids are the reference's, eight streams at once", async () => {
    const client = await start({ precision: "f32" })
    expect(client.info).toMatchObject({ architecture: "llama", quantization: "F16", device: "cpu" })
    const prompt = model.prompts[0] as Int32Array
    const params = { ...GREEDY, maxTokens: 8 }
    const streams = Array.from({ length: 8 }, () => tokens(client.generate(prompt, params)))
    for (const ids of await Promise.all(streams)) expect(ids).toEqual([...model.greedy[0]!])
  })

  test("seeds are reproducible beside other sequences; stop tokens end a sequence", async () => {
    const client = await start()
    const prompt = model.prompts[0] as Int32Array
    const params: GenerateParams = { ...GREEDY, temperature: 1.5, maxTokens: 30, seed: 4 }
    const alone = await tokens(client.generate(prompt, params))
    const others = [5, 6, 7].map((seed) => tokens(client.generate(prompt, { ...params, seed })))
    expect(await tokens(client.generate(prompt, params))).toEqual(alone)
    for (const ids of await Promise.all(others)) expect(ids).not.toEqual(alone)
    const stop = alone[10] as number
    const cut = await tokens(client.generate(prompt, { ...params, stopTokens: [stop] }))
    expect(cut).toEqual(alone.slice(0, alone.indexOf(stop) + 1))
  })

  test("tells where its modules are and how its experts are used", async () => {
    const moe = goldenModels().find(({ name }) => name.startsWith("gguf/qwen3moe-mixed"))!
    const client = await start({ model: moe.path })
    const before = await client.details()
    const total = ({ counts }: { readonly counts: readonly number[] }): number =>
      counts.reduce((a, b) => a + b, 0)
    const prompt = moe.prompts[0] as Int32Array
    await tokens(client.generate(prompt, { ...GREEDY, maxTokens: 40 }))
    const { modules, experts } = await client.details()
    expect(modules).toContainEqual(expect.objectContaining({ path: "lm_head", device: "cpu" }))
    const ruled = modules.filter(({ rule }) => rule !== "")
    expect(ruled.length).toBeGreaterThan(0)
    for (const { rule } of ruled) expect(rule).toMatch(/^[\w.-]+\.yaml:\d+: rule \d+$/)
    const bytes = modules.flatMap(({ types }) => types.map(([, size]) => size))
    expect(bytes.reduce((a, b) => a + b, 0)).toBeGreaterThan(0.9 * client.info.weightBytes)
    expect(experts.length).toBeGreaterThan(1)
    for (const [i, layer] of experts.entries()) {
      const used = total(layer) - total(before.experts[i]!)
      // the prompt's tokens each, and of those that come alone two, for 16 each; each goes to some experts
      expect(used).toBeGreaterThan(0)
      expect(used % (prompt.length + 32)).toBe(0)
    }
  })

  test("an abort costs at most one step", async () => {
    const client = await start()
    for await (const _ of client.generate(model.prompts[0] as Int32Array, {
      ...GREEDY,
      maxTokens: 100,
    }))
      break
    const { stepsTotal, running } = await client.stats()
    expect(running).toBe(0)
    await Bun.sleep(20)
    expect((await client.stats()).stepsTotal).toBe(stepsTotal)
  })

  test("a grammar is kept to, greedy or drawn, beside sequences that have none", async () => {
    const client = await start()
    const prompt = model.prompts[0] as Int32Array
    const stop = client.info.vocabSize - 1
    // every token is a letter: the vocabulary's first ones a to z
    const letters = Array.from({ length: client.info.vocabSize }, (_, id) =>
      String.fromCharCode(97 + (id % 26)),
    )
    letters[stop] = "</s>"
    client.setVocabulary(Promise.resolve(tableOf(letters)))
    const params: GenerateParams = { ...GREEDY, maxTokens: 60, stopTokens: [stop], logprobs: 2 }
    const regex = (pattern: string): string =>
      JSON.stringify({ type: "structural_tag", format: { type: "regex", pattern } })
    const free = tokens(client.generate(prompt, { ...params, maxTokens: 30 }))
    const texts = [0, 1.5].map(async (temperature) => {
      const grammar = regex("(abc|xyz){4}")
      const ids = await tokens(client.generate(prompt, { ...params, temperature, grammar }))
      return ids.map((id) => letters[id]).join("")
    })
    for (const text of await Promise.all(texts)) expect(text).toMatch(/^(abc|xyz){4}<\/s>$/)
    expect(await free).toEqual(await tokens(client.generate(prompt, { ...params, maxTokens: 30 })))

    // what is written already is the grammar's beginning
    const begun = { ...params, grammar: regex("(abc|xyz){2}"), grammarWritten: "abcx" }
    const rest = await tokens(client.generate(prompt, begun))
    expect(rest.map((id) => letters[id]).join("")).toBe("yz</s>")
    const wrong = { ...begun, grammarWritten: "abd" }
    const [end] = (await Array.fromAsync(client.generate(prompt, wrong))).flat()
    expect(end).toMatchObject({ finish: "error", isRefused: true })
    expect(end?.error).toContain("does not begin what the grammar or the schema allows")

    // log-probabilities are the model's own, whatever the grammar forbids
    const first = async (extra: Partial<GenerateParams>): Promise<TokenEvent> => {
      for await (const [event] of client.generate(prompt, { ...params, ...extra }))
        return event as TokenEvent
      throw new Error("nothing came")
    }
    const plain = await first({})
    const other = letters.findIndex((letter) => letter !== letters[plain.token])
    const forced = await first({ grammar: regex(letters[other] as string) })
    expect(letters[forced.token]).toBe(letters[other] as string)
    expect(forced.topLogprobs).toEqual(plain.topLogprobs as never)

    const refused = await Array.fromAsync(
      client.generate(prompt, { ...params, grammar: regex("((") }),
    )
    expect(refused.flat()).toMatchObject([{ finish: "error", isRefused: true }])
    expect(refused.flat()[0]?.error).toContain("parenthesis")
    expect((await client.stats()).running).toBe(0)
  })

  test("reasoning ends after as many tokens as it may have, with and without a grammar", async () => {
    const client = await start()
    const prompt = model.prompts[0] as Int32Array
    const letters = Array.from({ length: client.info.vocabSize }, (_, id) =>
      String.fromCharCode(97 + (id % 26)),
    )
    client.setVocabulary(Promise.resolve(tableOf(letters)))
    const params: GenerateParams = { ...GREEDY, maxTokens: 12 }
    const free = await tokens(client.generate(prompt, params))
    const [x, y] = [letters.indexOf("x"), letters.indexOf("y")]
    const marks = { open: "<think>", close: "</think>", closing: [x, y] }
    const bound = { ...marks, budget: 5, isOpen: true }
    const cut = await tokens(client.generate(prompt, { ...params, thinking: bound }))
    expect(cut.slice(0, 5)).toEqual(free.slice(0, 5))
    expect(cut.slice(5, 7)).toEqual([x, y])
    expect(cut).toHaveLength(12)
    // it has not begun, or is long enough
    for (const thinking of [
      { ...bound, isOpen: false },
      { ...bound, budget: 12 },
    ])
      expect(await tokens(client.generate(prompt, { ...params, thinking }))).toEqual(free)
    const format = { type: "regex", pattern: "[a-z]{3}xy(abc)+" }
    const grammar = JSON.stringify({ type: "structural_tag", format })
    const stopTokens = [letters.length - 1]
    const both = { ...params, stopTokens, grammar, thinking: { ...bound, budget: 3 } }
    const ids = await tokens(client.generate(prompt, both))
    expect(ids.map((id) => letters[id]).join("")).toMatch(/^[a-z]{3}xyabcabca$/)
    // guesses stop where tokens count
    const guessing = await start({ spec: "ngram" })
    guessing.setVocabulary(Promise.resolve(tableOf(letters)))
    expect(await tokens(guessing.generate(prompt, { ...params, thinking: bound }))).toEqual(cut)
  })

  test("a prefix is kept elsewhere and brought back, or refused", async () => {
    const client = await start()
    const ids = Int32Array.from({ length: 40 }, (_, i) => (i * 7) % client.info.vocabSize)
    const params = { ...GREEDY, maxTokens: 6 }
    const run = async (engine: EngineClient): Promise<{ ids: number[]; cached: number }> => {
      const events = (await Array.fromAsync(engine.generate(ids, params))).flat()
      const cached = events[0]?.first?.cachedTokens ?? -1
      return { ids: events.map(({ token }) => token), cached }
    }
    const computed = await run(client)
    expect(computed.cached).toBe(0)
    const of = { ids, promptLength: ids.length }
    const whole = await client.prefix({ type: "export", ...of, from: 0 })
    expect(whole).toMatchObject({ blocks: 5, pageSize: 8, isLast: true })
    const records = whole.records as Uint8Array
    const rest = await client.prefix({ type: "export", ...of, from: 3 })
    expect(rest.records).toEqual(records.subarray(3 * whole.recordBytes))

    expect((await client.prefix({ type: "forget", ...of, from: 3 })).blocks).toBe(2)
    expect(await run(client)).toEqual({ ...computed, cached: 24 })
    client.clearCache()
    const cut = 2 * whole.recordBytes
    const first = { type: "import", isFirst: true, records: records.slice(0, cut) } as const
    expect(await client.prefix(first)).toMatchObject({ blocks: 2, tokens: ids.slice(0, 16) })
    const more = await client.prefix({ ...first, isFirst: false, records: records.slice(cut) })
    expect(more).toMatchObject({ blocks: 3, tokens: ids.slice(16) })
    expect(await run(client)).toEqual({ ...computed, cached: 32 })

    client.clearCache()
    const damaged = records.slice()
    damaged[520]! ^= 1
    for (const [wrong, problem] of [
      [damaged, "it is damaged"],
      [records.subarray(whole.recordBytes).slice(), "it is of another model, or of other settings"],
      [records.slice(0, cut - 5), "it is damaged"],
      [new Uint8Array(100), "it is damaged, or of other settings"],
    ] as const)
      expect(await client.prefix({ ...first, records: wrong })).toMatchObject({ problem })
    const other = await start({ precision: "f32" })
    expect(await other.prefix({ ...first, records })).toMatchObject({
      problem: "it is of another model, or of other settings",
    })
    const none = await start({ prefixCache: false })
    const refused = await none.prefix(first).catch((error: Error) => error.message)
    expect(refused).toBe("the prefix cache is off")
  })

  test("a draft model is in the plan of the memory", async () => {
    const alone = (await start()).info
    const { info } = await start({ draft: model.path })
    expect(alone.draftBytes).toBe(0)
    const { weightBytes, kvCacheBytes } = info
    expect(info.draftBytes).toBeGreaterThan(weightBytes + kvCacheBytes)
    const tight = { draft: model.path, contextLength: 32, memoryBytes: 2 ** 20 }
    await expect(start(tight)).rejects.toThrow("of the draft model's weights")
  })

  test("what cannot be loaded says why, before loading", async () => {
    expect(startEngine({ model: "/no/such.gguf" })).rejects.toThrow("/no/such.gguf: no such file")
    expect(start({ contextLength: 1_000_000 })).rejects.toThrow(
      "--ctx 1000000: the model's context",
    )
    expect(start({ kvCacheTokens: 1_000_000_000 })).rejects.toThrow(
      /not enough memory: .* of KV cache for 1000000000 tokens/,
    )
    expect(start({ pageSize: 9 })).rejects.toThrow("--page-size 9")
    expect(start({ rules: "/no/such.yaml" })).rejects.toThrow("/no/such.yaml: no such rule file")
    expect(start({ operators: ["/no/such.ts"] })).rejects.toThrow("--operators /no/such.ts")
  })
})
