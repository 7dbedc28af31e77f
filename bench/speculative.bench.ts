/**
 * Tokens a second of one stream with and without speculative decoding, in turns: code to edit, and prose.
 * `bun bench/speculative.bench.ts MODEL.gguf [--threads N] [--rounds N] [--tokens N] [--lookup N] [--draft N] [--show]`
 */
import { parseArgs } from "node:util"

import { loadTokenizer } from "../src/cli/load-tokenizer.ts"
import { engineConfig } from "../src/config.ts"
import { Engine } from "../src/engine/engine.ts"
import { serverTokenizer } from "../src/server/server-tokenizer.ts"
import type { GenerateParams } from "../src/worker/protocol.ts"
import { report } from "./report.ts"

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: "0" },
    rounds: { type: "string", default: "5" },
    tokens: { type: "string", default: "200" },
    lookup: { type: "string", default: "3" },
    draft: { type: "string", default: "7" },
    "draft-model": { type: "string" },
    show: { type: "boolean", default: false },
    json: { type: "string" },
  },
})
const model = positionals[0]
if (model === undefined) throw new Error("which model?")

const SOURCE = `import math

class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def distance(self, other):
        dx = self.x - other.x
        dy = self.y - other.y
        return math.sqrt(dx * dx + dy * dy)

    def move(self, dx, dy):
        self.x = self.x + dx
        self.y = self.y + dy

class Circle:
    def __init__(self, center, radius):
        self.center = center
        self.radius = radius

    def contains(self, point):
        return self.center.distance(point) <= self.radius

    def area(self):
        return math.pi * self.radius * self.radius
`
const CODE = [
  `Add a method "perimeter" to the class Circle. Write the whole file again.\n\n${SOURCE}`,
  `Rename the method "move" to "translate" in this file and write the whole file again.\n\n${SOURCE}`,
  `Add a docstring to every method of this file and write the complete file.\n\n${SOURCE}`,
]
const PROSE = [
  "Write a story about a lighthouse keeper who finds a letter in a bottle.",
  "Explain how rain forms, in plain words, for a curious child.",
  "Describe a market in a small town on a Saturday morning.",
]

const common = { model, threads: Number(flags.threads), contextLength: 2048, maxBatchSize: 1 }
const engines = {
  off: await Engine.create(engineConfig(common)),
  on: await Engine.create(
    engineConfig({
      ...common,
      ...(flags["draft-model"] === undefined ? { spec: "ngram" } : { draft: flags["draft-model"] }),
      specLookup: Number(flags.lookup),
      specDraft: Number(flags.draft),
    }),
  ),
}
const tokenizer = serverTokenizer(await loadTokenizer(model))
let nextId = 0

interface Run {
  readonly ids: readonly number[]
  readonly rate: number
}

/** Rate of the tokens after the first. */
function generate(engine: Engine, prompt: Int32Array, params: GenerateParams): Run {
  const ids: number[] = []
  let first = 0
  engine.add(nextId++, prompt, params)
  while (engine.hasWork) {
    for (const { token } of engine.step()) if (token >= 0) ids.push(token)
    if (first === 0 && ids.length > 0) first = performance.now()
  }
  return { ids, rate: ((ids.length - 1) * 1000) / (performance.now() - first) }
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] as number

const rows: object[] = []
for (const [kind, prompts] of [
  ["code", CODE],
  ["prose", PROSE],
] as const) {
  for (const [i, text] of prompts.entries()) {
    for (const temperature of [0, 0.8]) {
      const prompt = tokenizer.encodePrompt(tokenizer.renderChat([{ role: "user", content: text }]))
      const params: GenerateParams = {
        temperature,
        topK: 40,
        topP: 0.95,
        minP: 0.05,
        repetitionPenalty: 1,
        presencePenalty: 0,
        frequencyPenalty: 0,
        seed: 11,
        maxTokens: Number(flags.tokens),
        stopTokens: [...tokenizer.eogIds],
        ignoreEos: true,
      }
      const rates = { off: [] as number[], on: [] as number[] }
      const texts = { off: [] as readonly number[], on: [] as readonly number[] }
      const before = engines.on.stats()
      for (let round = 0; round < Number(flags.rounds); round++)
        for (const name of ["off", "on"] as const) {
          const { ids, rate } = generate(engines[name], prompt, params)
          rates[name].push(rate)
          texts[name] = ids
        }
      const after = engines.on.stats()
      const drafted = after.draftedTokensTotal - before.draftedTokensTotal
      const accepted = after.acceptedTokensTotal - before.acceptedTokensTotal
      const [off, on] = [median(rates.off), median(rates.on)]
      const same = texts.on.findIndex((id, at) => id !== texts.off[at])
      rows.push({
        prompt: `${kind} ${i + 1}`,
        temperature,
        off: off.toFixed(1),
        on: on.toFixed(1),
        ratio: (on / off).toFixed(2),
        accepted: `${accepted}/${drafted}`,
        "same text": same < 0 ? "yes" : `${same} tokens`,
      })
      if (flags.show) {
        const bytes = texts.on.flatMap((id) => [...tokenizer.tokenBytes(id)])
        process.stdout.write(`--- ${kind} ${i + 1}\n${Buffer.from(bytes).toString()}\n`)
      }
    }
  }
}
report(rows, flags.json, { model, threads: engines.on.info.threads, isa: engines.on.info.isa })
for (const engine of Object.values(engines)) engine[Symbol.dispose]()
