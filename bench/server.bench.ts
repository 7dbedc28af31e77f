/**
 * What the server costs: streams of generated tokens from the engine on the calling thread, and the same through
 * /v1/completions of a server in a process of its own, in turns. One stream is timed from its first token on, several
 * from their start. Before them, what a conversation of 8000 tokens takes to become a prompt: template and tokens.
 *
 * `bun bench/server.bench.ts MODEL [--threads N] [--streams N] [--tokens N] [--rounds N] [--json FILE]`
 */
import { join } from "node:path"
import { parseArgs } from "node:util"

import { median } from "../src/cli/bench-model.ts"
import { loadTokenizer } from "../src/cli/load-tokenizer.ts"
import { engineConfig } from "../src/config.ts"
import { Engine } from "../src/engine/engine.ts"
import { serverTokenizer } from "../src/server/server-tokenizer.ts"
import { report } from "./report.ts"
import { PROMPT, streamRate } from "./stream.ts"

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: "0" },
    streams: { type: "string", default: "1" },
    tokens: { type: "string", default: "256" },
    rounds: { type: "string", default: "9" },
    json: { type: "string" },
  },
})
const [model] = positionals
if (model === undefined) throw new Error("which model? bun bench/server.bench.ts MODEL")
const tokens = Number(flags.tokens)
const rounds = Number(flags.rounds)
const streams = Number(flags.streams)

const size = { maxBatchSize: streams, kvCacheTokens: streams * (tokens + 64) }
const config = engineConfig({
  model,
  threads: Number(flags.threads),
  prefixCache: false,
  ...(streams > 1 ? size : {}),
})

/** Tokens a second of all streams, by what their clients see. */
async function served(url: string): Promise<number> {
  if (streams === 1) return servedStream(url)
  const started = performance.now()
  await Promise.all(Array.from({ length: streams }, async () => servedStream(url)))
  return (streams * tokens * 1000) / (performance.now() - started)
}

/** From the first chunk of text to the last. */
async function servedStream(url: string): Promise<number> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: (await models(url))[0],
      prompt: [...PROMPT],
      max_tokens: tokens,
      temperature: 0,
      ignore_eos: true,
      stream: true,
      stream_options: { include_usage: true },
    }),
  })
  if (!response.ok || response.body === null) throw new Error(await response.text())
  let first = 0
  let last = 0
  let text = ""
  const decoder = new TextDecoder()
  for await (const chunk of response.body) {
    last = performance.now()
    if (first === 0) first = last
    text += decoder.decode(chunk, { stream: true })
  }
  const count = Number(/"completion_tokens":(\d+)/.exec(text)?.[1])
  return ((count - 1) / (last - first)) * 1000
}

async function models(url: string): Promise<string[]> {
  const { data } = (await (await fetch(`${url}/v1/models`)).json()) as { data: { id: string }[] }
  return data.map(({ id }) => id)
}

async function startServer(): Promise<{ url: string; stop: () => Promise<unknown> }> {
  const main = join(import.meta.dir, "..", "src", "cli", "main.ts")
  const server = Bun.spawn(
    [
      process.execPath,
      main,
      "serve",
      model as string,
      "--port",
      "0",
      "--threads",
      flags.threads,
      "--no-prefix-cache",
      ...(streams > 1
        ? [
            "--max-batch-size",
            String(size.maxBatchSize),
            "--cache-tokens",
            String(size.kvCacheTokens),
          ]
        : []),
    ],
    { stdout: "pipe", stderr: "ignore" },
  )
  let out = ""
  for await (const chunk of server.stdout) {
    out += new TextDecoder().decode(chunk)
    const url = /http:\/\/[\d.:]+/.exec(out)?.[0]
    if (url !== undefined && (await isReady(url))) {
      return {
        url,
        stop: () => {
          server.kill()
          return server.exited
        },
      }
    }
  }
  throw new Error(`the server did not start:\n${out}`)
}

async function isReady(url: string): Promise<boolean> {
  return fetch(`${url}/health`).then(
    ({ ok }) => ok,
    () => false,
  )
}

/** Milliseconds for template and tokens of a long conversation, and how many tokens that are. */
async function longPrompt(path: string): Promise<{ ms: number; tokens: number }> {
  const tokenizer = serverTokenizer(await loadTokenizer(path))
  const content = "What the model is told, and what it answered. ".repeat(40)
  const messages = Array.from({ length: 20 }, (_, i) => ({
    role: i % 2 === 0 ? "user" : "assistant",
    content: `${i}: ${content}`,
  }))
  const times: number[] = []
  let count = 0
  for (let i = 0; i < 9; i++) {
    // other words each time, or a cache answers
    const asked = messages.map((one) => ({ ...one, content: `${i} ${one.content}` }))
    const started = performance.now()
    count = tokenizer.encodePrompt(tokenizer.renderChat(asked)).length
    times.push(performance.now() - started)
  }
  return { ms: median(times), tokens: count }
}

const prompt = await longPrompt(model)
using engine = await Engine.create(config)
const server = await startServer()
const rows: { direct: number; served: number }[] = []
try {
  streamRate(engine, tokens, streams)
  await served(server.url)
  for (let i = 0; i < rounds; i++)
    rows.push({ direct: streamRate(engine, tokens, streams), served: await served(server.url) })
} finally {
  await server.stop()
}
const { threads, isa } = engine.info
report(
  [
    {
      rounds,
      "engine tok/s": median(rows.map((row) => row.direct)).toFixed(1),
      "server tok/s": median(rows.map((row) => row.served)).toFixed(1),
      "server / engine": median(rows.map((row) => row.served / row.direct)).toFixed(3),
      [`prompt of ${prompt.tokens} ms`]: prompt.ms.toFixed(1),
    },
  ],
  flags.json,
  { threads, isa, tokens, streams },
)
