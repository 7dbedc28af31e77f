import { describe, expect, test } from "bun:test"

import { EngineError, KtError, MemoryError, RequestError } from "../../src/errors.ts"
import { createApp, type ServerApp } from "../../src/server/app.ts"
import { durationMs, keepAliveMs } from "../../src/server/models/keep-alive.ts"
import type { KnownModel, LoadedModel, ModelLibrary } from "../../src/server/models/library.ts"
import { aliased, findModel } from "../../src/server/models/names.ts"
import type { ServerConfig, ServerDeps } from "../../src/server/types.ts"
import { startEngine } from "../../src/worker/client.ts"
import type { EngineClient } from "../../src/worker/protocol.ts"
import { Turns } from "../../src/worker/turns.ts"
import { at, byteTokenizer, FakeClient, json, type Script, until } from "./fakes.ts"

function known(name: string, sizeBytes = 1000): KnownModel {
  const details = { format: "gguf", family: "llama", parameterSize: "1M", quantization: "F16" }
  return { name, key: name, created: 1, sizeBytes, digest: "ab".repeat(32), details }
}

interface Fake {
  readonly app: ServerApp
  /** Loads and unloads, in order. */
  readonly events: string[]
  ask(model: string): Promise<Response>
}

interface FakeOptions {
  readonly script?: Script
  readonly limits?: Partial<Omit<NonNullable<ServerDeps["models"]>, "library">>
  readonly config?: Partial<ServerConfig>
  /** Called at the beginning of each load. */
  readonly load?: (name: string, memoryBytes: number) => Promise<void> | void
  readonly made?: (client: FakeClient) => void
}

/** A server of models "a" to "d" whose engines are scripts. */
function fake({ script = {}, limits = {}, config = {}, load, made }: FakeOptions = {}): Fake {
  const events: string[] = []
  const models = ["a", "b", "c", "d"].map((name) => known(name))
  const library: ModelLibrary = {
    list: () => models,
    describe: (model) => model,
    check: () => {},
    async load(model, memoryBytes): Promise<LoadedModel> {
      await load?.(model.name, memoryBytes)
      events.push(`+${model.name}`)
      const client = new FakeClient(script)
      made?.(client)
      client.close = async () => void events.push(`-${model.name}`)
      return { client, tokenizer: byteTokenizer, withTemplate: () => byteTokenizer }
    },
  }
  const app = createApp({
    models: {
      library,
      aliases: [],
      maxModels: 2,
      memoryBytes: Number.POSITIVE_INFINITY,
      keepAliveMs: Number.POSITIVE_INFINITY,
      loadTimeoutMs: 5000,
      ...limits,
    },
    config,
  })
  const ask = async (model: string): Promise<Response> =>
    app.request("/v1/completions", {
      method: "POST",
      body: JSON.stringify({ model, prompt: "x", stream: true }),
    })
  return { app, events, ask }
}

async function text(response: Response | Promise<Response>): Promise<string> {
  return (await response).text()
}

test("the model of the start is listed first, which clients take that are told of none", async () => {
  const client = new FakeClient({})
  const loaded = { client, tokenizer: byteTokenizer, withTemplate: () => byteTokenizer }
  const { app } = fake({ limits: { first: { model: known("c"), loaded } } })
  const { data } = (await (await app.request("/v1/models")).json()) as { data: { id: string }[] }
  expect(data.map(({ id }) => id)).toEqual(["c", "a", "b", "d"])
})

describe("an engine that ends by itself", () => {
  const body = (more: object): RequestInit => ({
    method: "POST",
    body: JSON.stringify({ model: "a", prompt: [1, 2, 3], max_tokens: 4, ...more }),
  })

  test("what it did fails with 503, the next request has it loaded again", async () => {
    let loads = 0
    const log: string[] = []
    const model = known("a")
    const open: EngineClient[] = []
    const library: ModelLibrary = {
      list: () => [model],
      describe: () => model,
      check: () => {},
      async load(): Promise<LoadedModel> {
        loads++
        const worker = new URL("../worker/fake-worker.ts", import.meta.url)
        const client = await startEngine({ model: "fake", stepMs: 5 }, { worker })
        open.push(client)
        return { client, tokenizer: byteTokenizer, withTemplate: () => byteTokenizer }
      },
    }
    const app = createApp({
      models: {
        library,
        aliases: [],
        maxModels: 2,
        memoryBytes: Number.POSITIVE_INFINITY,
        keepAliveMs: Number.POSITIVE_INFINITY,
        loadTimeoutMs: 5000,
      },
      onLog: (_, line) => void log.push(line),
    })
    const ask = async (more: object): Promise<Response> =>
      app.request("/v1/completions", body(more))
    const running = await ask({ max_tokens: 2000, ignore_eos: true, stream: true })
    const other = ask({ max_tokens: 2000, ignore_eos: true })
    await Bun.sleep(50)
    const dying = ask({ seed: 666 })
    for (const response of [await other, await dying]) {
      expect(response.status).toBe(503)
      expect(response.headers.get("retry-after")).toBe("1")
      expect(at(await json(response), "error")).toMatchObject({
        code: "engine_stopped",
        message: "the engine stopped: its thread ended",
      })
    }
    expect(await text(running)).toContain('"code":"engine_stopped"')
    expect(log).toContain("a: the engine stopped: its thread ended")
    expect(await json(app.request("/ready"))).toMatchObject({ loaded: [] })
    expect((await ask({})).status).toBe(200)
    expect(loads).toBe(2)
    await app.models.close()
    for (const client of open) await client.close()
  })

  test("one that is about to leave does not take its successor with it", async () => {
    const clients: FakeClient[] = []
    const { app, events, ask } = fake({ script: { delayMs: 5 }, made: (one) => clients.push(one) })
    const running = await ask("a")
    const unloading = app.models.unload(known("a"))
    await Bun.sleep(5)
    clients[0]!.die(new EngineError("the engine stopped"))
    await Bun.sleep(0)
    const next = await ask("a")
    await text(running)
    await unloading
    expect(await text(next)).toEndWith("data: [DONE]\n\n")
    expect(app.models.loaded().map(({ model }) => model.name)).toEqual(["a"])
    expect(events).toEqual(["+a", "-a", "+a"])
  })
})

describe("room", () => {
  test("a model that is answering finishes before it leaves, and is loaded again for who came meanwhile", async () => {
    const { ask, events } = fake({ limits: { maxModels: 1 }, script: { delayMs: 5 } })
    const first = await ask("a")
    const second = ask("b")
    await Bun.sleep(10)
    expect(events).toEqual(["+a"])
    // it comes for a model that is about to leave
    const third = ask("a")
    expect(await text(first)).toEndWith("data: [DONE]\n\n")
    expect(await text(second)).toEndWith("data: [DONE]\n\n")
    expect(await text(third)).toEndWith("data: [DONE]\n\n")
    expect(events).toEqual(["+a", "-a", "+b", "-b", "+a"])
  })

  test("what does not fit into memory pushes out the least recently used, one after the other", async () => {
    const { ask, events } = fake({
      limits: { maxModels: 4 },
      load: (name) => {
        if (name === "d" && events.filter((e) => e === "-a" || e === "-b").length < 2)
          throw new MemoryError("not enough memory", { hint: "--ctx 8 fits" })
      },
    })
    for (const name of ["a", "b", "c", "a", "d"]) await text(ask(name))
    expect(events).toEqual(["+a", "+b", "+c", "-b", "-c", "-a", "+d"])
    const { app } = fake({ load: () => Promise.reject(new MemoryError("no", { hint: "less" })) })
    const refused = await app.request("/v1/completions", {
      method: "POST",
      body: JSON.stringify({ model: "a", prompt: "x" }),
    })
    expect(refused.status).toBe(503)
    expect(at(await json(refused), "error")).toMatchObject({
      code: "not_enough_memory",
      message: 'model "a" cannot be loaded: no (less)',
    })
  })

  test("a budget leaves each model what the others have not", async () => {
    const seen: [string, number][] = []
    const budget = 700 * 2 ** 20
    const { ask, events } = fake({
      limits: { maxModels: 4, memoryBytes: budget },
      load: (name, bytes) => void seen.push([name, bytes]),
    })
    const { weightBytes, kvCacheBytes, cacheRamBytes } = new FakeClient().info
    const each = weightBytes + kvCacheBytes + cacheRamBytes
    for (const name of ["a", "b"]) await text(ask(name))
    expect(seen).toEqual([
      ["a", budget],
      ["b", budget - each],
    ])
    for (const name of ["c", "d"]) await text(ask(name))
    expect(events.filter((e) => e.startsWith("+")).length).toBe(4)
    const tight = fake({ limits: { maxModels: 4, memoryBytes: 250 * 2 ** 20 } })
    for (const name of ["a", "b"]) await text(tight.ask(name))
    expect(tight.events).toEqual(["+a", "-a", "+b"])
  })
})

describe("waiting for a model", () => {
  test("one load for all; too long is 503 with retry-after, and the load goes on", async () => {
    const gate = Promise.withResolvers<void>()
    const { ask, events, app } = fake({
      limits: { loadTimeoutMs: 30 },
      load: () => gate.promise,
    })
    const late = await Promise.all([ask("a"), ask("a")])
    for (const response of late) {
      expect([response.status, response.headers.get("retry-after")]).toEqual([503, "5"])
      expect(at(await json(response), "error", "code")).toBe("model_loading")
    }
    gate.resolve()
    await until(() => events.length === 1)
    expect((await ask("a")).status).toBe(200)
    expect(events).toEqual(["+a"])
    expect(app.admission.active).toBeGreaterThan(0)
  })

  test("no more may wait than the queue holds; whoever goes away waits no longer", async () => {
    const gate = Promise.withResolvers<void>()
    const { ask, app } = fake({ config: { maxQueue: 1 }, load: () => gate.promise })
    const gone = new AbortController()
    const first = ask("a")
    const second = Promise.resolve(
      app.request("/v1/completions", {
        method: "POST",
        body: JSON.stringify({ model: "a", prompt: "x" }),
        signal: gone.signal,
      }),
    ).catch(() => undefined)
    await until(() => app.admission.active === 2)
    const full = await ask("a")
    expect([full.status, at(await json(full), "error", "code")]).toEqual([503, "model_loading"])
    gone.abort()
    await second
    expect(app.admission.active).toBe(1)
    gate.resolve()
    expect((await first).status).toBe(200)
  })

  test("a server that shuts down lets nobody wait", async () => {
    const gate = Promise.withResolvers<void>()
    const { ask, app } = fake({ load: () => gate.promise })
    const waiting = ask("a")
    await until(() => app.admission.active === 1)
    app.admission.abortAll()
    const response = await waiting
    expect([response.status, at(await json(response), "error", "code")]).toEqual([
      503,
      "shutting_down",
    ])
    gate.resolve()
    await app.admission.idle()
    await app.models.close()
  })

  test("a failure is told to all who waited, and the next request tries again", async () => {
    let broken = true
    const { ask } = fake({
      load: async () => {
        await Bun.sleep(5)
        if (broken) throw new KtError("the file is torn", { hint: "pull it again" })
      },
    })
    const failed = await Promise.all([ask("a"), ask("a")])
    for (const response of failed) {
      expect(response.status).toBe(500)
      expect(at(await json(response), "error", "message")).toBe(
        'model "a" cannot be loaded: the file is torn (pull it again)',
      )
    }
    broken = false
    expect((await ask("a")).status).toBe(200)
  })
})

test("no name means the model used last, the only one, or is asked for", async () => {
  const { app, ask } = fake()
  const anonymous = async (): Promise<Response> =>
    app.request("/tokenize", { method: "POST", body: JSON.stringify({ content: "x" }) })
  const response = await anonymous()
  expect([response.status, at(await json(response), "error", "code")]).toEqual([
    400,
    "model_required",
  ])
  await text(ask("b"))
  expect((await anonymous()).status).toBe(200)
  expect(await json(app.request("/props"))).toMatchObject({ model_alias: "b" })
  expect(await json(app.request("/props?model=c"))).toMatchObject({ model_alias: "c" })
  expect(await json(app.request("/ready"))).toEqual({
    status: "ready",
    model: "c",
    loaded: ["c", "b"],
  })
})

test("names: Ollama's tags, the hub's host, aliases with stars", () => {
  const models = [known("Qwen3.Q4_K_M"), { ...known("x"), otherNames: ["org/repo:q8_0"] }]
  const find = (
    name: string,
    aliases: { name: string; model: string }[] = [],
  ): string | undefined => findModel(name, models, aliases)?.name
  expect(find("qwen3.q4_k_m:latest")).toBe("Qwen3.Q4_K_M")
  expect(find("hf.co/Org/Repo:Q8_0")).toBe("x")
  expect(find("claude-3-5")).toBeUndefined()
  const aliases = [
    { name: "claude*", model: "x" },
    { name: "*mini*", model: "qwen3" },
  ]
  expect(find("claude-3-5", aliases)).toBe("x")
  expect(find("gpt-4o-mini", aliases)).toBe("Qwen3.Q4_K_M")
  expect(find("gpt.4o", [{ name: "gpt*4o", model: "x" }])).toBe("x")
  expect(find("gptx", [{ name: "gpt.", model: "x" }])).toBeUndefined()
  expect(aliased({ name: "a", model: "nope" }, models)).toBeUndefined()
})

test("keep_alive as Ollama reads it", () => {
  const cases: readonly (readonly [string | number, number])[] = [
    [5, 5000],
    ["5", 5000],
    ["5m", 300_000],
    ["1h30m", 5_400_000],
    ["1.5s", 1500],
    ["300ms", 300],
    [0, 0],
    ["0", 0],
    [-1, Number.POSITIVE_INFINITY],
    ["-1m", Number.POSITIVE_INFINITY],
  ]
  for (const [value, ms] of cases) expect([value, keepAliveMs(value)]).toEqual([value, ms])
  expect(keepAliveMs(null)).toBeUndefined()
  for (const bad of ["5x", "m", "5m5", "--1"]) expect(() => keepAliveMs(bad)).toThrow(RequestError)
  expect(durationMs("")).toBeUndefined()
})

test("engines take turns in the order in which they ask", () => {
  const turns = new Turns(Turns.buffer())
  const order: number[] = []
  for (const i of [1, 2, 3]) turns.run(() => order.push(i))
  expect(() =>
    turns.run(() => {
      throw new RangeError("step")
    }),
  ).toThrow("step")
  expect(turns.run(() => order)).toEqual([1, 2, 3])
})
