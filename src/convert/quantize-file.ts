import { ConfigError, NativeError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import { quantize } from "../ops/index.ts"
import { type DTypeInfo, F32, rowBytes } from "../tensor/dtype.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"
import { fieldsOf, type GgufField, GgufWriter } from "../weights/gguf-writer.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { FloatRows, isReadable, matrixShape } from "./float-rows.ts"
import { type Imatrix, importanceOf } from "./imatrix.ts"
import { type PlannedTensor, planQuantization, type QuantizePlanOptions } from "./quantize-plan.ts"

/** Version of the quantised formats that `general.quantization_version` names. */
const QUANTIZATION_VERSION = 2
/** Bytes of tensors copied at a time. */
const COPY_BYTES = 32 * 2 ** 20

/** Types that `quantize` writes. */
const WRITTEN: ReadonlySet<string> = new Set(
  (
    "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K " +
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS " +
    "TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0"
  ).split(" "),
)

export interface QuantizeFileOptions extends Omit<QuantizePlanOptions, "hasImatrix"> {
  readonly imatrix?: Imatrix
  /** Quantised tensors may be quantised once more, which loses more than quantising the floats would. */
  readonly allowRequantize?: boolean
  readonly splitMaxBytes?: number
  readonly onProgress?: (done: number, total: number) => void
}

export interface QuantizedFile {
  readonly paths: readonly string[]
  readonly bytesBefore: number
  readonly bytesAfter: number
  /** Tensors whose rows do not fit the wanted type's blocks. */
  readonly fallbacks: readonly { name: string; wanted: string; type: string }[]
}

/** The types every tensor would get, checked: what `quantizeFile` does, without doing it. */
export function checkedPlan(gguf: GgufFile, options: QuantizeFileOptions): PlannedTensor[] {
  const plan = planQuantization(gguf, { ...options, hasImatrix: options.imatrix !== undefined })
  for (const { entry, dtype } of plan) {
    if (dtype === entry.dtype) continue
    const { name } = entry
    if (!WRITTEN.has(dtype.name))
      throw new ConfigError(`tensor "${name}": quantising to ${dtype.name} is not supported`, {
        hint: `supported are ${[...WRITTEN].join(", ")}`,
      })
    if (!isReadable(entry.dtype))
      throw new ConfigError(`tensor "${name}": ${entry.dtype.name} cannot be read`)
    if (entry.dtype.blockSize > 1 && options.allowRequantize !== true)
      throw new ConfigError(`tensor "${name}" is ${entry.dtype.name}, quantised already`, {
        hint: "quantise the model's floats, or accept the loss with --allow-requantize",
      })
  }
  return plan
}

/** Writes a GGUF with other tensor types. Memory is a bounded piece of a tensor. */
export function quantizeFile(
  gguf: GgufFile,
  path: string,
  backend: Backend,
  options: QuantizeFileOptions,
): QuantizedFile {
  const plan = checkedPlan(gguf, options)
  const tensors = plan.map(({ entry, dtype }) => ({ name: entry.name, dtype, shape: entry.shape }))
  const total = plan.reduce((sum, { entry }) => sum + entry.byteLength, 0)
  const { splitMaxBytes, onProgress } = options
  using writer = new GgufWriter(path, outputFields(gguf, options), tensors, {
    ...(splitMaxBytes === undefined ? {} : { splitMaxBytes }),
  })
  using rows = new FloatRows(backend)
  let done = 0
  for (const tensor of plan) {
    const { entry, dtype } = tensor
    const advance = (bytes: number): void => {
      done += bytes
      onProgress?.(done, total)
    }
    if (dtype === entry.dtype) copyTensor(gguf, writer, entry.name, advance)
    else convertTensor(tensor, writer, rows, backend, options.imatrix, advance)
    gguf.drop(entry.name)
  }
  writer.finish()
  return {
    paths: writer.paths,
    bytesBefore: total,
    bytesAfter: writer.totalBytes,
    fallbacks: plan.flatMap(({ entry, dtype, instead }) =>
      instead === undefined ? [] : [{ name: entry.name, wanted: instead.name, type: dtype.name }],
    ),
  }
}

function outputFields(
  gguf: GgufFile,
  { fileType, imatrix }: QuantizeFileOptions,
): Map<string, GgufField> {
  const fields = fieldsOf(gguf.metadata, gguf.metadataTypes)
  fields.delete("general.alignment")
  fields.set("general.quantization_version", { type: "u32", value: QUANTIZATION_VERSION })
  fields.set("general.file_type", { type: "u32", value: fileType.id })
  if (imatrix === undefined) return fields
  fields.set("quantize.imatrix.file", { type: "string", value: imatrix.path })
  const [dataset] = imatrix.datasets
  if (dataset !== undefined)
    fields.set("quantize.imatrix.dataset", { type: "string", value: dataset })
  fields.set("quantize.imatrix.entries_count", { type: "i32", value: imatrix.entries.size })
  fields.set("quantize.imatrix.chunks_count", { type: "i32", value: imatrix.chunks })
  return fields
}

function copyTensor(
  gguf: GgufFile,
  writer: GgufWriter,
  name: string,
  advance: (bytes: number) => void,
): void {
  const bytes = gguf.bytes(name)
  for (let at = 0; at < bytes.length; at += COPY_BYTES) {
    const piece = bytes.subarray(at, at + COPY_BYTES)
    writer.write(name, piece)
    advance(piece.length)
  }
}

function convertTensor(
  { entry, dtype }: PlannedTensor,
  writer: GgufWriter,
  rows: FloatRows,
  backend: Backend,
  imatrix: Imatrix | undefined,
  advance: (bytes: number) => void,
): void {
  const { name, shape } = entry
  const { rows: all, columns } = matrixShape(shape)
  const experts = shape.length === 3 ? (shape[0] as number) : 1
  const perExpert = all / experts
  const output = new QuantizedRows(backend, dtype)
  try {
    for (let expert = 0; expert < experts; expert++) {
      const importance = imatrix && importanceOf(imatrix, name, columns, expert, experts)
      const weights = importance
        ? Tensor.from(backend, importance, [columns], { persistent: true })
        : null
      rows.forEach(
        entry,
        (piece, first) => {
          writer.write(name, output.of(piece, weights, name, expert * perExpert + first))
          advance(piece.dim(0) * rowBytes(entry.dtype, columns))
        },
        { first: expert * perExpert, count: perExpert },
      )
      weights?.[Symbol.dispose]()
    }
  } finally {
    output[Symbol.dispose]()
  }
}

/** Rows quantised into one buffer that is used again and again. */
export class QuantizedRows implements Disposable {
  readonly #backend: Backend
  readonly #dtype: DTypeInfo
  #buffer: Tensor | undefined

  constructor(backend: Backend, dtype: DTypeInfo) {
    this.#backend = backend
    this.#dtype = dtype
  }

  /**
   * The bytes of `piece` [rows, n] F32 in the output type, valid until the next call. `name` and `first` (its first
   * row's number) are for messages.
   */
  of(piece: Tensor, importance: Tensor | null, name: string, first: number): Uint8Array {
    if (this.#dtype === F32) return piece.bytes()
    const bytes = byteLength(this.#dtype, piece.shape)
    if (this.#buffer === undefined || this.#buffer.numel < bytes / 4) {
      this.#buffer?.[Symbol.dispose]()
      this.#buffer = Tensor.allocate(this.#backend, F32, [Math.ceil(bytes / 4)])
    }
    const out = new Tensor(this.#backend, this.#dtype, piece.shape, this.#buffer.data, {
      owner: this.#buffer,
    })
    try {
      quantize(piece, importance, out)
    } catch (cause) {
      if (!(cause instanceof NativeError)) throw cause
      throw new ConfigError(`tensor "${name}", rows from ${first} on: ${cause.message}`, { cause })
    }
    return out.bytes()
  }

  [Symbol.dispose](): void {
    this.#buffer?.[Symbol.dispose]()
  }
}
