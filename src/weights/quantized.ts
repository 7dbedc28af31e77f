import { dirname, join } from "node:path"

import { FormatError } from "../errors.ts"
import { BF16, type DTypeInfo, F16, F32 } from "../tensor/dtype.ts"
import { byteLength } from "../tensor/tensor.ts"
import { buildFp8, fp8Type, type Scales } from "./fp8.ts"
import { withHybridNames } from "./hybrid.ts"
import {
  buildInts,
  type GroupedInts,
  intType,
  transposed,
  unpackAwq,
  unpackColumns,
  unpackRows,
} from "./int4.ts"
import { type Quantization, readQuantization } from "./quantization.ts"
import type { SafetensorsFile } from "./safetensors.ts"
import type { WeightEntry } from "./source.ts"
import { toFloat32 } from "./vector.ts"

/** Beside a quantised weight; none is a tensor of the model. */
const AUXILIARY =
  /\.(weight_scale(_inv)?|weight_packed|weight_shape|weight_zero_point|weight_g_idx|qweight|qzeros|scales|g_idx|input_scale|input_zero_point|output_scale|[qkv]_scale)$/
const EXPERT = /\.experts\.\d+\./
const SCALE_TYPES: ReadonlySet<DTypeInfo> = new Set([F32, F16, BF16])

export interface QuantizationOptions {
  /** Names of weights that become F32 whatever type would hold them. */
  readonly widened?: RegExp
}

/**
 * A checkpoint whose quantised weights (FP8, compressed-tensors, GPTQ, AWQ) are entries `….weight` of
 * a type that kernels compute with and that holds the same values. Hybrid folders get Hugging Face's names. Others pass through. Takes over the
 * checkpoint: an error closes it.
 * @throws FormatError that names file, tensor or key and what was expected
 */
export function withQuantization(
  stored: SafetensorsFile,
  options: QuantizationOptions = {},
): SafetensorsFile {
  let weights = stored
  let view: View
  try {
    weights = withHybridNames(stored)
    const file = join(dirname(weights.files[0] ?? weights.path), "config.json")
    view = new View(weights, readQuantization(file), options)
  } catch (error) {
    weights.close()
    throw error
  }
  if (view.entries.size === 0) return weights
  const names = [
    ...[...weights.names()].filter((name) => !AUXILIARY.test(name) && !view.entries.has(name)),
    ...view.entries.keys(),
  ]
  // parts of one tensor are asked for one after the other
  let last: { readonly name: string; readonly bytes: Uint8Array } | undefined
  const built = [...view.entries.values()].reduce((sum, { entry }) => sum + entry.byteLength, 0)
  const parts = new Set([...view.entries.values()].flatMap((entry) => entry.parts))
  const replaced = [...parts].reduce((sum, name) => sum + (weights.get(name)?.byteLength ?? 0), 0)
  return {
    ...weights,
    totalBytes: weights.totalBytes - replaced + built,
    names: () => names,
    get: (name) =>
      view.entries.get(name)?.entry ?? (AUXILIARY.test(name) ? undefined : weights.get(name)),
    bytes: (name) => {
      const built = view.entries.get(name)?.entry
      if (built?.build === undefined) return weights.bytes(name)
      if (last?.name === name) return last.bytes
      const bytes = new Uint8Array(built.byteLength)
      built.build(bytes)
      last = { name, bytes }
      return bytes
    },
    drop: (name) => {
      if (last?.name === name) last = undefined
      const parts = view.entries.get(name)?.parts ?? [name]
      for (const part of parts) weights.drop(part)
    },
  }
}

interface Built {
  readonly entry: WeightEntry
  /** Stored tensors that it is made of. */
  readonly parts: readonly string[]
}

class View {
  readonly entries = new Map<string, Built>()
  readonly #weights: SafetensorsFile
  readonly #quantization: Quantization
  readonly #widened: RegExp | undefined

  constructor(
    weights: SafetensorsFile,
    quantization: Quantization,
    { widened }: QuantizationOptions,
  ) {
    this.#weights = weights
    this.#quantization = quantization
    this.#widened = widened
    for (const name of weights.names()) {
      const [, module, part] = /^(.+)\.(weight|weight_packed|qweight)$/.exec(name) ?? []
      if (module === undefined) continue
      const entry = weights.get(name) as WeightEntry
      if (part === "weight_packed") this.#packed(module, entry)
      else if (part === "qweight") this.#grouped(module, entry)
      else if (entry.dtype.name === "F8_E4M3") this.#fp8(module, entry)
    }
  }

  #fp8(module: string, weight: WeightEntry): void {
    const inverse = this.#weights.get(`${module}.weight_scale_inv`)
    const scale = inverse ?? this.#weights.get(`${module}.weight_scale`)
    if (scale === undefined) {
      const expected = `${module}.weight_scale_inv or ${module}.weight_scale`
      throw refusal(weight, `is F8_E4M3 without scales, expected a tensor ${expected}`)
    }
    const [rows, columns] = matrix(weight)
    const layout = this.#fp8Layout(scale, rows, columns)
    const dtype = this.#isWidened(module) ? F32 : fp8Type(columns, layout)
    this.#add(module, dtype, [rows, columns], [weight, scale], (to) => {
      const values = this.#floats(scale)
      buildFp8(this.#bytes(weight), [rows, columns], { ...layout, values }, dtype, to)
    })
  }

  /** Of one scale, one a row, or one a block. */
  #fp8Layout(scale: WeightEntry, rows: number, columns: number): Omit<Scales, "values"> {
    const { shape } = scale
    checkScaleType(scale)
    const count = shape.reduce((a, b) => a * b, 1)
    if (count === 1) return { rows, columns, stride: 1 }
    const isColumn = shape.length === 1 || (shape.length === 2 && shape[1] === 1)
    const [high, wide] = this.#quantization.block
    const blocks = [Math.ceil(rows / high), Math.ceil(columns / wide)] as const
    if (shape.length === 2 && shape[0] === blocks[0] && shape[1] === blocks[1])
      return { rows: high, columns: wide, stride: blocks[1] }
    if (isColumn && shape[0] === rows) return { rows: 1, columns, stride: 1 }
    throw refusal(
      scale,
      `has shape [${shape.join(", ")}], expected [${blocks.join(", ")}] (blocks of ${high} x ${wide}), [${rows}, 1] or [1]`,
    )
  }

  /** compressed-tensors' whole numbers: words along the columns. */
  #packed(module: string, packed: WeightEntry): void {
    const scale = this.#need(packed, `${module}.weight_scale`)
    const shapeEntry = this.#need(packed, `${module}.weight_shape`)
    const [rows, columns] = this.#weightShape(shapeEntry)
    const bits = 4
    expectShape(packed, "I32", [rows, Math.ceil((columns * bits) / 32)])
    checkScaleType(scale)
    const groups = scale.shape.length === 2 ? (scale.shape[1] as number) : 1
    if (scale.shape[0] !== rows || groups === 0 || columns % groups !== 0) {
      throw refusal(
        scale,
        `has shape [${scale.shape.join(", ")}], expected [${rows}, a divisor of ${columns}]`,
      )
    }
    const zero = this.#weights.get(`${module}.weight_zero_point`)
    if (zero !== undefined) expectShape(zero, "I32", [Math.ceil(rows / 8), groups])
    const order = this.#weights.get(`${module}.weight_g_idx`)
    const ints: GroupedInts = {
      rows,
      columns,
      bits,
      groups,
      codes: () => unpackRows(this.#bytes(packed), rows, columns, bits),
      pairs: () => this.#bytes(packed),
      scales: () => this.#scales(scale, groups, 1),
      // eight rows of a column in a word
      zeros: zero && (() => unpackColumnsOf(this.#bytes(zero), rows, groups)),
      groupOf: order && this.#order(order, columns, groups),
    }
    const parts = [packed, scale, shapeEntry, ...[zero, order].filter((e) => e !== undefined)]
    this.#ints(module, ints, scale.dtype, zero === undefined, parts)
  }

  #weightShape(entry: WeightEntry): [number, number] {
    const name = entry.dtype.name
    if ((name !== "I32" && name !== "I64") || entry.byteLength !== 2 * entry.dtype.blockBytes)
      throw refusal(entry, `is ${name} [${entry.shape.join(", ")}], expected two of I32 or I64`)
    const bytes = this.#bytes(entry).slice().buffer
    const [rows = 0, columns = 0] =
      name === "I32" ? new Int32Array(bytes) : [...new BigInt64Array(bytes)].map(Number)
    if (rows <= 0 || columns <= 0 || rows * columns > 2 ** 48)
      throw refusal(entry, `holds [${rows}, ${columns}], expected a matrix's rows and columns`)
    return [rows, columns]
  }

  /** GPTQ and AWQ: matrices are stored [in, out]. */
  #grouped(module: string, qweight: WeightEntry): void {
    const { method, bits, groupSize, file, isSymmetric, zeroOffset } = this.#quantization
    if (method !== "gptq" && method !== "awq") {
      throw new FormatError(
        file,
        `quantization_config.quant_method: "${method}", expected "gptq" or "awq" for tensor "${qweight.name}"`,
      )
    }
    if (method === "awq" && bits !== 4)
      throw new FormatError(file, `quantization_config.bits: ${bits}, expected 4 for AWQ`)
    const scale = this.#need(qweight, `${module}.scales`)
    const qzeros = this.#need(qweight, `${module}.qzeros`)
    checkScaleType(scale)
    const [high, wide] = matrix(qweight)
    const per = 32 / bits
    const [rows, columns] = method === "gptq" ? [wide, high * per] : [wide * per, high]
    if (qweight.dtype.name !== "I32") throw refusal(qweight, `is ${qweight.dtype.name}, not I32`)
    const size = groupSize === -1 ? columns : groupSize
    if (columns % size !== 0) {
      throw new FormatError(
        file,
        `quantization_config.group_size: ${size}, expected a divisor of the ${columns} columns of "${module}"`,
      )
    }
    const groups = columns / size
    if (scale.shape.length !== 2 || scale.shape[0] !== groups || scale.shape[1] !== rows) {
      throw refusal(
        scale,
        `has shape [${scale.shape.join(", ")}], expected [${groups}, ${rows}] (groups of ${size})`,
      )
    }
    expectShape(qzeros, "I32", [groups, Math.ceil(rows / per)])
    const order = this.#weights.get(`${module}.g_idx`)
    const zeros = (): ArrayLike<number> => {
      const bytes = this.#bytes(qzeros)
      if (method === "awq") return transposed(unpackAwq(bytes, groups, rows), groups, rows)
      const stored = Uint16Array.from(
        transposed(unpackRows(bytes, groups, rows, bits), groups, rows),
        (zero) => zero + zeroOffset,
      )
      if (isSymmetric && stored.some((zero) => zero !== 1 << (bits - 1)))
        throw refusal(
          qzeros,
          `holds other zero points than ${1 << (bits - 1)}, expected with "sym"`,
        )
      return stored
    }
    const ints: GroupedInts = {
      rows,
      columns,
      bits,
      groups,
      codes: () =>
        method === "gptq"
          ? unpackColumns(this.#bytes(qweight), high, rows, bits)
          : transposed(unpackAwq(this.#bytes(qweight), columns, rows), columns, rows),
      scales: () => this.#scales(scale, 1, rows),
      zeros,
      groupOf: order && this.#order(order, columns, groups),
    }
    const parts = [qweight, scale, qzeros, ...(order === undefined ? [] : [order])]
    this.#ints(module, ints, scale.dtype, method === "gptq" && isSymmetric, parts)
  }

  #ints(
    module: string,
    ints: GroupedInts,
    scale: DTypeInfo,
    isSymmetric: boolean,
    parts: readonly WeightEntry[],
  ): void {
    // a stack of experts is of one type, also where some have no order of their own
    const isOrdered = this.#quantization.isOrdered && ints.groups > 1 && EXPERT.test(module)
    const isWide = isOrdered || this.#isWidened(module)
    const dtype = isWide ? F32 : intType(ints, scale, isSymmetric)
    this.#add(module, dtype, [ints.rows, ints.columns], parts, (to) => buildInts(ints, dtype, to))
  }

  /** Groups of columns, where they are not in order. */
  #order(entry: WeightEntry, columns: number, groups: number): Int32Array | undefined {
    expectShape(entry, "I32", [columns])
    const order = new Int32Array(this.#bytes(entry).slice().buffer)
    const bad = order.find((group) => group < -1 || group >= groups)
    if (bad !== undefined) throw refusal(entry, `holds group ${bad}, expected 0 to ${groups - 1}`)
    const size = columns / groups
    const isPlain = order.every((group, c) => group === -1 || group === Math.floor(c / size))
    return isPlain ? undefined : order
  }

  #scales(
    entry: WeightEntry,
    rowStride: number,
    groupStride: number,
  ): ReturnType<GroupedInts["scales"]> {
    const stored = this.#bytes(entry)
    return { stored, values: toFloat32(entry.dtype, stored), rowStride, groupStride }
  }

  #add(
    module: string,
    dtype: DTypeInfo,
    shape: readonly number[],
    parts: readonly WeightEntry[],
    build: (to: Uint8Array) => void,
  ): void {
    const name = `${module}.weight`
    const { file, name: first } = parts[0] as WeightEntry
    const twin = this.#weights.get(name)
    if (twin !== undefined && twin.name !== first)
      throw refusal(twin, `is stored beside "${first}", expected one of the two`)
    const bytes = byteLength(dtype, shape)
    const entry = { name, dtype, shape, address: 0, byteLength: bytes, file, build }
    this.entries.set(name, { entry, parts: parts.map((part) => part.name) })
  }

  #isWidened(module: string): boolean {
    return this.#widened?.test(`${module}.weight`) === true
  }

  #need(of: WeightEntry, name: string): WeightEntry {
    const entry = this.#weights.get(name)
    if (entry === undefined) throw refusal(of, `needs a tensor "${name}", which is missing`)
    return entry
  }

  #bytes(entry: WeightEntry): Uint8Array {
    return this.#weights.bytes(entry.name)
  }

  #floats(entry: WeightEntry): Float32Array {
    return toFloat32(entry.dtype, this.#bytes(entry))
  }
}

/** [rows, groups] from zero points of which eight rows are a word: [words, groups]. */
function unpackColumnsOf(packed: Uint8Array, rows: number, groups: number): Uint8Array {
  const words = Math.ceil(rows / 8)
  const lines = unpackColumns(packed, words, groups, 4)
  return transposed(lines, groups, words * 8).subarray(0, rows * groups)
}

function matrix(entry: WeightEntry): [number, number] {
  const [rows, columns] = entry.shape
  if (
    rows === undefined ||
    columns === undefined ||
    entry.shape.length !== 2 ||
    rows * columns === 0
  )
    throw refusal(entry, `has shape [${entry.shape.join(", ")}], expected a matrix`)
  return [rows, columns]
}

function expectShape(entry: WeightEntry, dtype: string, shape: readonly number[]): void {
  if (entry.dtype.name === dtype && entry.shape.join() === shape.join()) return
  const found = `${entry.dtype.name} [${entry.shape.join(", ")}]`
  throw refusal(entry, `is ${found}, expected ${dtype} [${shape.join(", ")}]`)
}

function checkScaleType(entry: WeightEntry): void {
  if (!SCALE_TYPES.has(entry.dtype))
    throw refusal(entry, `is of type ${entry.dtype.name}, expected F32, F16 or BF16`)
}

function refusal(entry: WeightEntry, detail: string): FormatError {
  return new FormatError(entry.file, `tensor "${entry.name}": ${detail}`)
}
