/**
 * A GGUF of a published model's shape with random weights, to time programs on: blocks of any file type with sane scales,
 * routers that choose experts evenly, a vocabulary that other programs load too.
 * `bun bench/synth.ts NAME --type Q4_K_M [--layers N] [--experts N] [--vocab N] [--seed N] --out FILE`
 */
import { parseArgs } from "node:util"

import { progressBar } from "../src/cli/progress.ts"
import { describeGguf } from "../src/convert/convert-folder.ts"
import { ggufTensors } from "../src/convert/described-model.ts"
import { type FileType, fileType } from "../src/convert/file-types.ts"
import { planQuantization } from "../src/convert/quantize-plan.ts"
import { configFromJson } from "../src/models/config-hf.ts"
import { ggufConfigFields, ggufConfigTensors, ggufFamily } from "../src/models/config-to-gguf.ts"
import type { ModelConfig } from "../src/models/config.ts"
import { Backend } from "../src/native/backend.ts"
import { quantize } from "../src/ops/index.ts"
import type { DTypeInfo } from "../src/tensor/dtype.ts"
import { byteLength, Tensor } from "../src/tensor/tensor.ts"
import { type GgufField, type GgufTensorPlan, GgufWriter } from "../src/weights/gguf-writer.ts"
import { SHAPES, sizedShape } from "./shapes.ts"

/** Values of one pool of random blocks: far more than a vector unit sees at once, quick to quantise. */
const POOL_VALUES = 1 << 20
/** Bytes written at a time. */
const PIECE = 1 << 20

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    type: { type: "string", default: "Q4_K_M" },
    layers: { type: "string" },
    experts: { type: "string" },
    vocab: { type: "string", default: "32000" },
    seed: { type: "string", default: "1" },
    out: { type: "string" },
  },
})

/** A vocabulary of bytes and made-up words, its ids those of the embedding's rows. */
function vocabulary(size: number): Map<string, GgufField> {
  const tokens = ["<unk>", "<s>", "</s>"]
  const kinds = [2, 3, 3]
  for (let byte = 0; byte < 256; byte++) {
    tokens.push(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`)
    kinds.push(6)
  }
  for (let i = 0; tokens.length < size; i++) {
    tokens.push(
      `▁${[...i.toString(26)].map((c) => String.fromCharCode(97 + parseInt(c, 26))).join("")}`,
    )
    kinds.push(1)
  }
  if (tokens.length > size) throw new Error(`--vocab ${size}: at least ${tokens.length}`)
  const scores = new Float32Array(size).map((_, i) => -i)
  return new Map<string, GgufField>([
    ["tokenizer.ggml.model", { type: "string", value: "llama" }],
    ["tokenizer.ggml.pre", { type: "string", value: "default" }],
    ["tokenizer.ggml.tokens", { type: "string", value: tokens }],
    ["tokenizer.ggml.scores", { type: "f32", value: scores }],
    ["tokenizer.ggml.token_type", { type: "i32", value: Int32Array.from(kinds) }],
    ["tokenizer.ggml.bos_token_id", { type: "u32", value: 1 }],
    ["tokenizer.ggml.eos_token_id", { type: "u32", value: 2 }],
    ["tokenizer.ggml.unknown_token_id", { type: "u32", value: 0 }],
  ])
}

/** Numbers in [0, 1) that a seed decides (xorshift). */
function generator(seed: number): () => number {
  let state = (seed * 0x9e3779b1) | 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
}

/** Normally distributed values, two of each pair of even ones (Box and Muller). */
function normal(count: number, deviation: number, random: () => number): Float32Array {
  const out = new Float32Array(count)
  for (let i = 0; i < count; i += 2) {
    const radius = deviation * Math.sqrt(-2 * Math.log(1 - random()))
    const angle = 2 * Math.PI * random()
    out[i] = radius * Math.cos(angle)
    if (i + 1 < count) out[i + 1] = radius * Math.sin(angle)
  }
  return out
}

/** Weights from pools of quantised normal values: pieces of a pool from a random block on, one after another. */
class RandomWeights {
  readonly #backend: Backend
  readonly #random: () => number
  readonly #pools = new Map<string, Uint8Array>()

  constructor(backend: Backend, random: () => number) {
    this.#backend = backend
    this.#random = random
  }

  /** Bytes of one tensor, in pieces that the next overwrites none of. */
  *pieces({ name, dtype, shape }: GgufTensorPlan): Generator<Uint8Array> {
    const columns = shape.at(-1) as number
    if (shape.length === 1 || /ffn_gate_inp\.weight$|_norm\.weight$/.test(name)) {
      yield this.#vector(name, shape, columns)
      return
    }
    const pool = this.#pool(dtype, columns)
    const total = byteLength(dtype, shape)
    const half = pool.length / 2
    const whole = Math.floor(Math.min(PIECE, half) / dtype.blockBytes) * dtype.blockBytes
    for (let left = total; left > 0;) {
      const block = Math.floor((this.#random() * half) / dtype.blockBytes)
      const from = block * dtype.blockBytes
      const piece = pool.subarray(from, from + Math.min(left, whole))
      left -= piece.length
      yield piece
    }
  }

  /** Norms about 1; routers and biases about 0. */
  #vector(name: string, shape: readonly number[], columns: number): Uint8Array {
    const isNorm = name.endsWith("_norm.weight")
    const deviation = shape.length > 1 ? 1 / Math.sqrt(columns) : 0.02
    const values = normal(
      shape.reduce((a, b) => a * b, 1),
      deviation,
      this.#random,
    )
    return new Uint8Array((isNorm ? values.map((v) => v + 1) : values).buffer)
  }

  /** Blocks of normal values that keep activations as large as they are. */
  #pool(dtype: DTypeInfo, columns: number): Uint8Array {
    const key = `${dtype.name} ${columns}`
    const known = this.#pools.get(key)
    if (known !== undefined) return known
    const count = 2 * Math.max(POOL_VALUES, dtype.blockSize)
    const values = normal(count, 1 / Math.sqrt(columns), this.#random)
    const rows = Tensor.from(this.#backend, values, [count / 1024, 1024])
    const out = Tensor.allocate(this.#backend, dtype, rows.shape)
    const bytes = quantize(rows, null, out).bytes().slice()
    rows[Symbol.dispose]()
    out[Symbol.dispose]()
    this.#pools.set(key, bytes)
    return bytes
  }
}

function metadata(name: string, config: ModelConfig, type: FileType): Map<string, GgufField> {
  const fields = ggufConfigFields(name, config)
  fields.set("general.type", { type: "string", value: "model" })
  fields.set("general.name", { type: "string", value: `${name}, random weights` })
  fields.set("general.file_type", { type: "u32", value: type.id })
  fields.set("general.quantization_version", { type: "u32", value: 2 })
  for (const [key, field] of vocabulary(config.vocab_size)) fields.set(key, field)
  return fields
}

async function main(): Promise<void> {
  const [name = ""] = positionals
  const shape = Object.hasOwn(SHAPES, name) ? SHAPES[name] : undefined
  if (shape === undefined || flags.out === undefined)
    throw new Error(`usage: bun bench/synth.ts ${Object.keys(SHAPES).join("|")} --out FILE`)
  const layers = flags.layers === undefined ? undefined : Number(flags.layers)
  const experts = flags.experts === undefined ? undefined : Number(flags.experts)
  const config = configFromJson(name, sizedShape(shape, layers, Number(flags.vocab), experts))
  const { architecture } = ggufFamily(name, config.model_type)
  const type = fileType(flags.type)
  const fields = metadata(name, config, type)
  const small = ggufConfigTensors(config)
  const tensors = await ggufTensors(config, architecture)
  const described = describeGguf(flags.out, fields, tensors, small)
  const plans: GgufTensorPlan[] = planQuantization(described, {
    fileType: type,
    hasImatrix: false,
  }).map(({ entry, dtype }) => ({ name: entry.name, shape: entry.shape, dtype }))
  using backend = new Backend({ threads: 1 })
  using writer = new GgufWriter(flags.out, fields, plans)
  const weights = new RandomWeights(backend, generator(Number(flags.seed)))
  const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`
  using bar = progressBar(name, gib)
  let done = 0
  for (const plan of plans) {
    const values = small.get(plan.name)
    const pieces = values === undefined ? weights.pieces(plan) : [new Uint8Array(values.buffer)]
    for (const piece of pieces) {
      writer.write(plan.name, piece)
      done += piece.length
      bar.update(done, writer.totalBytes)
    }
  }
  writer.finish()
  console.log(`${flags.out}: ${architecture}, ${type.name}, ${plans.length} tensors, ${gib(done)}`)
}

await main()
