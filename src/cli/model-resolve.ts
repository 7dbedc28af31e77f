import { existsSync, readdirSync, statSync } from "node:fs"
import { basename, dirname, join, relative, sep } from "node:path"

import { ConfigError, FormatError, KtError } from "../errors.ts"
import { shardOf } from "../weights/gguf.ts"
import { locateWeights } from "../weights/open.ts"
import { similar } from "./args/suggest.ts"
import { DEFAULT_MODEL, defaultModelPath, modelsFolder } from "./home.ts"

/** A model of the models folder. */
export interface ListedModel {
  /** What the user types: the file's name without ".gguf" and shard number, or a folder's path below the models folder. */
  readonly name: string
  /** GGUF file (first shard) or Hugging Face folder. */
  readonly path: string
  /** Below the models folder, e.g. "org/repo", or "". */
  readonly group: string
  readonly kind: "gguf" | "safetensors"
  /** Bytes of all its files. */
  readonly sizeBytes: number
  readonly shards: number
}

/** org/repo/file is what `kt pull` makes. */
const MAX_DEPTH = 4

/** Every model below the models folder, by name. A folder that is not there holds none. */
export function listModels(folder: string = modelsFolder()): ListedModel[] {
  const found: ListedModel[] = []
  scan(folder, folder, 0, found)
  return found.toSorted((a, b) => a.name.localeCompare(b.name) || a.path.localeCompare(b.path))
}

function scan(root: string, folder: string, depth: number, found: ListedModel[]): void {
  const entries = readEntries(folder, depth === 0)
  const group = relative(root, folder).split(sep).join("/")
  const size = (names: readonly string[]): number =>
    names.reduce(
      (sum, name) => sum + (statSync(join(folder, name), { throwIfNoEntry: false })?.size ?? 0),
      0,
    )
  const files = entries.filter((entry) => !entry.isDirectory).map(({ name }) => name)
  if (files.includes("config.json") && files.some((name) => name.endsWith(".safetensors"))) {
    const weights = files.filter((name) => name.endsWith(".safetensors"))
    const shared = { path: folder, group, shards: weights.length }
    found.push({
      ...shared,
      name: group || basename(folder),
      kind: "safetensors",
      sizeBytes: size(weights),
    })
  }
  for (const file of files) {
    if (!file.endsWith(".gguf") || /mmproj/i.test(file)) continue
    const shard = shardOf(file)
    if (shard !== undefined && shard.index !== 1) continue
    const parts =
      shard === undefined
        ? [file]
        : files.filter((other) => {
            const part = shardOf(other)
            return part?.prefix === shard.prefix && part.count === shard.count
          })
    const name = shard === undefined ? file.slice(0, -5) : basename(shard.prefix)
    const shared = { path: join(folder, file), group, shards: shard?.count ?? 1 }
    found.push({ ...shared, name, kind: "gguf", sizeBytes: size(parts) })
  }
  if (depth === MAX_DEPTH) return
  for (const { name, isDirectory } of entries)
    if (isDirectory && !name.startsWith(".")) scan(root, join(folder, name), depth + 1, found)
}

function readEntries(folder: string, isRoot: boolean): { name: string; isDirectory: boolean }[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
      .map((entry) => ({
        name: entry.name,
        // links to folders and files of elsewhere are models too
        isDirectory: entry.isSymbolicLink()
          ? (statSync(join(folder, entry.name), { throwIfNoEntry: false })?.isDirectory() ?? false)
          : entry.isDirectory(),
      }))
      .toSorted((a, b) => a.name.localeCompare(b.name))
  } catch (cause) {
    if (isRoot && (cause as { code?: string }).code === "ENOENT") return []
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new FormatError(folder, `the models folder cannot be read: ${reason}`, {
      hint: "KT_HOME names the folder that holds models/",
      cause,
    })
  }
}

/**
 * MODEL of the command line as a path: a file, a folder, "default", or a name (or the only beginning of one) that
 * `kt list` shows. @throws KtError that lists what is meant or near
 */
export function resolveModel(model: string, folder: string = modelsFolder()): string {
  if (model === "default") return defaultModel()
  // a folder of the working directory that happens to have a model's name gives way to it
  const isPlainName = !/[\\/]/.test(model)
  const named = listModels(folder)
  const exact = match(named, model, (key, wanted) => key === wanted)
  if (isPlainName && exact.length === 1 && !isWeights(model)) return exact[0]!.path
  if (existsSync(model)) return locateWeights(model).path
  if (/^[.~/\\]|\.(gguf|safetensors)$/i.test(model) && exact.length === 0)
    throw new FormatError(model, "no such file or folder")
  if (exact.length === 1) return exact[0]!.path
  const begun =
    exact.length > 1 ? exact : match(named, model, (key, wanted) => key.startsWith(wanted))
  if (begun.length === 1) return begun[0]!.path
  if (begun.length > 1) {
    throw new ConfigError(`"${model}" may be any of ${begun.map(fullName).join(", ")}`, {
      hint: "write more of the name, or the file's path",
    })
  }
  throw unknownModel(model, named, folder)
}

/** Models one of whose names (short, with its folder, with the quantisation behind a colon) passes. */
function match(
  models: readonly ListedModel[],
  model: string,
  passes: (key: string, wanted: string) => boolean,
): ListedModel[] {
  const wanted = model.toLowerCase().replace(/\.gguf$/, "")
  const [repo, quant] = wanted.split(":") as [string, string | undefined]
  return models.filter((m) => {
    const keys = [m.name, fullName(m), m.group].map((key) => key.toLowerCase())
    if (quant !== undefined)
      return m.group.toLowerCase() === repo && m.name.toLowerCase().includes(quant)
    return keys.some((key) => key !== "" && passes(key, wanted))
  })
}

/** The model's name with its folder before it: no other model has it. */
function fullName(model: ListedModel): string {
  return model.group === "" || model.kind === "safetensors"
    ? model.name
    : `${model.group}/${model.name}`
}

function isWeights(path: string): boolean {
  try {
    locateWeights(path)
    return true
  } catch {
    return false
  }
}

function defaultModel(): string {
  const path = defaultModelPath()
  if (existsSync(path)) return path
  throw new FormatError(path, `the default model, ${DEFAULT_MODEL.name}, is not there`, {
    hint: "`bun run setup` downloads it; or name a model file",
  })
}

function unknownModel(model: string, named: readonly ListedModel[], folder: string): KtError {
  const names = named.flatMap((m) => [m.name, fullName(m)])
  const near = similar(model, names)
  const isRepo = /^[\w.-]+\/[\w.-]+(:[\w.-]+)?$/.test(model)
  const hint =
    near.length > 0
      ? `did you mean ${near.join(" or ")}?`
      : isRepo
        ? `\`kt pull ${model}\` downloads it`
        : named.length > 0
          ? `known are ${[...new Set(names)].slice(0, 8).join(", ")}, default`
          : `${folder} holds no models; \`kt pull org/repo:quant\` downloads one`
  return new ConfigError(
    `unknown model "${model}": neither a file, a folder nor a name that \`kt list\` shows`,
    { hint },
  )
}

/** How a model is called where its path is known: the file's name without ".gguf" and shard number, or the folder's. */
export function modelName(path: string): string {
  const name = basename(path)
  if (name.endsWith(".safetensors")) return basename(dirname(path))
  const shard = shardOf(name)
  return shard === undefined ? name.replace(/\.gguf$/i, "") : basename(shard.prefix)
}
