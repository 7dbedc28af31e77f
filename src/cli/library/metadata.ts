import { createHash } from "node:crypto"
import { closeSync, existsSync, openSync, readFileSync, readSync, statSync } from "node:fs"
import { basename, join } from "node:path"

import { configFromGguf } from "../../models/config-gguf.ts"
import { configFromFolder } from "../../models/config-hf.ts"
import { maxContextLength } from "../../models/config.ts"
import type { ModelMetadata } from "../../server/types.ts"
import { locateWeights, openWeights } from "../../weights/open.ts"
import type { WeightSource } from "../../weights/source.ts"
import { DEFAULT_MODEL } from "../home.ts"
import { modelName } from "../model-resolve.ts"
import { formatCount } from "../output.ts"
import { mainType, shownMetadata } from "../weights-summary.ts"

/** What a model's files say of it without loading it. */
export type FileMetadata = Omit<ModelMetadata, "name"> & {
  /** What the model can do, before `--ctx`; undefined where its kind is not known. */
  readonly contextLength: number | undefined
}

/** What a file's header says, or why it says nothing. */
export type Outcome =
  | { readonly stamp: string; readonly metadata: FileMetadata }
  | { readonly stamp: string; readonly error: Error }

const cache = new Map<string, Outcome>()

/** Headers are read once, as long as the file stays what it is. @throws FormatError */
export function readMetadata(path: string): FileMetadata {
  const outcome = known(path) ?? keep(path, outcomeOf(path))
  if ("error" in outcome) throw outcome.error
  return outcome.metadata
}

/** The outcome that is known of a file as it is now. @throws FormatError where there is no such file */
export function known(path: string): Outcome | undefined {
  const outcome = cache.get(locateWeights(path).path)
  return outcome?.stamp === stampOf(path) ? outcome : undefined
}

/** Remembers what another thread has read. */
export function keep(path: string, outcome: Outcome): Outcome {
  cache.set(locateWeights(path).path, outcome)
  return outcome
}

/** Reads a file's header. @throws FormatError where there is no such file */
export function outcomeOf(path: string): Outcome {
  const stamp = stampOf(path)
  try {
    return { stamp, metadata: fromHeaders(path) }
  } catch (error) {
    if (!(error instanceof Error)) throw error
    return { stamp, error }
  }
}

function stampOf(path: string): string {
  const { mtimeMs, size } = statSync(locateWeights(path).path)
  return `${mtimeMs} ${size}`
}

function fromHeaders(path: string): FileMetadata {
  const weights = openWeights(path)
  try {
    const stats = weights.files.map((file) => statSync(file))
    const isGguf = weights.kind === "gguf"
    const config = attempt(() => (isGguf ? configFromGguf(weights) : configFromFolder(path)))
    const chatTemplate = isGguf
      ? weights.metadata.get("tokenizer.chat_template")
      : folderTemplate(path)
    return {
      created: Math.floor(Math.max(...stats.map(({ mtimeMs }) => mtimeMs)) / 1000),
      sizeBytes: stats.reduce((sum, { size }) => sum + size, 0),
      digest: digestOf(path, weights.files),
      details: {
        format: weights.kind,
        family: isGguf ? weights.architecture : (config?.model_type ?? "?"),
        parameterSize: formatCount(parameterCount(weights)),
        quantization: mainType(weights),
      },
      contextLength: config === undefined ? undefined : maxContextLength(config),
      ...(typeof chatTemplate === "string" ? { chatTemplate } : {}),
      ...(isGguf ? { info: shownMetadata(weights.metadata) } : {}),
    }
  } finally {
    weights.close()
  }
}

/** A model of a kind that is not known is shown all the same. */
function attempt<T>(work: () => T): T | undefined {
  try {
    return work()
  } catch {
    return undefined
  }
}

function parameterCount(weights: WeightSource): number {
  let count = 0
  for (const name of weights.names())
    count += weights.get(name)?.shape.reduce((product, length) => product * length, 1) ?? 0
  return count
}

function folderTemplate(folder: string): string | undefined {
  const jinja = join(folder, "chat_template.jinja")
  if (existsSync(jinja)) return readFileSync(jinja, "utf8")
  const config = join(folder, "tokenizer_config.json")
  if (!existsSync(config)) return undefined
  const { chat_template: template } = JSON.parse(readFileSync(config, "utf8")) as {
    chat_template?: unknown
  }
  return typeof template === "string" ? template : undefined
}

const DIGEST_BYTES = 1024 * 1024

/**
 * An id for the weights. Reading hundreds of gigabytes at start-up to hash them is out of the question, so it is the
 * SHA-256 of every file's size and its first MiB, where headers are; the default model's whole SHA-256 is known.
 */
function digestOf(path: string, files: readonly string[]): string {
  const size = statSync(files[0] ?? path).size
  if (basename(path) === DEFAULT_MODEL.file && size === DEFAULT_MODEL.bytes)
    return DEFAULT_MODEL.sha256
  const hash = createHash("sha256")
  const buffer = Buffer.alloc(DIGEST_BYTES)
  for (const file of files) {
    const fd = openSync(file, "r")
    try {
      hash.update(`${statSync(file).size}\n`)
      hash.update(buffer.subarray(0, readSync(fd, buffer, 0, DIGEST_BYTES, 0)))
    } finally {
      closeSync(fd)
    }
  }
  return hash.digest("hex")
}

/** "q4_k_m" of a file's name, in lower case. */
export function quantTag(name: string): string | undefined {
  return /[-._]((?:iq|q|tq)\d[a-z0-9_]*|bf16|f16|f32|mxfp4|fp8)$/i.exec(name)?.[1]?.toLowerCase()
}

/** Names under which a model file is found beside its own: `name:tag` for `name.tag`, and those with its folder. */
export function otherNames(path: string, group: string): string[] {
  const name = modelName(path).toLowerCase()
  const tag = quantTag(name)
  const names = tag === undefined ? [] : [`${name.slice(0, -tag.length - 1)}:${tag}`]
  if (group === "") return names
  const folder = group.toLowerCase()
  return [...names, folder, `${folder}/${name}`, ...(tag === undefined ? [] : [`${folder}:${tag}`])]
}
