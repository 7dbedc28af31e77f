import { describe, expect, test } from "bun:test"

import { createApp } from "../../src/server/app.ts"
import type { KnownModel, ModelLibrary, StepLimits } from "../../src/server/models/library.ts"
import type { EngineStats } from "../../src/worker/protocol.ts"
import { at, byteTokenizer, FakeClient, json, testServer, until } from "./fakes.ts"

const DETAILS = { format: "gguf", family: "llama", parameterSize: "1M", quantization: "F16" }
const MODEL: KnownModel = {
  name: "a",
  key: "a",
  created: 1,
  sizeBytes: 1000,
  digest: "ab".repeat(32),
  details: DETAILS,
}

/** A step takes 1 ms a sequence, one more a hundred positions, and a tenth for each further token. */
const LIMITS: StepLimits = {
  readBytes: 40e9,
  leastSeconds: (sequences, tokens, depth) =>
    (sequences * (1 + depth / 100) + (tokens - 1) / 10) / 1000,
}

class CountingClient extends FakeClient {
  counted: Partial<EngineStats> = {}
  override async stats(): Promise<EngineStats> {
    return { ...(await super.stats()), ...this.counted }
  }
}

function machine(
  measure: (signal: AbortSignal) => Promise<StepLimits>,
  delayMs = 0,
  devices: string[] = [],
) {
  const client = new CountingClient({ delayMs })
  const library: ModelLibrary = {
    list: () => [MODEL],
    describe: (model) => model,
    check: () => {},
    load: async () => ({
      client,
      tokenizer: byteTokenizer,
      withTemplate: () => byteTokenizer,
    }),
    limits: (_model, info, signal) => {
      devices.push(info.device)
      return measure(signal)
    },
  }
  const forever = Number.POSITIVE_INFINITY
  const app = createApp({
    models: {
      library,
      aliases: [],
      maxModels: 1,
      memoryBytes: forever,
      keepAliveMs: forever,
      loadTimeoutMs: 5000,
    },
  })
  const post = async (path: string, body: object): Promise<Response> =>
    app.request(path, { method: "POST", body: JSON.stringify(body) })
  const complete = (): Promise<Response> => post("/v1/completions", { model: "a", prompt: "x" })
  const shown = async (): Promise<unknown> =>
    at(await json(app.request("/api/machine")), "models", 0, "roofline")
  return { client, post, complete, shown, app }
}

describe("shares of the machine's limit", () => {
  test("are of the steps since the last look, once the limit has been measured", async () => {
    let runs = 0
    const { client, post, complete, shown } = machine(async () => {
      runs++
      return { ...LIMITS, readBytes: LIMITS.readBytes - runs }
    })
    await complete()
    expect(await shown()).toBeNull()
    client.counted = {
      decodeSecondsTotal: 1,
      decodeWork: { steps: 100, sequences: 200, tokens: 200, positions: 20_000 },
      prefillSecondsTotal: 0.1,
      prefillWork: { steps: 1, sequences: 1, tokens: 100, positions: 0 },
    }
    // two at a time, each after a hundred positions: 4 ms a step at least, 10 were taken
    const generation = { speed: 200, limit: 500, share: expect.closeTo(0.4, 9) }
    const measured = await json(post("/api/machine/limits", { model: "a" }))
    expect(measured).toEqual({ read_bytes: LIMITS.readBytes - 1, generation, prompt: null })
    // too little since then: what was known stays
    client.counted = { ...client.counted, decodeSecondsTotal: 1.1 }
    expect(await shown()).toMatchObject({ generation, prompt: null })
    // a prompt of 100 tokens took 0.1 s and now 900 more in 0.3: (1 + 99.9) · 2 / 10 … ms
    client.counted = {
      ...client.counted,
      prefillSecondsTotal: 0.4,
      prefillWork: { steps: 2, sequences: 2, tokens: 1000, positions: 0 },
    }
    const least = (2 * (1 + 499 / 10)) / 1000
    expect(await shown()).toMatchObject({
      generation,
      prompt: { speed: 2500, limit: 1000 / least, share: expect.closeTo(least / 0.4, 9) },
    })
    // measured again, the faster rate counts
    expect(at(await json(post("/api/machine/limits", { model: "a" })), "read_bytes")).toBe(
      LIMITS.readBytes - 1,
    )
    expect(runs).toBe(2)
  })

  test("nothing is measured while requests run, and a request ends a measurement", async () => {
    let ended = false
    const { post, complete, client } = machine(
      (signal) =>
        new Promise((_, reject) =>
          signal.addEventListener("abort", () => {
            ended = true
            reject(new Error("killed"))
          }),
        ),
      20,
    )
    const running = complete()
    await until(() => client.running === 1)
    const refused = await post("/api/machine/limits", { model: "a" })
    expect([refused.status, refused.headers.get("retry-after")]).toEqual([409, "5"])
    await (await running).text()
    const measuring = post("/api/machine/limits", { model: "a" })
    await Bun.sleep(20)
    const next = complete()
    expect((await measuring).status).toBe(409)
    expect(ended).toBe(true)
    expect((await next).status).toBe(200)
  })

  test("a model on several devices has no one limit", async () => {
    const asked: string[] = []
    const { client, post, complete } = machine(async () => LIMITS, 0, asked)
    await complete()
    const details = await client.details()
    const [module] = details.modules
    if (module === undefined) throw new Error("no module")
    client.details = async () => ({ ...details, modules: [{ ...module, device: "cuda:0" }] })
    expect((await post("/api/machine/limits", { model: "a" })).status).toBe(200)
    expect(asked).toEqual(["cuda:0"])
    client.details = async () => ({
      ...details,
      modules: [module, { ...module, device: "cuda:0" }],
    })
    const refused = await post("/api/machine/limits", { model: "a" })
    expect(refused.status).toBe(400)
    expect(at(await json(refused), "error")).toContain("cpu and cuda:0")
  })

  test("a model that is not loaded, and a server that cannot", async () => {
    const { post } = machine(async () => LIMITS)
    expect((await post("/api/machine/limits", { model: "a" })).status).toBe(409)
    expect((await post("/api/machine/limits", { model: "b" })).status).toBe(404)
    const fixed = testServer()
    const answer = await fixed.post("/api/machine/limits", {})
    expect(answer.status).toBe(400)
    expect(at(await json(fixed.app.request("/api/machine")), "can_measure")).toBe(false)
  })
})
