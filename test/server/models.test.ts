import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { createHash } from "node:crypto"
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { Ollama } from "ollama"
import OpenAI, { NotFoundError } from "openai"

import { defaultModelPath } from "../../src/cli/home.ts"
import { Catalog } from "../../src/cli/library/catalog.ts"
import { Store } from "../../src/cli/library/store.ts"
import { engineConfig } from "../../src/config.ts"
import { createApp, type ServerApp } from "../../src/server/app.ts"
import { type RunningServer, startServer } from "../../src/server/serve.ts"
import type { ServerDeps } from "../../src/server/types.ts"
import { Turns } from "../../src/worker/turns.ts"
import { type FakeHub, startFakeHub } from "../cli/fake-hub.ts"
import { golden } from "../setup.ts"
import { at, json, list, ndjson } from "./fakes.ts"

/** Two tiny models, another to push one out, and one that is none. */
const MODELS = ["llama-rope-q4_k_m", "qwen2-q8_0", "qwen3-iq4_xs"]
const [LLAMA = "", QWEN2 = "", QWEN3 = ""] = MODELS

interface Server extends AsyncDisposable {
  readonly app: ServerApp
  readonly url: string
  readonly ollama: Ollama
  readonly openai: OpenAI
  readonly log: string[]
  post(path: string, body: unknown, method?: string): Promise<Response>
}

const home = mkdtempSync(join(tmpdir(), "kt-models-"))
const folder = join(home, "models")

type Limits = Partial<Omit<NonNullable<ServerDeps["models"]>, "library" | "first">>

/** A server of the folder's models with real engines. */
function serve(limits: Limits = {}, ctx = 128): Server {
  const store = new Store(join(home, "created"), folder)
  const config = engineConfig({ threads: 1, contextLength: ctx, maxBatchSize: 2 })
  const library = new Catalog({ folder, config, store, turns: Turns.buffer() })
  const log: string[] = []
  const app = createApp({
    models: {
      library,
      aliases: [
        { name: "gpt-4", model: LLAMA },
        { name: "claude*", model: QWEN2 },
      ],
      maxModels: 2,
      memoryBytes: Number.POSITIVE_INFINITY,
      keepAliveMs: 60_000,
      loadTimeoutMs: 20_000,
      ...limits,
    },
    onLog: (_level, line) => log.push(line),
  })
  const running: RunningServer = startServer({ app, port: 0 })
  const { url } = running
  return {
    app,
    url,
    log,
    ollama: new Ollama({ host: url }),
    openai: new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 }),
    post: (path, body, method = "POST") =>
      fetch(url + path, {
        method,
        body: body instanceof Uint8Array ? body.slice() : JSON.stringify(body),
      }),
    async [Symbol.asyncDispose]() {
      await running.stop(0)
      await app.models.close()
    },
  }
}

beforeAll(() => {
  mkdirSync(folder)
  for (const name of MODELS)
    copyFileSync(golden("gguf", `${name}.gguf`), join(folder, `${name}.gguf`))
  writeFileSync(join(folder, "broken.gguf"), "GGUF and no more")
})

afterAll(() => rmSync(home, { recursive: true, force: true }))

async function complete({ openai }: Server, model: string): Promise<string> {
  const { choices } = await openai.completions.create({
    model,
    prompt: "abc",
    max_tokens: 8,
    temperature: 0,
  })
  return choices[0]?.text ?? ""
}

/** Names as they were given, without the tag that Ollama's lists put behind them. */
async function loaded(server: Server): Promise<string[]> {
  return (await server.ollama.ps()).models.map(({ name }) => name.replace(/:latest$/, ""))
}

async function within(condition: () => Promise<boolean>, ms = 5000): Promise<void> {
  const end = performance.now() + ms
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not within ${ms} ms`)
    await Bun.sleep(20)
  }
}

describe("several models", () => {
  test("each is loaded once when it is named, by any of its names; the least recently used leaves", async () => {
    await using server = serve()
    expect(await loaded(server)).toEqual([])
    const names = [LLAMA, "llama-rope:q4_k_m", "gpt-4", `${LLAMA}:latest`, `${LLAMA}.gguf`]
    const same = await Promise.all(names.map((name) => complete(server, name)))
    expect(new Set(same).size).toBe(1)
    const other = await complete(server, QWEN2)
    expect(other).not.toBe(same[0])
    expect(await loaded(server)).toEqual([QWEN2, LLAMA])
    const metrics = await (await fetch(`${server.url}/metrics`)).text()
    const loads = (name: string): string =>
      `kt_model_loads_total{model_name="${name}",outcome="loaded"} 1`
    expect(metrics).toContain(loads(LLAMA))
    expect(metrics).toContain(loads(QWEN2))

    await complete(server, LLAMA)
    await complete(server, QWEN3)
    expect(await loaded(server)).toEqual([QWEN3, LLAMA])
    // computed again, it says what it said
    expect(await complete(server, QWEN2)).toBe(other)
    expect(await loaded(server)).toEqual([QWEN2, QWEN3])

    const states = new Map<string, string>()
    for await (const model of server.openai.models.list())
      states.set(model.id, String(at(model, "status", "value")))
    expect(Object.fromEntries(states)).toEqual({
      [LLAMA]: "unloaded",
      [QWEN2]: "loaded",
      [QWEN3]: "loaded",
      broken: "unloaded",
    })
    expect(await server.openai.models.retrieve(LLAMA)).toMatchObject({ id: LLAMA })
  }, 60_000)

  test("keep_alive: a time, for ever, now", async () => {
    await using server = serve()
    const { ollama } = server
    const chat = (model: string, keep_alive: string | number): Promise<unknown> =>
      ollama.chat({
        model,
        messages: [{ role: "user", content: "a" }],
        keep_alive,
        options: { num_predict: 2 },
      })
    await chat(LLAMA, "200ms")
    expect(await loaded(server)).toEqual([LLAMA])
    await within(async () => (await loaded(server)).length === 0)
    await chat(LLAMA, -1)
    const [entry] = (await ollama.ps()).models
    expect(new Date(entry?.expires_at ?? 0).getFullYear()).toBe(9999)
    await chat(LLAMA, 0)
    await within(async () => (await loaded(server)).length === 0)

    const ask = async (body: object): Promise<unknown> => json(server.post("/api/generate", body))
    expect(await ask({ model: QWEN2 })).toMatchObject({ done: true, done_reason: "load" })
    expect(await loaded(server)).toEqual([QWEN2])
    expect(await ask({ model: QWEN2, keep_alive: 0 })).toMatchObject({ done_reason: "unload" })
    expect(await loaded(server)).toEqual([])
    const bad = await server.post("/api/generate", { model: QWEN2, keep_alive: "soon" })
    expect([bad.status, at(await json(bad), "error")]).toEqual([
      400,
      'keep_alive "soon": expected seconds, or a duration such as "5m" or "1h30m"',
    ])
  }, 60_000)

  test("a model that cannot be loaded is its request's error and pushes nobody out", async () => {
    await using server = serve()
    await complete(server, LLAMA)
    await complete(server, QWEN2)
    const failed = await Promise.all(
      [1, 2].map(() =>
        server.post("/api/chat", { model: "broken", messages: [{ role: "user", content: "a" }] }),
      ),
    )
    for (const response of failed) {
      expect(response.status).toBe(500)
      const said = String(at(await json(response), "error"))
      expect(said).toStartWith('model "broken" cannot be loaded: broken: ')
      expect(said).not.toContain(home)
    }
    expect(await loaded(server)).toEqual([QWEN2, LLAMA])
    expect(await complete(server, LLAMA)).toBeString()
  }, 60_000)

  test("with room for one, two models in demand take turns and nobody starves", async () => {
    await using server = serve({ maxModels: 1 })
    const done: string[] = []
    let stop = false
    const busy = Promise.all(
      [0, 1].map(async () => {
        while (!stop) {
          await complete(server, LLAMA)
          done.push(LLAMA)
        }
      }),
    )
    await within(async () => done.length > 3)
    await complete(server, QWEN2)
    const before = done.length
    await Promise.all([complete(server, QWEN3), complete(server, QWEN2)])
    await within(async () => done.length > before)
    stop = true
    await busy
    expect(server.app.admission.active).toBe(0)
  }, 60_000)

  test("names are never paths", async () => {
    await using server = serve()
    const attacks = [
      "../models/llama-rope-q4_k_m",
      `${folder}/${LLAMA}.gguf`,
      "/etc/passwd",
      "..",
      "./x",
      "a/../b",
      "a\\b",
      "a\0b",
      "~/x",
    ]
    for (const model of attacks) {
      for (const path of ["/v1/completions", "/api/show", "/api/generate", "/tokenize"]) {
        const body = { model, prompt: "a", content: "a" }
        const sent =
          path === "/api/show"
            ? { model }
            : path === "/api/generate"
              ? { model, prompt: "a" }
              : body
        const response = await server.post(path, sent)
        expect([model, path, response.status]).toEqual([model, path, 400])
        expect(await response.text()).not.toContain("root:")
      }
    }
    const unknown: unknown = await server.openai.models.retrieve("nope").catch((e: unknown) => e)
    expect(unknown).toBeInstanceOf(NotFoundError)
    expect((await server.post("/api/show", { model: "nope" })).status).toBe(404)
  }, 30_000)
})

const real = defaultModelPath()

test.skipIf(!existsSync(real))(
  "unloading gives the memory back, and loaded engines without work take no time",
  async () => {
    const path = join(folder, "real.gguf")
    symlinkSync(real, path)
    try {
      await using server = serve({}, 1024)
      const rss = (): number => process.memoryUsage.rss()
      const use = async (): Promise<number> => {
        await complete(server, "real")
        const used = rss()
        await server.post("/api/generate", { model: "real", keep_alive: 0 })
        Bun.gc(true)
        return used
      }
      // what the first use of a model leaves behind, such as compiled code, is not its memory
      await use()
      const before = rss()
      const loads = [await use(), await use()]
      await within(async () => Math.min(...loads) - rss() > 80 * 2 ** 20)
      await within(async () => rss() - before < 40 * 2 ** 20)

      await complete(server, "real")
      await complete(server, LLAMA)
      await Bun.sleep(300)
      const started = process.cpuUsage()
      await Bun.sleep(1000)
      const { user, system } = process.cpuUsage(started)
      expect((user + system) / 1000).toBeLessThan(250)
    } finally {
      rmSync(path)
    }
  },
  60_000,
)

describe("created models", () => {
  test("create, show, use, copy and delete, through the client", async () => {
    await using server = serve()
    const { ollama } = server
    const steps: string[] = []
    const stream = await ollama.create({
      model: "pirate",
      from: LLAMA,
      system: "You are a pirate.",
      parameters: { temperature: 0, num_predict: 5, stop: ["zzz"] },
      messages: [
        { role: "user", content: "hello" },
        { role: "assistant", content: "arr" },
      ],
      license: "MIT",
      stream: true,
    })
    for await (const { status } of stream) steps.push(status)
    expect(steps.at(-1)).toBe("success")
    const shown = await ollama.show({ model: "pirate" })
    expect(shown.system).toBe("You are a pirate.")
    expect(shown.license).toBe("MIT")
    expect(shown.details.parent_model).toBe(LLAMA)
    expect(shown.modelfile).toContain(`FROM ${LLAMA}`)
    expect(shown.modelfile).toContain("PARAMETER num_predict 5")
    expect(shown.capabilities).toContain("completion")
    expect(at(shown, "model_info", "general.architecture")).toBe("llama")

    const prompt = String(
      at(
        await json(
          server.post("/apply-template", {
            model: "pirate",
            messages: [{ role: "user", content: "who?" }],
          }),
        ),
        "prompt",
      ),
    )
    const places = ["You are a pirate.", "hello", "arr", "who?"].map((text) => prompt.indexOf(text))
    expect(places).toEqual(places.toSorted((a, b) => a - b))
    expect(places[0]).toBeGreaterThanOrEqual(0)
    const answer = await ollama.generate({ model: "pirate", prompt: "x", raw: true })
    expect(answer.eval_count).toBeLessThanOrEqual(5)
    // its weights are the other's: one engine
    await complete(server, LLAMA)
    expect((await loaded(server)).length).toBe(1)

    await ollama.copy({ source: "pirate", destination: "buccaneer:v1" })
    expect((await ollama.show({ model: "buccaneer:v1" })).system).toBe("You are a pirate.")
    await ollama.delete({ model: "pirate" })
    const names = (await ollama.list()).models.map(({ name }) => name)
    const latest = [LLAMA, QWEN2, QWEN3].map((name) => `${name}:latest`)
    expect(names).toEqual(["broken:latest", "buccaneer:v1", ...latest])
    await complete(server, "buccaneer:v1")
    await ollama.delete({ model: "buccaneer:v1" })
    // its engine goes on under the name of what it was made of
    expect(await loaded(server)).toEqual([LLAMA])
    expect((await server.post("/tokenize", { content: "a" })).status).toBe(200)
    expect(readdirSync(join(home, "created")).filter((name) => name.endsWith(".json"))).toEqual([])
  }, 60_000)

  test("what is not ours is not deleted, and names stay in their folder", async () => {
    await using server = serve()
    const refused = await server.post("/api/delete", { model: LLAMA }, "DELETE")
    expect(refused.status).toBe(403)
    expect(existsSync(join(folder, `${LLAMA}.gguf`))).toBe(true)
    for (const model of [
      "../x",
      "a/b",
      "..",
      "a..b",
      ".x",
      "default",
      "x\\y",
      "",
      "x".repeat(300),
    ]) {
      const response = await server.post("/api/create", { model, from: LLAMA })
      expect([model, response.status]).toEqual([model, 400])
      expect((await server.post("/api/copy", { source: LLAMA, destination: model })).status).toBe(
        400,
      )
    }
    expect((await server.post("/api/copy", { source: LLAMA, destination: QWEN2 })).status).toBe(409)
    const wrong: readonly (readonly [object, string])[] = [
      [{ from: LLAMA, adapters: { "a.gguf": "sha256:x" } }, "adapters are not supported"],
      [{ from: LLAMA, template: "{{ .System }} {{ .Prompt }}" }, "it is a Go template"],
      [{ from: LLAMA, template: "{% for %}" }, "cannot be parsed"],
      [{ from: LLAMA, quantize: "q99" }, "q99"],
      [{ from: LLAMA, parameters: { temperature: "hot" } }, "parameters.temperature"],
      [{ from: LLAMA, modelfile: "FROM x" }, "send its fields"],
      [{}, "exactly one of them"],
      [{ files: { "../a.gguf": `sha256:${"0".repeat(64)}` } }, "is not plain"],
      [{ files: { "a.gguf": `sha256:${"0".repeat(64)}` } }, "there is no blob"],
      [{ files: { "a.gguf": "../../etc/passwd" } }, "expected sha256:"],
    ]
    for (const [fields, sentence] of wrong) {
      const response = await server.post("/api/create", { model: "x", ...fields })
      const said = String(at(await json(response), "error"))
      expect([response.status, said]).toEqual([400, expect.stringContaining(sentence)])
    }
    expect((await server.post("/api/create", { model: "x", from: "nope" })).status).toBe(404)
    expect((await server.post("/api/push", { model: LLAMA })).status).toBe(400)
  }, 30_000)

  test("files by digest, and another file type", async () => {
    await using server = serve()
    const bytes = new Uint8Array(readFileSync(golden("gguf", "llama-f16.gguf")))
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`
    const blob = `/api/blobs/${digest}`
    expect((await fetch(server.url + blob, { method: "HEAD" })).status).toBe(404)
    const wrong = await server.post(`/api/blobs/sha256:${"0".repeat(64)}`, bytes)
    expect([wrong.status, at(await json(wrong), "error")]).toEqual([
      400,
      expect.stringContaining("the body's digest is sha256:"),
    ])
    expect((await server.post("/api/blobs/..%2f..%2fx", bytes)).status).toBe(400)
    expect((await server.post(blob, bytes)).status).toBe(201)
    expect((await fetch(server.url + blob, { method: "HEAD" })).status).toBe(200)

    const create = (fields: object): Promise<Response> =>
      server.post("/api/create", { stream: false, ...fields })
    const made = await create({ model: "own", files: { "own.gguf": digest } })
    expect(await json(made)).toEqual({ status: "success" })
    expect(await complete(server, "own")).toBeString()
    const small = await create({ model: "own:q8", from: "own", quantize: "q8_0" })
    expect([small.status, await json(small)]).toEqual([200, { status: "success" }])
    const { details } = await server.ollama.show({ model: "own:q8" })
    expect(details).toMatchObject({ quantization_level: "Q8_0", parent_model: "own" })
    expect(await complete(server, "own:q8")).toBeString()
    const again = await create({ model: "x", from: "own:q8", quantize: "q4_0" })
    expect([again.status, at(await json(again), "error")]).toEqual([
      400,
      expect.stringContaining("quantised already"),
    ])
    for (const model of ["own", "own:q8"]) await server.ollama.delete({ model })
    expect(readdirSync(join(home, "created", "weights"))).toEqual([])
    expect(await loaded(server)).toEqual([])
  }, 60_000)
})

describe("what a crash leaves behind", () => {
  test("half a manifest, unfinished files and old blobs are no models, and do no harm", async () => {
    const own = join(home, "crashed")
    const store = (): Store => new Store(own, folder)
    const config = engineConfig({ threads: 1 })
    const first = new Catalog({ folder, config, store: store() })
    const made = { name: "made", from: first.list().find(({ name }) => name === LLAMA) }
    await first.store?.create(made, () => {})
    const manifest = readFileSync(join(own, "made.json"), "utf8")
    writeFileSync(join(own, "torn.json"), manifest.slice(0, 40))
    writeFileSync(join(own, "other.json"), "{}")
    writeFileSync(join(own, ".new-1-made.json"), manifest)
    mkdirSync(join(own, "weights", ".new-2-abc"), { recursive: true })
    mkdirSync(join(own, "blobs"))
    const stale = join(own, "blobs", `sha256-${"1".repeat(64)}`)
    const fresh = join(own, "blobs", `sha256-${"2".repeat(64)}`)
    writeFileSync(stale, "x")
    writeFileSync(fresh, "x")
    const longAgo = new Date(Date.now() - 48 * 3600 * 1000)
    for (const path of [stale, join(own, ".new-1-made.json"), join(own, "weights", ".new-2-abc")])
      utimesSync(path, longAgo, longAgo)
    const second = new Catalog({ folder, config, store: store() })
    expect(second.list().map(({ name }) => name)).toEqual(
      [...MODELS, "broken", "made"].toSorted((a, b) => a.localeCompare(b)),
    )
    expect([existsSync(stale), existsSync(fresh)]).toEqual([false, true])
    expect(readdirSync(own).filter((name) => name.startsWith(".new-"))).toEqual([])
    expect(readdirSync(join(own, "weights"))).toEqual([])
    // its weights are gone: it says so, and can be deleted
    writeFileSync(join(own, "made.json"), manifest.replace(LLAMA, "moved-away"))
    const third = new Catalog({ folder, config, store: store() })
    const lost = third.list().find(({ name }) => name === "made")
    if (lost === undefined) throw new Error("it is listed")
    expect(lost.problem).toContain("no such file")
    expect(() => third.check(lost)).toThrow("no such file")
    await third.store?.remove(lost)
    expect(existsSync(join(own, "made.json"))).toBe(false)
  })
})

describe("pull", () => {
  let hub: FakeHub
  const endpoint = process.env["HF_ENDPOINT"]
  beforeAll(async () => {
    const bytes = new Uint8Array(readFileSync(golden("gguf", "llama-f16.gguf")))
    const files = ["m-Q8_0.gguf", "m-Q4_K_M.gguf"].map((path) => ({ path, bytes, lfs: true }))
    hub = await startFakeHub({ files })
    process.env["HF_ENDPOINT"] = hub.url
  })
  afterAll(async () => {
    if (endpoint === undefined) delete process.env["HF_ENDPOINT"]
    else process.env["HF_ENDPOINT"] = endpoint
    await hub[Symbol.asyncDispose]()
  })

  test("from the hub, with progress; then it has that name, and may be deleted", async () => {
    await using server = serve()
    const { ollama } = server
    const model = "hf.co/org/model:Q4_K_M"
    const seen: { status: string; completed?: number; total?: number; digest?: string }[] = []
    for await (const step of await ollama.pull({ model, stream: true })) seen.push(step)
    expect(seen[0]?.status).toBe("pulling manifest")
    expect(seen.at(-1)?.status).toBe("success")
    const whole = seen.findLast(({ digest }) => digest !== undefined)
    expect(whole?.completed).toBe(whole?.total)
    expect(whole?.digest).toMatch(/^sha256:[0-9a-f]{64}$/)
    expect(await complete(server, model)).toBeString()
    expect(await complete(server, "org/model:q4_k_m")).toBeString()
    // it is here already
    const before = hub.seen.length
    expect(await json(server.post("/api/pull", { model, stream: false }))).toEqual({
      status: "success",
    })
    expect(hub.seen.slice(before).some(({ host }) => host === "storage")).toBe(false)
    await ollama.delete({ model })
    expect(existsSync(join(folder, "org/model/m-Q4_K_M.gguf"))).toBe(false)
    expect((await server.post("/api/show", { model })).status).toBe(404)
  }, 60_000)

  test("what is not there, or not the hub's, is said", async () => {
    await using server = serve()
    const pull = async (model: string): Promise<readonly [number, string]> => {
      const response = await server.post("/api/pull", { model })
      const text = await response.text()
      return [response.status, String(at(ndjson(text).at(-1), "error"))]
    }
    expect(await pull("llama3.2")).toEqual([400, expect.stringContaining("Ollama's own registry")])
    expect(await pull("hf.co/../x")).toEqual([400, expect.stringContaining("expected hf.co/")])
    expect(await pull("hf.co/org/model:Q2_K")).toEqual([
      200,
      expect.stringContaining("has no file of quantisation Q2_K"),
    ])
    expect(await pull("hf.co/no/such")).toEqual([200, expect.stringContaining("404")])
    expect(list(await json(fetch(`${server.url}/api/tags`)), "models").length).toBe(4)
  }, 30_000)
})
