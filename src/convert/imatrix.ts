import { closeSync, openSync, readFileSync, readSync, statSync } from "node:fs"

import { FormatError } from "../errors.ts"
import { F32 } from "../tensor/dtype.ts"
import { openGgufData } from "../weights/gguf.ts"
import { MAX_TENSOR_NAME_BYTES, MAX_TENSORS } from "../weights/limits.ts"

/** Importance matrices of the largest models have a few hundred MB. */
const MAX_IMATRIX_BYTES = 4 * 2 ** 30
/** Share of the mean that every column has at least: none is thrown away because a text never touched it. */
const FLOOR = 1e-4

/** Mean squared activations of each matrix's columns, measured on a text: how much an error there matters. */
export interface Imatrix {
  readonly path: string
  /** By tensor name: one value a column; of stacked experts, those of each expert after another. */
  readonly entries: ReadonlyMap<string, Float32Array>
  readonly datasets: readonly string[]
  readonly chunks: number
}

/** Reads llama-imatrix's files: GGUF, and the .dat of before. @throws FormatError */
export function readImatrix(path: string): Imatrix {
  const imatrix = startsWithGguf(path) ? readGguf(path) : readLegacy(path)
  if (imatrix.entries.size === 0) throw new FormatError(path, "holds no importance values")
  for (const [name, values] of imatrix.entries) {
    const bad = values.find((value) => !(value >= 0 && Number.isFinite(value)))
    if (bad !== undefined)
      throw new FormatError(path, `"${name}": ${bad}, expected finite values of at least 0`)
  }
  return imatrix
}

/**
 * Weights of one matrix's columns for `quantize`, or null where nothing was measured.
 * @param expert number of the matrix in a stack of `experts`
 */
export function importanceOf(
  imatrix: Imatrix,
  name: string,
  columns: number,
  expert: number,
  experts: number,
): Float32Array | null {
  const values = imatrix.entries.get(name)
  if (values === undefined) return null
  if (values.length !== columns * experts) {
    // the embedding is looked up, not multiplied by; what was measured belongs to another matrix
    if (name === "token_embd.weight") return null
    throw new FormatError(
      imatrix.path,
      `"${name}": ${values.length} values, expected ${columns * experts}`,
    )
  }
  const own = values.slice(expert * columns, (expert + 1) * columns)
  const mean = own.reduce((a, b) => a + b, 0) / columns
  if (mean === 0) return null
  return own.map((value) => Math.max(value / mean, FLOOR))
}

function startsWithGguf(path: string): boolean {
  const size = statSync(path, { throwIfNoEntry: false })?.size
  if (size === undefined) throw new FormatError(path, "no such file")
  if (size > MAX_IMATRIX_BYTES)
    throw new FormatError(path, `${size} bytes, more than the limit of ${MAX_IMATRIX_BYTES}`)
  const bytes = Buffer.alloc(4)
  const fd = openSync(path, "r")
  try {
    return bytes.toString("latin1", 0, readSync(fd, bytes, 0, 4, 0)) === "GGUF"
  } finally {
    closeSync(fd)
  }
}

/** Tensors NAME.in_sum2 [experts, columns] and NAME.counts [experts, 1]. */
function readGguf(path: string): Imatrix {
  const gguf = openGgufData(path)
  try {
    const floats = (name: string): Float32Array => {
      const entry = gguf.get(name)
      if (entry === undefined) throw new FormatError(path, `has no tensor "${name}"`)
      if (entry.dtype !== F32)
        throw new FormatError(path, `tensor "${name}": ${entry.dtype.name}, expected F32`)
      return new Float32Array(new Uint8Array(gguf.bytes(name)).buffer)
    }
    const entries = new Map<string, Float32Array>()
    for (const stored of gguf.names()) {
      if (!stored.endsWith(".in_sum2")) continue
      const name = stored.slice(0, -".in_sum2".length)
      const sums = floats(stored)
      const counts = floats(`${name}.counts`)
      const columns = sums.length / counts.length
      if (!Number.isInteger(columns))
        throw new FormatError(path, `"${name}": ${sums.length} sums of ${counts.length} matrices`)
      entries.set(
        name,
        // an expert that no token reached counts like any other
        sums.map((sum, i) => {
          const count = counts[Math.floor(i / columns)] as number
          return count > 0 ? sum / count : 1
        }),
      )
    }
    const datasets = gguf.metadata.get("imatrix.datasets")
    const chunks = gguf.metadata.get("imatrix.chunk_count")
    return {
      path,
      entries,
      datasets: Array.isArray(datasets) ? datasets.map(String) : [],
      chunks: typeof chunks === "number" ? chunks : 0,
    }
  } finally {
    gguf.close()
  }
}

/** Count; then per matrix the name, how often it was evaluated, and its values times that; then the chunks and the text. */
function readLegacy(path: string): Imatrix {
  const file = readFileSync(path)
  let at = 0
  const fail = (detail: string): never => {
    throw new FormatError(path, `${detail}; this is no importance matrix`)
  }
  const take = (bytes: number, field: string): number => {
    if (at + bytes > file.length) fail(`truncated: ${field} needs ${bytes} bytes at ${at}`)
    at += bytes
    return at - bytes
  }
  const int = (field: string, max: number): number => {
    const value = file.readInt32LE(take(4, field))
    return value < 0 || value > max ? fail(`${field}: ${value}`) : value
  }
  const count = int("number of entries", MAX_TENSORS)
  const entries = new Map<string, Float32Array>()
  for (let i = 0; i < count; i++) {
    const length = int("length of a name", MAX_TENSOR_NAME_BYTES)
    const start = take(length, "a name")
    const name = file.toString("utf8", start, start + length)
    const calls = int(`calls of "${name}"`, 2 ** 31 - 1)
    const size = int(`values of "${name}"`, 2 ** 28)
    const from = take(size * 4, `values of "${name}"`)
    const values = new Float32Array(size)
    for (let j = 0; j < size; j++) values[j] = file.readFloatLE(from + j * 4) / Math.max(calls, 1)
    entries.set(name, values)
  }
  if (at === file.length) return { path, entries, datasets: [], chunks: 0 }
  const chunks = int("number of chunks", 2 ** 31 - 1)
  if (at === file.length) return { path, entries, datasets: [], chunks }
  const length = int("length of the text's name", 65_536)
  const start = take(length, "the text's name")
  return { path, entries, datasets: [file.toString("utf8", start, start + length)], chunks }
}
