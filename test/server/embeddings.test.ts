import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { cpSync, readFileSync, rmSync } from "node:fs"
import { join } from "node:path"

import { Ollama } from "ollama"
import OpenAI, { BadRequestError } from "openai"

import { createApp, type ServerApp } from "../../src/server/app.ts"
import { type RunningServer, startServer } from "../../src/server/serve.ts"
import { serverTokenizer } from "../../src/server/server-tokenizer.ts"
import type { ServerConfig } from "../../src/server/types.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { startEngine } from "../../src/worker/client.ts"
import type { EngineClient } from "../../src/worker/protocol.ts"
import { relativeError } from "../ops/harness.ts"
import { ROOT } from "../setup.ts"
import { at, json, list, testServer } from "./fakes.ts"

const FOLDER = join(ROOT, "test", "fixtures", "encoders")
const TOLERANCE = 1e-4

interface Text {
  readonly text: string
  readonly ids: readonly number[]
  readonly mean: readonly number[]
  readonly last: readonly number[]
}

function goldenOf<T>(name: string): T {
  return JSON.parse(readFileSync(join(FOLDER, name, "golden.json"), "utf8")) as T
}

interface Served {
  readonly app: ServerApp
  readonly url: string
  readonly client: EngineClient
  post(path: string, body: unknown): Promise<Response>
}

const open: (RunningServer | EngineClient)[] = []

async function serve(
  name: string,
  path = join(FOLDER, name),
  config: Partial<ServerConfig> = {},
): Promise<Served> {
  const client = await startEngine({ model: path, precision: "f32", threads: 2, maxBatchSize: 4 })
  const tokenizer = serverTokenizer(await Tokenizer.fromPretrained(path))
  const { architecture: family } = client.info
  const details = { format: "safetensors", family, parameterSize: "24K", quantization: "BF16" }
  const model = { name, created: 1_700_000_000, sizeBytes: 1, digest: "ab".repeat(32), details }
  const app = createApp({ client, tokenizer, model, config })
  const server = startServer({ app, port: 0 })
  open.push(server, client)
  const post = async (to: string, body: unknown): Promise<Response> =>
    app.request(to, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    })
  return { app, url: server.url, client, post }
}

function unit(values: readonly number[]): number[] {
  const length = Math.hypot(...values)
  return values.map((x) => x / length)
}

const renamed = join("/tmp", `kt-rerank-${process.pid}`)
let bert: Served
let ranker: Served
let qwen3: Served
let judge: Served
beforeAll(async () => {
  cpSync(join(FOLDER, "qwen3_embedding"), renamed, { recursive: true })
  bert = await serve("bert")
  ranker = await serve("bert_reranker")
  qwen3 = await serve("qwen3_embedding")
  judge = await serve("tiny-reranker", renamed)
})
afterAll(async () => {
  for (const one of open) await ("stop" in one ? one.stop(0) : one.close())
  rmSync(renamed, { recursive: true })
})

const { embeddings } = goldenOf<{ embeddings: Text[] }>("bert")
const texts = embeddings.map(({ text }) => text)

describe("the openai client", () => {
  const openai = (url: string): OpenAI =>
    new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 })

  test("texts, one and several, as floats and as base64", async () => {
    const client = openai(bert.url)
    for (const encoding_format of [undefined, "float", "base64"] as const) {
      const given = encoding_format === undefined ? {} : { encoding_format }
      const answer = await client.embeddings.create({ model: "bert", input: texts, ...given })
      expect(answer.data.map(({ index }) => index)).toEqual(texts.map((_, i) => i))
      const counted = embeddings.reduce((sum, { ids }) => sum + ids.length, 0)
      expect(answer.usage).toEqual({ prompt_tokens: counted, total_tokens: counted })
      embeddings.forEach(({ mean }, i) => {
        const got: unknown = answer.data[i]?.embedding
        const values =
          encoding_format === "base64"
            ? new Float32Array(new Uint8Array(Buffer.from(got as string, "base64")).buffer)
            : (got as number[])
        expect(relativeError(values, unit(mean))).toBeLessThan(TOLERANCE)
      })
    }
    const one = await client.embeddings.create({ model: "bert", input: texts[0] as string })
    expect(
      relativeError(one.data[0]?.embedding ?? [], unit(embeddings[0]?.mean ?? [])),
    ).toBeLessThan(TOLERANCE)
  })

  test("tokens, one list and several", async () => {
    const client = openai(bert.url)
    const ids = embeddings.map((one) => [...one.ids])
    const several = await client.embeddings.create({ model: "bert", input: ids })
    const single = await client.embeddings.create({ model: "bert", input: ids[2] as number[] })
    embeddings.forEach(({ mean }, i) =>
      expect(relativeError(several.data[i]?.embedding ?? [], unit(mean))).toBeLessThan(TOLERANCE),
    )
    expect(single.data[0]?.embedding).toEqual(several.data[2]?.embedding as number[])
  })

  test("dimensions: fewer values, of length 1 again", async () => {
    const answer = await openai(bert.url).embeddings.create({
      model: "bert",
      input: texts,
      dimensions: 8,
    })
    embeddings.forEach(({ mean }, i) =>
      expect(relativeError(answer.data[i]?.embedding ?? [], unit(mean.slice(0, 8)))).toBeLessThan(
        TOLERANCE,
      ),
    )
  })

  test("a generative checkpoint made for embeddings pools its last token", async () => {
    const golden = goldenOf<{ embeddings: Text[] }>("qwen3_embedding").embeddings
    const answer = await openai(qwen3.url).embeddings.create({ model: "default", input: texts })
    golden.forEach(({ last }, i) =>
      expect(relativeError(answer.data[i]?.embedding ?? [], unit(last))).toBeLessThan(TOLERANCE),
    )
  })

  test("what it cannot have is refused as OpenAI does", async () => {
    const client = openai(bert.url)
    const fails = async (work: () => PromiseLike<unknown>): Promise<BadRequestError> => {
      try {
        await work()
      } catch (error) {
        expect(error).toBeInstanceOf(BadRequestError)
        return error as BadRequestError
      }
      throw new Error("it did not fail")
    }
    const long = await fails(() =>
      client.embeddings.create({ model: "bert", input: ["ok", "cat ".repeat(80)] }),
    )
    expect(long.code).toBe("context_length_exceeded")
    expect(long.param).toBe("input[1]")
    const wide = await fails(() =>
      client.embeddings.create({ model: "bert", input: "a", dimensions: 99 }),
    )
    expect(wide.message).toContain("dimensions 99: the model's vectors have 32")
    const unknown = await fails(() => client.embeddings.create({ model: "bert", input: [1, 4000] }))
    expect(unknown.param).toBe("input")
    const chat = await fails(() =>
      client.chat.completions.create({ model: "bert", messages: [{ role: "user", content: "a" }] }),
    )
    expect(chat.code).toBe("unsupported_model")
    expect(chat.message).toContain("generates none")
    await fails(() => client.completions.create({ model: "bert", prompt: "a" }))
  })
})

describe("the ollama client", () => {
  test("embed: normalised vectors, durations, counts", async () => {
    const answer = await new Ollama({ host: bert.url }).embed({ model: "bert", input: texts })
    embeddings.forEach(({ mean }, i) =>
      expect(relativeError(answer.embeddings[i] ?? [], unit(mean))).toBeLessThan(TOLERANCE),
    )
    expect(answer.model).toBe("bert")
    expect(answer.prompt_eval_count).toBe(embeddings.reduce((sum, { ids }) => sum + ids.length, 0))
    expect(answer.total_duration).toBeGreaterThan(1000)
    expect(Number.isInteger(answer.total_duration)).toBe(true)
  })

  test("texts that are too long are cut before their end token, unless that is refused", async () => {
    const client = new Ollama({ host: bert.url })
    const input = "cat ".repeat(200)
    const cut = await client.embed({ model: "bert", input })
    const whole = await client.embed({ model: "bert", input: "cat ".repeat(62) })
    expect(cut.embeddings).toEqual(whole.embeddings)
    expect(cut.prompt_eval_count).toBe(64)
    expect(client.embed({ model: "bert", input, truncate: false })).rejects.toThrow(
      "the context is 64 tokens",
    )
  })

  test("embeddings, the older route: as the model makes it", async () => {
    const client = new Ollama({ host: bert.url })
    const { embedding } = await client.embeddings({ model: "bert", prompt: texts[1] as string })
    expect(relativeError(embedding, embeddings[1]?.mean ?? [])).toBeLessThan(TOLERANCE)
  })

  test("no text loads the model; lists say what it is made for", async () => {
    const client = new Ollama({ host: bert.url })
    expect((await client.embed({ model: "bert", input: [] })).embeddings).toEqual([])
    const shown = await client.show({ model: "bert" })
    expect(at(shown, "capabilities")).toEqual(["embedding"])
    expect(
      client.chat({ model: "bert", messages: [{ role: "user", content: "hi" }] }),
    ).rejects.toThrow("generates none")
    const models = await json(bert.app.request("/v1/models"))
    expect(at(models, "data", 0, "meta", "capabilities")).toEqual(["embedding"])
    const rankers = await json(ranker.app.request("/v1/models"))
    expect(at(rankers, "data", 0, "meta", "capabilities")).toEqual(["rerank"])
  })
})

describe("llama.cpp's routes", () => {
  test("/embedding: a vector each, or one a token", async () => {
    for (const path of ["/embedding", "/embeddings"]) {
      const body = await json(bert.post(path, { content: texts, embd_normalize: -1 }))
      expect(list(body).length).toBe(texts.length)
      embeddings.forEach(({ mean }, i) => {
        const vectors = list(body, i, "embedding")
        expect(vectors.length).toBe(1)
        expect(relativeError(vectors[0] as number[], mean)).toBeLessThan(TOLERANCE)
      })
    }
    const tokens = await json(bert.post("/embedding", { input: "The cat", pooling: "none" }))
    expect(list(tokens, 0, "embedding").length).toBe(4)
    const mixed = await json(bert.post("/embedding", { content: ["the", 7, " cat"] }))
    expect(list(mixed).length).toBe(1)
    expect((await bert.post("/embedding", {})).status).toBe(400)
  })
})

interface Golden {
  readonly query: string
  readonly scores: readonly { readonly text: string; readonly score: number }[]
}

describe("rerank", () => {
  const { query, scores } = goldenOf<Golden>("bert_reranker")
  const documents = scores.map(({ text }) => text)
  const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x))
  const best = scores
    .map(({ score }, index) => ({ index, score: sigmoid(score) }))
    .toSorted((a, b) => b.score - a.score)

  test("a cross-encoder, by every name, in Jina's and Cohere's form", async () => {
    for (const path of ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/v2/rerank"]) {
      const body = await json(ranker.post(path, { model: "bert_reranker", query, documents }))
      const results = list(body, "results")
      expect(results.map((one) => at(one, "index"))).toEqual(best.map(({ index }) => index))
      best.forEach(({ score }, i) =>
        expect(at(results[i], "relevance_score")).toBeCloseTo(score, 4),
      )
      expect(Number(at(body, "usage", "total_tokens"))).toBeGreaterThan(50)
    }
  })

  test("top_n, return_documents, objects, and TEI's form", async () => {
    const asked = {
      query,
      documents: documents.map((text) => ({ text })),
      top_n: 2,
      return_documents: true,
    }
    const results = list(await json(ranker.post("/v1/rerank", asked)), "results")
    expect(results.map((one) => at(one, "document", "text"))).toEqual(
      best.slice(0, 2).map(({ index }) => documents[index]),
    )
    const tei = list(
      await json(ranker.post("/rerank", { query, texts: documents, return_text: true })),
    )
    expect(at(tei[0], "text")).toBe(documents[best[0]?.index ?? -1])
    expect(at(tei[0], "score")).toBeCloseTo(best[0]?.score ?? 0, 4)
  })

  test("Qwen3-Reranker's verdict", async () => {
    const golden = goldenOf<Golden>("qwen3_embedding")
    const asked = { query: golden.query, documents: golden.scores.map(({ text }) => text) }
    const results = list(await json(judge.post("/v1/rerank", asked)), "results")
    expect(results.length).toBe(golden.scores.length)
    for (const one of results) {
      const want = golden.scores[Number(at(one, "index"))]?.score
      expect(at(one, "relevance_score")).toBeCloseTo(want ?? Number.NaN, 4)
    }
  })

  test("what is no reranker, and what does not fit, is refused", async () => {
    const no = await bert.post("/v1/rerank", { query, documents })
    expect([no.status, at(await json(no), "error", "code")]).toEqual([400, "unsupported_model"])
    expect((await qwen3.post("/v1/rerank", { query, documents })).status).toBe(400)
    expect((await ranker.post("/v1/rerank", { query, documents: [] })).status).toBe(400)
    expect((await ranker.post("/v1/rerank", { query })).status).toBe(400)
    const long = await ranker.post("/v1/rerank", { query, documents: ["ok", "cat ".repeat(80)] })
    expect(at(await json(long), "error", "code")).toBe("context_length_exceeded")
  })
})

test("many texts at once do not need many places, and a client that goes away frees them", async () => {
  const small = await serve("bert", join(FOLDER, "bert"), { maxQueue: 0 })
  const input = Array.from({ length: 300 }, (_, i) => texts[i % texts.length] as string)
  const body = await json(small.post("/v1/embeddings", { input }))
  expect(list(body, "data").length).toBe(300)
  const gone = new AbortController()
  const pending = small.app.request("/v1/embeddings", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ input: [...input, ...input, ...input] }),
    signal: gone.signal,
  })
  await Bun.sleep(5)
  gone.abort()
  expect((await pending).status).toBe(499)
  for (let i = 0; i < 100 && (await small.client.stats()).running > 0; i++) await Bun.sleep(5)
  const { kvPagesFree, kvPagesTotal, running, waiting } = await small.client.stats()
  expect([kvPagesFree, running, waiting]).toEqual([kvPagesTotal, 0, 0])
})

test("an engine that cannot is a 400, and the routes are documented", async () => {
  const { post, app } = testServer()
  expect((await post("/v1/embeddings", { input: "a" })).status).toBe(400)
  const paths = at(await json(app.request("/openapi.json")), "paths")
  for (const path of [
    "/v1/embeddings",
    "/api/embed",
    "/api/embeddings",
    "/embedding",
    "/embeddings",
    "/rerank",
    "/reranking",
    "/v1/rerank",
  ])
    expect(at(paths, path, "post", "requestBody")).toBeDefined()
})
