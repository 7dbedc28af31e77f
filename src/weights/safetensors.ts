import { existsSync, readdirSync, readFileSync, statSync } from "node:fs"
import { basename, join } from "node:path"

import { z } from "zod"

import { FormatError } from "../errors.ts"
import { MappedFile } from "../native/mapped-file.ts"
import {
  MAX_ELEMENTS,
  MAX_INDEX_BYTES,
  MAX_SAFETENSORS_DIMS,
  MAX_SAFETENSORS_HEADER_BYTES,
  MAX_SHARDS,
  MAX_TENSORS,
} from "./limits.ts"
import { SAFETENSORS_DTYPES } from "./safetensors-dtypes.ts"
import type { ByteSource, Checkpoint, OpenSource } from "./source.ts"
import { type StoredTensor, TensorTable } from "./tensor-table.ts"

/** An open safetensors file, or a folder of them with an index. */
export interface SafetensorsFile extends Checkpoint {
  readonly kind: "safetensors"
  /** `__metadata__` of the (first) file. */
  readonly metadata: Readonly<Record<string, string>>
}

export const SAFETENSORS_INDEX = "model.safetensors.index.json"
export const SAFETENSORS_SINGLE = "model.safetensors"

const count = z.int().nonnegative()
const HeaderEntry = z.object({
  dtype: z.string().max(32),
  shape: z.array(count).max(MAX_SAFETENSORS_DIMS),
  data_offsets: z.tuple([count, count]),
})
const Metadata = z.record(z.string(), z.string())
const Index = z.object({ weight_map: z.record(z.string(), z.string()) })

/**
 * Opens one safetensors file, or a folder that holds `model.safetensors.index.json` with its
 * shards, or `model.safetensors`, or a single other one. Reads headers only. Any defect is one
 * FormatError that names file, field and value.
 */
export function openSafetensors(path: string, open: OpenSource = MappedFile.open): SafetensorsFile {
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false
  const table = new TensorTable()
  try {
    if (isFolder && existsSync(join(path, SAFETENSORS_INDEX))) {
      return table.checkpoint("safetensors", path, { metadata: addIndexed(path, open, table) })
    }
    if (isFolder && !existsSync(join(path, SAFETENSORS_SINGLE))) {
      const metadata = addCounted(path, open, table)
      if (metadata !== undefined) return table.checkpoint("safetensors", path, { metadata })
    }
    const source = open(isFolder ? onlyFile(path) : path)
    table.own(source)
    const { metadata, tensors } = readHeader(source)
    for (const tensor of tensors) table.add(source, tensor)
    return table.checkpoint("safetensors", path, { metadata })
  } catch (error) {
    table.close()
    throw error
  }
}

function onlyFile(folder: string): string {
  const single = join(folder, SAFETENSORS_SINGLE)
  if (existsSync(single)) return single
  const files = readdirSync(folder).filter((name) => name.endsWith(".safetensors"))
  const [file] = files
  if (file === undefined) throw new FormatError(folder, "holds no safetensors file")
  if (files.length === 1) return join(folder, file)
  throw new FormatError(
    folder,
    `holds ${files.length} safetensors files, but no ${SAFETENSORS_INDEX}`,
    {
      hint: `download ${SAFETENSORS_INDEX} too, or name one file`,
    },
  )
}

/** Files of a folder without an index that count from zero, as KTransformers' merged folders do: model-00000-of-00061. */
const COUNTED = /^(.+)-(\d{5})-of-(\d{5})\.safetensors$/

function addCounted(
  folder: string,
  open: OpenSource,
  table: TensorTable,
): Record<string, string> | undefined {
  const files = readdirSync(folder)
    .filter((name) => COUNTED.test(name))
    .toSorted()
  const [, prefix, first, last] = COUNTED.exec(files[0] ?? "") ?? []
  if (first !== "00000" || prefix === undefined) return undefined
  if (files.length > MAX_SHARDS)
    throw new FormatError(folder, `${files.length} files, more than the limit of ${MAX_SHARDS}`)
  let metadata: Record<string, string> | undefined
  files.forEach((file, i) => {
    const expected = `${prefix}-${String(i).padStart(5, "0")}-of-${last}.safetensors`
    if (file !== expected)
      throw new FormatError(join(folder, expected), `is missing, ${file} is there`, {
        hint: "complete the download",
      })
    const source = open(join(folder, file))
    table.own(source)
    const header = readHeader(source)
    metadata ??= header.metadata
    for (const tensor of header.tensors) table.add(source, tensor)
  })
  return metadata
}

/** Adds every tensor of the files that the index names; returns the first file's metadata. */
function addIndexed(folder: string, open: OpenSource, table: TensorTable): Record<string, string> {
  const indexPath = join(folder, SAFETENSORS_INDEX)
  const weightMap = readIndex(indexPath)
  const files = [...new Set(weightMap.values())].toSorted()
  if (files.length > MAX_SHARDS) {
    throw new FormatError(
      indexPath,
      `weight_map: names ${files.length} files, more than the limit of ${MAX_SHARDS}`,
    )
  }
  let metadata: Record<string, string> | undefined
  for (const file of files) {
    if (basename(file) !== file || file.includes("\\") || file === "") {
      throw new FormatError(indexPath, `weight_map: ${JSON.stringify(file)} is no plain file name`)
    }
    const path = join(folder, file)
    if (!existsSync(path)) {
      throw new FormatError(path, `is missing, ${SAFETENSORS_INDEX} names it`, {
        hint: "complete the download",
      })
    }
    const source = open(path)
    table.own(source)
    const header = readHeader(source)
    metadata ??= header.metadata
    // The index decides where a tensor that two files hold is taken from.
    for (const tensor of header.tensors)
      if ((weightMap.get(tensor.name) ?? file) === file) table.add(source, tensor)
  }
  for (const [name, file] of weightMap) {
    if (!table.has(name))
      throw new FormatError(indexPath, `weight_map: ${file} holds no tensor "${name}"`)
  }
  return metadata ?? {}
}

function readIndex(path: string): Map<string, string> {
  const { size } = statSync(path)
  if (size > MAX_INDEX_BYTES)
    throw new FormatError(path, `${size} bytes, more than the limit of ${MAX_INDEX_BYTES}`)
  const index = parseJson(path, "index", readFileSync(path), Index)
  const map = new Map(Object.entries(index.weight_map))
  if (map.size === 0) throw new FormatError(path, "weight_map: is empty")
  if (map.size > MAX_TENSORS) {
    throw new FormatError(
      path,
      `weight_map: ${map.size} tensors, more than the limit of ${MAX_TENSORS}`,
    )
  }
  return map
}

function readHeader(source: ByteSource): {
  metadata: Record<string, string>
  tensors: StoredTensor[]
} {
  const { path, size } = source
  if (size < 8)
    throw new FormatError(path, `truncated: ${size} bytes, a safetensors file has at least 8`)
  const prefix = source.read(0, 8)
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true)
  if (length > BigInt(MAX_SAFETENSORS_HEADER_BYTES)) {
    const detail = `header length: ${length} is more than the limit of ${MAX_SAFETENSORS_HEADER_BYTES}`
    throw new FormatError(path, `${detail}; this is no safetensors file`)
  }
  const start = 8 + Number(length)
  if (start > size)
    throw new FormatError(path, `truncated: the header ends at byte ${start}, the file at ${size}`)
  const header = parseJson(
    path,
    "header",
    source.read(8, Number(length)),
    z.record(z.string(), z.unknown()),
  )
  let metadata: Record<string, string> = {}
  const tensors: StoredTensor[] = []
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") metadata = checked(path, name, value, Metadata)
    else
      tensors.push(
        storedTensor(path, name, checked(path, `tensor "${name}"`, value, HeaderEntry), start),
      )
  }
  if (tensors.length > MAX_TENSORS) {
    throw new FormatError(path, `${tensors.length} tensors, more than the limit of ${MAX_TENSORS}`)
  }
  checkDense(path, tensors, start, size)
  return { metadata, tensors }
}

function storedTensor(
  path: string,
  name: string,
  entry: z.infer<typeof HeaderEntry>,
  start: number,
): StoredTensor {
  const fail = (detail: string): never => {
    throw new FormatError(path, `tensor "${name}": ${detail}`)
  }
  const dtype =
    SAFETENSORS_DTYPES.get(entry.dtype) ?? fail(`unknown dtype ${JSON.stringify(entry.dtype)}`)
  const elements = entry.shape.reduce((a, b) => a * b, 1)
  const byteLength = elements * dtype.blockBytes
  if (byteLength > MAX_ELEMENTS) fail(`shape [${entry.shape.join(", ")}] overflows`)
  const [begin, end] = entry.data_offsets
  if (end - begin !== byteLength) {
    const expected = `shape [${entry.shape.join(", ")}] of ${entry.dtype} takes ${byteLength} bytes`
    fail(`data_offsets [${begin}, ${end}] hold ${end - begin} bytes, but ${expected}`)
  }
  return { name, dtype, shape: entry.shape, offset: start + begin, byteLength }
}

/**
 * The format wants tensors back to back from the header's end to the file's: no overlap, no gap,
 * nothing cut off.
 */
function checkDense(
  path: string,
  tensors: readonly StoredTensor[],
  start: number,
  size: number,
): void {
  let end = start
  const sorted = tensors.toSorted((a, b) => a.offset - b.offset || a.byteLength - b.byteLength)
  for (const { name, offset, byteLength } of sorted) {
    const where = offset < end ? "overlaps the tensor before it" : "leaves a gap before it"
    if (offset !== end) {
      throw new FormatError(
        path,
        `tensor "${name}": data_offsets begin at ${offset - start} and not at ${end - start}, which ${where}`,
      )
    }
    end = offset + byteLength
  }
  if (end > size) {
    throw new FormatError(path, `truncated: the tensors end at byte ${end}, the file at ${size}`, {
      hint: "complete the download",
    })
  }
  if (end < size)
    throw new FormatError(
      path,
      `${size - end} bytes after the last tensor, which ends at byte ${end}`,
    )
}

function parseJson<T>(path: string, what: string, bytes: Uint8Array, schema: z.ZodType<T>): T {
  let json: unknown
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes))
  } catch (cause) {
    throw new FormatError(
      path,
      `${what}: is no valid JSON (${cause instanceof Error ? cause.message : String(cause)})`,
      { cause },
    )
  }
  return checked(path, what, json, schema)
}

function checked<T>(path: string, what: string, value: unknown, schema: z.ZodType<T>): T {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const [issue] = result.error.issues
  const field = [what, ...(issue?.path ?? [])].join(".")
  throw new FormatError(path, `${field}: ${issue?.message ?? "is invalid"}`)
}

export { type TensorData, writeSafetensors } from "./safetensors-writer.ts"
