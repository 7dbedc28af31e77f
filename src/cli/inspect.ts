import { existsSync } from "node:fs"
import { join } from "node:path"

import { UsageError } from "../errors.ts"
import type { GgufFile } from "../weights/gguf.ts"
import type { GgufValue } from "../weights/metadata.ts"
import { openStored } from "../weights/open.ts"
import type { SafetensorsFile } from "../weights/safetensors.ts"
import type { WeightEntry } from "../weights/source.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { readJson } from "./files.ts"
import { formatBytes, formatCount, table, write, writeJson } from "./output.ts"
import { mainType } from "./weights-summary.ts"

/** Longest text that a table cell shows. */
const MAX_CELL = 72

export const inspect = defineCommand({
  name: "inspect",
  summary: "Show what a model file holds: metadata, tensors, types, shapes, sizes",
  details: `GGUF files (with the other files of a split, or a vocabulary alone), safetensors files, and
folders of either. Shapes are outermost dimension first. --json prints one object with "metadata"
and "tensors"; arrays longer than 16 stand there as {"length":…,"first":[…]} unless --full is given.`,
  positionals: [{ name: "FILE", help: "a model file or folder", required: true }],
  flags: {
    filter: { type: "string", hint: "regex", help: "only keys and tensors whose names match" },
    tensors: { type: "boolean", default: true, help: "list the tensors" },
    metadata: { type: "boolean", default: true, help: "list the metadata" },
    full: { type: "boolean", help: "whole arrays and texts" },
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt inspect model.gguf", says: "metadata and tensors as tables" },
    { command: 'kt inspect model.gguf --filter "blk\\.0\\." --no-metadata', says: "one layer" },
    { command: "kt inspect ./folder --json", says: "for other tools" },
  ],
  async run({ args, flags }) {
    const matches = matcher(flags.filter)
    const weights = openStored(args[0] as string)
    try {
      const tensors = [...weights.names()]
        .filter(matches)
        .map((name) => weights.get(name) as WeightEntry)
      const metadata = metadataOf(weights).filter(([key]) => matches(key))
      const about = summary(weights)
      if (flags.json) {
        return await writeJson({
          ...about,
          ...(flags.metadata
            ? {
                metadata: Object.fromEntries(
                  metadata.map(([key, value]) => [key, jsonValue(value, flags.full)]),
                ),
              }
            : {}),
          ...(flags.tensors ? { tensors: tensors.map(tensorJson) } : {}),
        })
      }
      const parts = [headline(about)]
      if (flags.metadata && metadata.length > 0) {
        const rows = metadata.map(([key, value]) => [key, cell(value, flags.full)])
        parts.push(table(["KEY", "VALUE"], rows))
      }
      if (flags.tensors && tensors.length > 0) {
        const rows = tensors.map((t) => [
          t.name,
          t.dtype.name,
          `[${t.shape.join(", ")}]`,
          formatBytes(t.byteLength),
        ])
        parts.push(table(["TENSOR", "TYPE", "SHAPE", "SIZE"], rows), typeTable(tensors))
      }
      await write(parts.join("\n"))
    } finally {
      weights.close()
    }
  },
})

type Metadata = [key: string, value: GgufValue][]

interface Summary {
  readonly path: string
  readonly format: string
  readonly architecture: string | null
  readonly quantization: string
  readonly files: readonly string[]
  readonly tensorCount: number
  readonly parameters: number
  readonly bytes: number
}

function summary(weights: GgufFile | SafetensorsFile): Summary {
  let count = 0
  let parameters = 0
  for (const name of weights.names()) {
    count++
    parameters += (weights.get(name) as WeightEntry).shape.reduce((a, b) => a * b, 1)
  }
  return {
    path: weights.path,
    format: weights.kind === "gguf" ? `GGUF v${weights.version}` : "safetensors",
    architecture: weights.kind === "gguf" ? weights.architecture : modelType(weights.path),
    quantization: mainType(weights),
    files: weights.files,
    tensorCount: count,
    parameters,
    bytes: weights.totalBytes,
  }
}

/** A folder's model type as config.json says it; null where there is no such file. */
function modelType(path: string): string | null {
  const file = join(path, "config.json")
  if (!existsSync(file)) return null
  const config = readJson(file)
  const type =
    typeof config === "object" && config !== null ? Reflect.get(config, "model_type") : null
  return typeof type === "string" ? type : null
}

function headline(about: Summary): string {
  const files = about.files.length === 1 ? "" : ` in ${about.files.length} files`
  const architecture = about.architecture === null ? "" : `${about.architecture}, `
  return `${about.path}: ${about.format}, ${architecture}${about.quantization}, ${about.tensorCount} tensors, ${formatCount(about.parameters)} parameters, ${formatBytes(about.bytes)}${files}\n`
}

function metadataOf(weights: GgufFile | SafetensorsFile): Metadata {
  return weights.kind === "gguf" ? [...weights.metadata] : Object.entries(weights.metadata)
}

function tensorJson(entry: WeightEntry): object {
  const { name, dtype, shape, byteLength, file } = entry
  return { name, type: dtype.name, shape, bytes: byteLength, file }
}

/** Bytes by type. */
function typeTable(tensors: readonly WeightEntry[]): string {
  const types = new Map<string, { count: number; bytes: number }>()
  for (const { dtype, byteLength } of tensors) {
    const sum = types.get(dtype.name) ?? { count: 0, bytes: 0 }
    types.set(dtype.name, { count: sum.count + 1, bytes: sum.bytes + byteLength })
  }
  const rows = [...types]
    .toSorted((a, b) => b[1].bytes - a[1].bytes)
    .map(([name, { count, bytes }]) => [name, count, formatBytes(bytes)])
  return table(["TYPE", "TENSORS", "SIZE"], rows)
}

function cell(value: GgufValue, full: boolean): string {
  if (typeof value === "object") {
    const items: ArrayLike<unknown> = full ? value : value.slice(0, 8)
    const shown = Array.from(items, (v) =>
      typeof v === "string" ? JSON.stringify(v) : String(v),
    ).join(", ")
    const rest = !full && value.length > 8 ? `, … ${value.length} in all` : ""
    return full ? `[${shown}]` : `[${cut(shown)}${rest}]`
  }
  const text = typeof value === "string" ? JSON.stringify(value) : String(value)
  return full ? text : cut(text)
}

function cut(text: string): string {
  return text.length > MAX_CELL ? `${text.slice(0, MAX_CELL)}…` : text
}

function jsonValue(value: GgufValue, full: boolean): unknown {
  if (typeof value === "bigint") return jsonNumber(value)
  if (typeof value !== "object") return value
  const list = (items: ArrayLike<unknown>): unknown[] =>
    Array.from(items, (v) => (typeof v === "bigint" ? jsonNumber(v) : v))
  if (full || value.length <= 16) return list(value)
  return { length: value.length, first: list(value.slice(0, 16)) }
}

/** Exact: numbers that JSON readers would round are strings. */
function jsonNumber(value: bigint): number | string {
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : String(value)
}

/** @throws UsageError where the expression is none */
export function matcher(filter: string | undefined): (name: string) => boolean {
  if (filter === undefined) return () => true
  try {
    const regex = new RegExp(filter)
    return (name) => regex.test(name)
  } catch (cause) {
    throw new UsageError(`--filter ${filter}: ${cause instanceof Error ? cause.message : ""}`, {
      cause,
    })
  }
}
