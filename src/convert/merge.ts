import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs"
import { join, resolve } from "node:path"

import { ConfigError, FormatError } from "../errors.ts"
import { configFromFolder } from "../models/config-hf.ts"
import { F32 } from "../tensor/dtype.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { hybridName } from "../weights/hybrid.ts"
import { ggufName } from "../weights/names.ts"
import { openStored } from "../weights/open.ts"
import { type SafetensorsPlan, SafetensorsWriter } from "../weights/safetensors-writer.ts"
import { openSafetensors, type SafetensorsFile } from "../weights/safetensors.ts"
import type { WeightEntry } from "../weights/source.ts"

export interface MergeOptions {
  readonly onProgress?: (done: number, total: number) => void
}

export interface Merged {
  readonly path: string
  readonly architecture: string
  readonly files: number
  readonly tensors: number
  /** Stacks of experts taken from the GGUF. */
  readonly experts: number
  readonly bytes: number
}

/** A tensor of the output and how its bytes come. */
interface Piece extends SafetensorsPlan {
  readonly bytes: () => Uint8Array
  readonly drop: () => void
  readonly size: number
}

const LAYER = /\.layers\.(\d+)\./
const EXPERT = /^(.+\.experts)\.\d+\.([^.]+)\./
/** Written at a time. */
const CHUNK = 32 * 2 ** 20

/**
 * Writes KTransformers' hybrid folder: every tensor of the Hugging Face folder but routed experts, which
 * are the GGUF's blocks as they are. One file a layer, as its own script writes them; configuration and
 * tokenizer files are copied. Memory is one chunk.
 */
export function mergeHybrid(
  folder: string,
  ggufPath: string,
  output: string,
  options: MergeOptions = {},
): Merged {
  if (resolve(folder) === resolve(output))
    throw new ConfigError(`${output}: is the folder that is read, expected another one`)
  if (existsSync(output) && readdirSync(output).length > 0)
    throw new ConfigError(`${output}: holds files already, expected a new or empty folder`)
  const { num_hidden_layers: layers } = configFromFolder(folder)
  const weights = openSafetensors(folder)
  try {
    const gguf = openStored(ggufPath)
    try {
      if (gguf.kind !== "gguf")
        throw new FormatError(ggufPath, "holds safetensors, expected a GGUF model")
      return write(folder, output, gguf.architecture, plan(weights, gguf, layers), options)
    } finally {
      gguf.close()
    }
  } finally {
    weights.close()
  }
}

/** Pieces of every file: those of no layer, then layer by layer. */
function plan(weights: SafetensorsFile, gguf: GgufFile, layers: number): Piece[][] {
  const files: Piece[][] = Array.from({ length: layers + 1 }, () => [])
  const stacks = new Set<string>()
  for (const name of weights.names()) {
    const layer = LAYER.exec(name)
    // what predicts several tokens at once has no counterpart in the GGUF
    if (layer !== null && Number(layer[1]) >= layers) continue
    if (/\.rotary_emb\.inv_freq$/.test(name)) continue
    const file = files[layer === null ? 0 : Number(layer[1]) + 1] as Piece[]
    const expert = EXPERT.exec(name)
    if (expert !== null) {
      const stack = `${expert[1]}.${expert[2]}`
      if (!stacks.has(stack)) file.push(...stackPieces(stack, gguf, weights))
      stacks.add(stack)
      continue
    }
    const entry = weights.get(name) as WeightEntry
    const stored = hybridName(gguf.architecture, name)
    if (stored === undefined) {
      throw new FormatError(
        entry.file,
        `tensor "${name}": has no name in GGUFs of the architecture ${gguf.architecture}`,
      )
    }
    const { dtype, shape, byteLength: size } = entry
    const source = { bytes: () => weights.bytes(name), drop: () => weights.drop(name) }
    file.push({ name: stored, dtype: dtype.name, shape, size, ...source })
  }
  if (stacks.size === 0)
    throw new FormatError(weights.path, "holds no experts one by one: nothing to take from a GGUF")
  return files.filter((pieces) => pieces.length > 0)
}

/** The blocks of a stack of experts, and their type. */
function stackPieces(stack: string, gguf: GgufFile, weights: SafetensorsFile): Piece[] {
  const name = ggufName(gguf.architecture, stack)
  const entry = name === undefined ? undefined : gguf.get(name)
  if (name === undefined || entry === undefined) {
    throw new FormatError(
      gguf.path,
      `has no tensor "${name ?? stack}", the experts "${stack}" of ${weights.path}`,
    )
  }
  const { dtype, byteLength: size } = entry
  const source = { bytes: () => gguf.bytes(name), drop: () => gguf.drop(name) }
  if (dtype === F32) return [{ name, dtype: "F32", shape: entry.shape, size, ...source }]
  const type = new Uint8Array(BigInt64Array.of(BigInt(dtype.id)).buffer)
  const typeName = `${name.replace(/\.weight$/, "")}.ggml_type`
  return [
    { name, dtype: "U8", shape: [size], size, ...source },
    { name: typeName, dtype: "I64", shape: [], size: 8, bytes: () => type, drop: () => {} },
  ]
}

function write(
  folder: string,
  output: string,
  architecture: string,
  files: readonly Piece[][],
  { onProgress }: MergeOptions,
): Merged {
  const all = files.flat()
  const total = all.reduce((sum, { size }) => sum + size, 0)
  const pad = (n: number): string => String(n).padStart(5, "0")
  const written: string[] = []
  let done = 0
  const put = (path: string, write: () => void): void => {
    written.push(path)
    write()
  }
  mkdirSync(output, { recursive: true })
  try {
    files.forEach((pieces, i) => {
      const path = join(output, `model-${pad(i)}-of-${pad(files.length - 1)}.safetensors`)
      const byName = new Map(pieces.map((piece) => [piece.name, piece]))
      put(path, () => {
        using writer = new SafetensorsWriter(path, pieces)
        for (const { name } of writer.tensors) {
          const piece = byName.get(name) as Piece
          const bytes = piece.bytes()
          for (let at = 0; at < bytes.length; at += CHUNK) {
            const chunk = bytes.subarray(at, at + CHUNK)
            writer.write(name, chunk)
            done += chunk.length
            onProgress?.(done, total)
          }
          piece.drop()
        }
        writer.finish()
      })
    })
    for (const name of companions(folder))
      put(join(output, name), () => copyFileSync(join(folder, name), join(output, name)))
  } catch (error) {
    for (const path of written) rmSync(path, { force: true })
    throw error
  }
  return {
    path: output,
    architecture,
    files: files.length,
    tensors: all.length,
    experts: all.filter(({ name }) => name.endsWith("_exps.weight")).length,
    bytes: total,
  }
}

/** Configuration, tokenizer and templates, but not the index of the files that are replaced. */
function companions(folder: string): string[] {
  return readdirSync(folder).filter(
    (name) =>
      /\.(json|jinja|model|txt)$/.test(name) &&
      !name.endsWith(".index.json") &&
      statSync(join(folder, name)).isFile(),
  )
}
