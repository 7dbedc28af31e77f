import { existsSync } from "node:fs"
import { basename, join, resolve } from "node:path"

import { EXTRA_KEY, extraConfig } from "../models/config-extra.ts"
import { standardConfigFromGguf } from "../models/config-gguf.ts"
import { configFromFolder } from "../models/config-hf.ts"
import { ggufConfigFields, ggufConfigTensors, ggufFamily } from "../models/config-to-gguf.ts"
import type { ModelConfig } from "../models/config.ts"
import { createModel } from "../models/registry.ts"
import type { Backend } from "../native/backend.ts"
import { type DTypeInfo, F32 } from "../tensor/dtype.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"
import { type GgufField, type GgufTensorPlan, GgufWriter } from "../weights/gguf-writer.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { withQuantization } from "../weights/quantized.ts"
import { openSafetensors, type SafetensorsFile } from "../weights/safetensors.ts"
import type { WeightEntry } from "../weights/source.ts"
import { type FileType, fileType } from "./file-types.ts"
import { FloatRows } from "./float-rows.ts"
import { type ModelTensor, modelTensors, type RowSource } from "./model-tensors.ts"
import { QuantizedRows } from "./quantize-file.ts"
import { planQuantization } from "./quantize-plan.ts"
import { tokenizerFields } from "./tokenizer-fields.ts"

export interface ConvertOptions {
  /** Name of a file type; undefined: the type that the folder's weights have. */
  readonly type?: string
  /** `tokenizer.ggml.pre`, where it is not to be found out. */
  readonly pre?: string
  readonly splitMaxBytes?: number
  readonly onProgress?: (done: number, total: number) => void
}

export interface Converted {
  readonly paths: readonly string[]
  readonly architecture: string
  readonly fileType: string
  readonly tensors: number
  readonly bytes: number
  /** Whether the folder had a tokenizer to convert. */
  readonly hasTokenizer: boolean
  /** Keys of the configuration that only this program reads from the file. */
  readonly extraKeys: readonly string[]
}

/** Weights that a GGUF has transposed: blocks along their rows do not help. */
const TRANSPOSED = /\.kv_b_proj\.weight$/

/** Writes a Hugging Face folder as a GGUF file. Memory is a bounded piece of a tensor, or one expert's matrix. */
export async function convertFolder(
  folder: string,
  path: string,
  backend: Backend,
  options: ConvertOptions = {},
): Promise<Converted> {
  const config = configFromFolder(folder)
  const weights = withQuantization(openSafetensors(folder), { widened: TRANSPOSED })
  try {
    const family = ggufFamily(join(folder, "config.json"), config.model_type)
    const { architecture } = family
    const model = await createModel(config)
    const tensors = modelTensors(model, config, weights, architecture, family.interleaved === true)
    const type = fileType(options.type ?? mainFloatType(weights))
    const fields = await metadata(folder, config, type, options.pre)
    const small = ggufConfigTensors(config)
    const described = describeGguf(path, fields, tensors, small)
    const extra = extraConfig(standardConfigFromGguf(described), config)
    if (extra !== undefined) fields.set(EXTRA_KEY, { type: "string", value: extra.json })
    const types = new Map(
      planQuantization(described, { fileType: type, hasImatrix: false }).map((planned) => [
        planned.entry.name,
        planned.dtype,
      ]),
    )
    const plans: GgufTensorPlan[] = [
      ...[...small].map(([name, values]) => ({ name, dtype: F32, shape: [values.length] })),
      ...tensors.map(({ name, shape, raw }) => ({
        name,
        shape,
        dtype: raw ?? (types.get(name) as DTypeInfo),
      })),
    ]
    using writer = new GgufWriter(path, fields, plans, {
      ...(options.splitMaxBytes === undefined ? {} : { splitMaxBytes: options.splitMaxBytes }),
    })
    for (const [name, values] of small) writer.write(name, new Uint8Array(values.buffer))
    using output = new TensorOutput(backend, writer)
    let done = 0
    const total = writer.totalBytes
    for (const [i, tensor] of tensors.entries()) {
      const { dtype, shape } = plans[small.size + i] as GgufTensorPlan
      output.write(tensor, dtype)
      for (const entry of tensor.entries) weights.drop(entry.name)
      done += byteLength(dtype, shape)
      options.onProgress?.(done, total)
    }
    writer.finish()
    return {
      paths: writer.paths,
      architecture,
      fileType: type.name,
      tensors: plans.length,
      bytes: total,
      hasTokenizer: fields.has("tokenizer.ggml.tokens"),
      extraKeys: extra?.keys ?? [],
    }
  } finally {
    weights.close()
  }
}

async function metadata(
  folder: string,
  config: ModelConfig,
  type: FileType,
  pre: string | undefined,
): Promise<Map<string, GgufField>> {
  const fields = ggufConfigFields(join(folder, "config.json"), config)
  fields.set("general.type", { type: "string", value: "model" })
  fields.set("general.name", { type: "string", value: basename(resolve(folder)) })
  fields.set("general.file_type", { type: "u32", value: type.id })
  fields.set("general.quantization_version", { type: "u32", value: 2 })
  const { model_type, vocab_size, eos_token_id, bos_token_id } = config
  if (existsSync(join(folder, "tokenizer.json"))) {
    const tokens = await tokenizerFields(
      folder,
      model_type,
      vocab_size,
      { bos: bos_token_id, eos: eos_token_id },
      pre,
    )
    for (const [key, field] of tokens) fields.set(key, field)
    return fields
  }
  // a model without a vocabulary, as other programs' files say it
  fields.set("tokenizer.ggml.model", { type: "string", value: "none" })
  const ids = [
    ["bos", bos_token_id],
    ...["eos", "eot", "eom"].map((name, i) => [name, eos_token_id[i]] as const),
  ] as const
  for (const [name, id] of ids)
    if (id !== undefined) fields.set(`tokenizer.ggml.${name}_token_id`, { type: "u32", value: id })
  return fields
}

/** The float type that most of the folder's bytes have. */
function mainFloatType(weights: SafetensorsFile): string {
  const bytes = new Map<string, number>([["BF16", 0]])
  for (const name of weights.names()) {
    const { dtype, byteLength: size } = weights.get(name) as WeightEntry
    if (/^(F32|F16|BF16)$/.test(dtype.name))
      bytes.set(dtype.name, (bytes.get(dtype.name) ?? 0) + size)
  }
  return [...bytes].toSorted((a, b) => b[1] - a[1])[0]?.[0] ?? "BF16"
}

/** The file to be as a reader will see it, without its values. */
export function describeGguf(
  path: string,
  fields: ReadonlyMap<string, GgufField>,
  tensors: readonly Pick<ModelTensor, "name" | "shape">[],
  small: ReadonlyMap<string, Float32Array>,
): GgufFile {
  const entry = (name: string, shape: readonly number[]): WeightEntry => ({
    name,
    shape,
    dtype: F32,
    address: 0,
    byteLength: byteLength(F32, shape),
    file: path,
  })
  const entries = new Map(tensors.map(({ name, shape }) => [name, entry(name, shape)]))
  for (const [name, values] of small) entries.set(name, entry(name, [values.length]))
  return {
    kind: "gguf",
    path,
    files: [path],
    version: 3,
    architecture: String(fields.get("general.architecture")?.value),
    metadata: new Map([...fields].map(([key, { value }]) => [key, value])),
    metadataTypes: new Map([...fields].map(([key, { type }]) => [key, type])),
    totalBytes: 0,
    names: () => entries.keys(),
    get: (name) => entries.get(name),
    bytes: (name) => new Uint8Array((small.get(name) ?? new Float32Array(0)).buffer),
    drop: () => {},
    close: () => {},
  }
}

/** Writes tensors row by row: permuted, mapped, and in the type they are to have. */
class TensorOutput implements Disposable {
  readonly #backend: Backend
  readonly #writer: GgufWriter
  readonly #rows: FloatRows

  constructor(backend: Backend, writer: GgufWriter) {
    this.#backend = backend
    this.#writer = writer
    this.#rows = new FloatRows(backend)
  }

  write(tensor: ModelTensor, dtype: DTypeInfo): void {
    using rows = new QuantizedRows(this.#backend, dtype)
    let first = 0
    for (const source of tensor.sources) first += this.#source(tensor, source, rows, first)
  }

  /** Returns how many rows were written. */
  #source(tensor: ModelTensor, source: RowSource, out: QuantizedRows, first: number): number {
    const { name, shape, raw, permutation, map } = tensor
    if (source.kind === "made") {
      const bytes = source.bytes()
      if (raw !== undefined) {
        this.#writer.write(name, bytes)
        return source.rows
      }
      const columns = shape.at(-1) as number
      const made = Tensor.allocate(this.#backend, source.dtype, [source.rows, columns])
      made.bytes().set(bytes)
      const { data: address } = made
      const entry = {
        name,
        dtype: source.dtype,
        shape: made.shape,
        address,
        byteLength: bytes.length,
        file: "",
      }
      this.#emit(name, entry, out, first, { first: 0, count: source.rows })
      made[Symbol.dispose]()
      return source.rows
    }
    const { entry, count } = source
    if (permutation === undefined && map === undefined) {
      this.#emit(name, entry, out, first, source)
      return count
    }
    const group = permutation?.size ?? count
    for (let at = 0; at < count; at += group) {
      this.#rows.forEach(
        entry,
        (piece) => {
          const rearranged = rearrange(piece, permutation?.order, map)
          this.#writer.write(name, out.of(rearranged, null, name, first + at))
        },
        { first: source.first + at, count: Math.min(group, count - at) },
      )
    }
    return count
  }

  #emit(
    name: string,
    entry: WeightEntry,
    out: QuantizedRows,
    first: number,
    range: { readonly first: number; readonly count: number },
  ): void {
    this.#rows.forEach(
      entry,
      (piece, at) => this.#writer.write(name, out.of(piece, null, name, first + at)),
      range,
    )
  }

  [Symbol.dispose](): void {
    this.#rows[Symbol.dispose]()
  }
}

/** A copy of [rows, n] F32 with its rows in another order and its values mapped. */
function rearrange(
  piece: Tensor,
  order: readonly number[] | undefined,
  map: ((value: number) => number) | undefined,
): Tensor {
  const values = piece.toFloat32Array()
  const columns = piece.dim(-1)
  const out = new Float32Array(values.length)
  for (let row = 0; row < piece.dim(0); row++) {
    const from = (order?.[row] ?? row) * columns
    out.set(values.subarray(from, from + columns), row * columns)
  }
  return Tensor.from(piece.backend, map === undefined ? out : out.map(map), piece.shape)
}
