/**
 * What a prompt costs before the engine sees it: MB/s of text encoded and tokens/s decoded per kind of tokenizer, and chat
 * templates rendered a second. The vocabularies are the reference files' small ones and, where KT_LLAMA_CPP names a checkout
 * of llama.cpp, its full-size ones. `bun bench/tokenizer.bench.ts [--ms TIME] [--file TEXT] [--json FILE]`
 */
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join, resolve } from "node:path"
import { parseArgs } from "node:util"

import { Bench } from "tinybench"

import { ChatTemplate, DEFAULT_TEMPLATE } from "../src/tokenizer/chat-template.ts"
import { Tokenizer } from "../src/tokenizer/tokenizer.ts"
import { readGgufMetadata } from "../test/tokenizer/gguf-metadata.ts"
import { medianSeconds, report } from "./report.ts"

const { values: flags } = parseArgs({
  options: {
    ms: { type: "string", default: "500" },
    file: { type: "string" },
    json: { type: "string" },
  },
})
const root = resolve(import.meta.dir, "..")
/** English by default: the project's own documents, as often as a long prompt needs. */
const text =
  flags.file !== undefined
    ? readFileSync(flags.file, "utf8")
    : ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        .map((name) => readFileSync(join(root, name), "utf8"))
        .join("\n")
const megabytes = Buffer.byteLength(text) / 1e6

const tokenizers = new Map<string, Tokenizer>()
function load(folder: string, pattern: RegExp): void {
  if (!existsSync(folder)) return
  for (const name of readdirSync(folder)
    .filter((each) => pattern.test(each))
    .sort())
    tokenizers.set(
      name.replace(/\.gguf$/, ""),
      Tokenizer.fromGguf(readGgufMetadata(join(folder, name)), name),
    )
}
load(
  join(process.env["KT_SHARED"] ?? join(root, "..", "shared"), "golden", "gguf"),
  /^(llama-f16|llama-tied-bf16|qwen2-q8_0|gpt-oss-mxfp4|deepseek2-v3-q4_1)\.gguf$/,
)
const checkout = process.env["KT_LLAMA_CPP"]
if (checkout !== undefined) load(join(checkout, "models"), /^ggml-vocab-.*\.gguf$/)

const bench = new Bench({ time: Number(flags.ms), warmup: true, warmupTime: 200 })
for (const [name, tokenizer] of tokenizers) {
  const ids = tokenizer.encode(text)
  bench.add(`encode ${name}`, () => tokenizer.encode(text))
  bench.add(`decode ${name}`, () => tokenizer.decode(ids))
}
const messages = Array.from({ length: 20 }, (_, i) => ({
  role: i % 2 === 0 ? "user" : "assistant",
  content: `Message ${i}: the quick brown fox jumps over the lazy dog.`,
}))
const templates = new Map([["ChatML", DEFAULT_TEMPLATE]])
for (const [name, tokenizer] of tokenizers)
  if (tokenizer.chatTemplate !== undefined && tokenizer.chatTemplate.length > 2000)
    templates.set(name, tokenizer.chatTemplate)
if (checkout !== undefined)
  for (const name of [
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-V3.1",
    "GLM-4.6",
    "moonshotai-Kimi-K2",
  ])
    templates.set(
      name,
      readFileSync(join(checkout, "models", "templates", `${name}.jinja`), "utf8"),
    )
for (const [name, source] of templates) {
  const template = new ChatTemplate(source)
  bench.add(`template ${name}`, () => template.render({ messages }))
}
await bench.run()

const rows = [
  ...[...tokenizers].map(([name, tokenizer]) => ({
    tokenizer: name,
    tokens: tokenizer.vocabSize,
    "encode MB/s": (megabytes / medianSeconds(bench, `encode ${name}`)).toFixed(1),
    "decode Mtokens/s": (
      tokenizer.encode(text).length /
      1e6 /
      medianSeconds(bench, `decode ${name}`)
    ).toFixed(1),
  })),
  ...[...templates.keys()].map((name) => ({
    template: name,
    "20 messages/s": (1 / medianSeconds(bench, `template ${name}`)).toFixed(0),
  })),
]
report(rows, flags.json, { text_bytes: Buffer.byteLength(text) })
