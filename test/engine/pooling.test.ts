import { describe, expect, test } from "bun:test"
import { cpSync, readFileSync, rmSync } from "node:fs"
import { join } from "node:path"

import { engineConfig } from "../../src/config.ts"
import type { EngineConfig } from "../../src/config.ts"
import { Engine } from "../../src/engine/engine.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import type { PoolParams, TokenEvent } from "../../src/worker/protocol.ts"
import { readGoldenTensors } from "../fixtures/golden-tensors.ts"
import { relativeError } from "../ops/harness.ts"
import { golden, ROOT } from "../setup.ts"
import { GREEDY } from "./fake-runner.ts"

const FOLDER = join(ROOT, "test", "fixtures", "encoders")
/** Bound of the goldens in float. */
const TOLERANCE = 1e-4

interface Text {
  readonly text: string
  readonly ids: readonly number[]
  readonly mean: readonly number[]
  readonly cls: readonly number[]
  readonly last: readonly number[]
  readonly none?: readonly (readonly number[])[]
}

function goldenOf<T>(name: string): T {
  return JSON.parse(readFileSync(join(FOLDER, name, "golden.json"), "utf8")) as T
}

function createEngine(model: string, options: Partial<EngineConfig> = {}): Promise<Engine> {
  const given = { model: join(FOLDER, model), precision: "f32", threads: 2, ...options }
  return Engine.create(engineConfig(given))
}

/** All texts at once; entry i is the last event of text i. */
function poolAll(
  engine: Engine,
  texts: readonly (readonly [ids: readonly number[], params: PoolParams])[],
): TokenEvent[] {
  const out: TokenEvent[] = []
  texts.forEach(([ids, params], i) => engine.pool(i, Int32Array.from(ids), params))
  while (engine.hasWork) for (const event of engine.step()) out[event.id] = event
  return out
}

function unit(values: readonly number[]): number[] {
  const length = Math.hypot(...values)
  return values.map((x) => x / length)
}

const RAW = { normalize: false } as const

for (const [name, reference] of [
  ["bert", "bert"],
  ["bert.gguf", "bert"],
  ["nomic_bert", "nomic_bert"],
  ["nomic_bert.gguf", "nomic_bert"],
  ["qwen3_embedding", "qwen3_embedding"],
] as const) {
  describe(`states of ${name}`, () => {
    const { embeddings } = goldenOf<{ embeddings: Text[] }>(reference)

    test("each pooling is the reference's, alone and beside others", async () => {
      for (const options of [{}, { fuse: false }, { maxBatchSize: 2, maxBatchTokens: 64 }]) {
        using engine = await createEngine(name, options)
        for (const pooling of ["mean", "cls", "last", "none"] as const) {
          const texts = embeddings.filter((text) => text[pooling] !== undefined)
          const events = poolAll(
            engine,
            texts.map(({ ids }) => [ids, { pooling, ...RAW }]),
          )
          texts.forEach((text, i) => {
            const want = [text[pooling] as readonly (number | readonly number[])[]].flat(2)
            const got = events[i]?.pooled ?? new Float32Array(0)
            expect(got.length).toBe(want.length)
            expect(relativeError(got, want as number[])).toBeLessThan(TOLERANCE)
            expect(events[i]?.first?.promptTokens).toBe(text.ids.length)
          })
        }
        const { kvPagesFree, kvPagesTotal, running, waiting } = engine.stats()
        expect([kvPagesFree, running, waiting]).toEqual([kvPagesTotal, 0, 0])
      }
    })

    test("the tokenizer's ids are the reference's", async () => {
      const path = join(FOLDER, name)
      const tokenizer = name.endsWith(".gguf")
        ? Tokenizer.fromGguf(openGguf(path).metadata, path)
        : await Tokenizer.fromPretrained(path)
      for (const { text, ids } of embeddings) expect([...tokenizer.encode(text)]).toEqual([...ids])
    })

    test("vectors are cut, then normalised", async () => {
      using engine = await createEngine(name)
      const { ids, mean } = embeddings[0] as Text
      const [whole, cut] = poolAll(engine, [
        [ids, { pooling: "mean", normalize: true }],
        [ids, { pooling: "mean", normalize: true, dimensions: 5 }],
      ])
      expect(relativeError(whole?.pooled ?? [], unit(mean))).toBeLessThan(TOLERANCE)
      expect(relativeError(cut?.pooled ?? [], unit(mean.slice(0, 5)))).toBeLessThan(TOLERANCE)
      expect(Math.hypot(...(cut?.pooled ?? []))).toBeCloseTo(1, 5)
    })

    test("int8 activations and half-precision keys stay near", async () => {
      using engine = await createEngine(name, { precision: "fast" })
      const events = poolAll(
        engine,
        embeddings.map(({ ids }) => [ids, { pooling: "mean", ...RAW }]),
      )
      embeddings.forEach(({ mean }, i) =>
        expect(relativeError(events[i]?.pooled ?? [], mean)).toBeLessThan(2e-2),
      )
    })
  })
}

/** BF16 is the upper half of F32. */
function fromBf16(bytes = new Uint8Array(0)): Float32Array {
  const halves = new Uint16Array(bytes.slice().buffer)
  return new Float32Array(Uint32Array.from(halves, (half) => half * 65536).buffer)
}

describe("states of generative models", () => {
  const models: readonly (readonly [name: string, offset: number, eps: number])[] = [
    ["llama", 0, 1e-5],
    ["phi3", 0, 1e-5],
    ["gemma3_text", 1, 1e-6],
    ["qwen3_next", 1, 1e-6],
    ["deepseek_v3", 0, 1e-6],
    ["gpt_oss", 0, 1e-5],
  ]
  for (const [name, offset, eps] of models) {
    test(`${name}: the last layer's output after the last norm, in chunks of any size`, async () => {
      const folder = golden("hf", name)
      const tensors = readGoldenTensors(join(folder, "golden.safetensors"))
      const ids = new Int32Array(tensors.get("input_ids")?.bytes.slice().buffer ?? [])
      const [layers = 0, length = 0, dim = 0] = tensors.get("hidden_states")?.shape ?? []
      const all = tensors.get("hidden_states")?.f32() ?? new Float32Array(0)
      const last = all.subarray((layers - 1) * length * dim)
      const weights = readGoldenTensors(join(folder, "model.safetensors"))
      const norm = fromBf16(weights.get("model.norm.weight")?.bytes)
      const states = Array.from({ length }, (_, t) => {
        const row = last.subarray(t * dim, (t + 1) * dim)
        const scale = 1 / Math.sqrt(row.reduce((sum, x) => sum + (x * x) / dim, 0) + eps)
        return Array.from(row, (x, i) => x * scale * ((norm[i] as number) + offset))
      })
      const mean = Array.from({ length: dim }, (_, i) =>
        states.reduce((sum, row) => sum + (row[i] as number) / length, 0),
      )
      const prompt = [...ids.subarray(0, length)]
      for (const options of [{}, { fuse: false }, { maxBatchTokens: 12 }]) {
        using engine = await createEngine(name, { model: folder, ...options })
        expect(engine.info.pooling).toBeUndefined()
        const [whole, end, each] = poolAll(engine, [
          [prompt, { pooling: "mean", ...RAW }],
          [prompt, { pooling: "last", ...RAW }],
          [prompt, { pooling: "none", ...RAW }],
        ])
        expect(relativeError(whole?.pooled ?? [], mean)).toBeLessThan(TOLERANCE)
        expect(relativeError(end?.pooled ?? [], states.at(-1) ?? [])).toBeLessThan(TOLERANCE)
        expect(relativeError(each?.pooled ?? [], states.flat())).toBeLessThan(TOLERANCE)
      }
    })
  }
})

test("encoders generate nothing, and what does not fit is refused", async () => {
  using engine = await createEngine("bert")
  const ids = Int32Array.of(2, 88, 3)
  expect(() => engine.add(1, ids, GREEDY)).toThrow("generates none")
  const pool = (length: number, params: Partial<PoolParams> = {}): void =>
    engine.pool(1, new Int32Array(length).fill(7), { pooling: "mean", normalize: true, ...params })
  expect(() => pool(65)).toThrow("a text of 65 tokens exceeds the context of 64")
  expect(() => pool(0)).toThrow("empty")
  expect(() => pool(3, { dimensions: 33 })).toThrow("dimensions 33: the model's vectors have 32")
  expect(() => pool(3, { pooling: "rank" })).toThrow("cannot rank")
  expect(engine.info.pooling).toEqual({
    pooling: "mean",
    dimensions: 32,
    hasClassifier: false,
    generates: false,
  })
  expect(engine.info.contextLength).toBe(64)
  pool(64)
  while (engine.hasWork) for (const { finish } of engine.step()) expect(finish).toBe("stop")
})

interface Score {
  readonly text: string
  readonly ids: readonly number[]
  readonly types: readonly number[]
  readonly score: number
  readonly one_type: number
  readonly no_pooler: number
}

test("a cross-encoder's scores are the reference's", async () => {
  const { scores } = goldenOf<{ scores: Score[] }>("bert_reranker")
  const params = (types: readonly number[]): PoolParams => {
    const secondFrom = types.indexOf(1)
    return { pooling: "rank", normalize: false, ...(secondFrom < 0 ? {} : { secondFrom }) }
  }
  using engine = await createEngine("bert_reranker")
  expect(engine.info.pooling?.hasClassifier).toBe(true)
  const events = poolAll(engine, [
    ...scores.map(({ ids, types }) => [ids, params(types)] as const),
    ...scores.map(({ ids }) => [ids, params([])] as const),
  ])
  const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x))
  scores.forEach(({ score, one_type }, i) => {
    expect(events[i]?.pooled?.[0]).toBeCloseTo(sigmoid(score), 4)
    expect(events[scores.length + i]?.pooled?.[0]).toBeCloseTo(sigmoid(one_type), 4)
  })
  // converters leave the dense layer before the classifier out, and the score as it is
  using gguf = await createEngine("bert_reranker.gguf")
  const plain = poolAll(
    gguf,
    scores.map(({ ids, types }) => [ids, params(types)]),
  )
  scores.forEach(({ no_pooler }, i) => expect(plain[i]?.pooled?.[0]).toBeCloseTo(no_pooler, 3))
})

test("a generative reranker's verdict is the reference's, by its head or by its logits", async () => {
  const { scores, query } = goldenOf<{
    query: string
    scores: { text: string; length: number; score: number }[]
  }>("qwen3_embedding")
  const tokenizer = await Tokenizer.fromPretrained(join(FOLDER, "qwen3_embedding"))
  const verdict = ["yes", "no"].map((word) => tokenizer.tokenId(word)) as [number, number]
  const prompt = (document: string): number[] => {
    const text = RERANK_PROMPT.replace("{query}", query).replace("{document}", document)
    return [...tokenizer.encode(text, { addSpecial: false, parseSpecial: true })]
  }
  for (const [model, extra] of [
    ["qwen3_embedding", { verdict }],
    ["qwen3_reranker.gguf", {}],
  ] as const) {
    using engine = await createEngine(model, { maxBatchTokens: 64 })
    const events = poolAll(
      engine,
      scores.map(({ text }) => [prompt(text), { pooling: "rank", normalize: false, ...extra }]),
    )
    scores.forEach(({ score, length }, i) => {
      expect(events[i]?.first?.promptTokens).toBe(length)
      expect(events[i]?.pooled?.[0]).toBeCloseTo(score, 4)
    })
  }
})

const RERANK_PROMPT = `<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

`

test("texts are pooled beside sequences that generate, in chunks, and with a cached beginning", async () => {
  const { embeddings } = goldenOf<{ embeddings: Text[] }>("qwen3_embedding")
  const long = embeddings[4] as Text
  using engine = await createEngine("qwen3_embedding", { maxBatchTokens: 16, pageSize: 8 })
  const generate = (id: number): number[] => {
    engine.add(id, Int32Array.from(long.ids), { ...GREEDY, maxTokens: 12 })
    return []
  }
  const alone = generate(100)
  while (engine.hasWork) for (const { token } of engine.step()) alone.push(token)
  expect(alone.length).toBe(12)
  const again = generate(101)
  for (const [i, pooling] of (["mean", "last", "cls"] as const).entries())
    engine.pool(i, Int32Array.from(long.ids), { pooling, ...RAW })
  const pooled: TokenEvent[] = []
  while (engine.hasWork)
    for (const event of engine.step())
      if (event.id === 101) again.push(event.token)
      else pooled[event.id] = event
  expect(again).toEqual(alone)
  const wanted = [long.mean, long.last, long.cls]
  wanted.forEach((want, i) =>
    expect(relativeError(pooled[i]?.pooled ?? [], want)).toBeLessThan(TOLERANCE),
  )
  // what is not needed is not computed again; a mean needs the states of all tokens
  expect(pooled[1]?.first?.cachedTokens).toBeGreaterThan(0)
  expect(pooled[0]?.first?.cachedTokens).toBe(0)
  const { kvPagesFree, kvPagesTotal } = engine.stats()
  expect(kvPagesFree).toBe(kvPagesTotal)
})

test("a folder of transformers alone, and norms under their early names", async () => {
  const folder = join("/tmp", `kt-encoder-${process.pid}`)
  cpSync(join(FOLDER, "bert"), folder, { recursive: true })
  try {
    rmSync(join(folder, "modules.json"))
    using engine = await createEngine("bert", { model: folder })
    expect(engine.info.pooling?.pooling).toBe("mean")
  } finally {
    rmSync(folder, { recursive: true })
  }
})
