import { readFileSync } from "node:fs"

import { type Document, isMap, isNode, isScalar, LineCounter, parseDocument } from "yaml"

import { CONFIG_OPTIONS, type EngineConfig } from "../config.ts"
import { ConfigError, FormatError } from "../errors.ts"

/** What a KTransformers config.yaml says that means something here. */
export interface ConfigFile {
  readonly engine: Partial<Record<keyof EngineConfig, unknown>>
  /** Values for flags that are not the engine's, by flag name. */
  readonly flags: Readonly<Record<string, unknown>>
  /** Keys that mean nothing here, each with file and line. */
  readonly warnings: readonly string[]
}

/** A file that is larger is no configuration. */
const MAX_BYTES = 1024 * 1024

/** KTransformers' keys, and what they are here. */
const ENGINE_KEYS: Readonly<Record<string, keyof EngineConfig>> = {
  "model.gguf_path": "model",
  "model.path": "modelPath",
  "model.cache_lens": "kvCacheTokens",
  "ext.cpu_infer": "threads",
  "attn.page_size": "pageSize",
  "attn.chunk_size": "maxBatchTokens",
  "async_server.max_batch_size": "maxBatchSize",
}

const FLAG_KEYS: Readonly<Record<string, { flag: string; type: "string" | "number" | "boolean" }>> =
  {
    "server.ip": { flag: "host", type: "string" },
    "server.port": { flag: "port", type: "number" },
    "server.api_key": { flag: "api-key", type: "string" },
    "model.name": { flag: "model-name", type: "string" },
    "model.max_new_tokens": { flag: "max-new-tokens", type: "number" },
    "user.force_think": { flag: "force-think", type: "boolean" },
  }

/** Keys of KTransformers whose value changes nothing here, with the reason. */
const NO_EFFECT: Readonly<Record<string, string>> = {
  "model.device": "rules place modules on devices",
  "model.type": "there is one engine",
}

/** @throws FormatError naming file, line and key for YAML that cannot be read or a value of the wrong type */
export function readConfigFile(file: string): ConfigFile {
  const lines = new LineCounter()
  const document = parseDocument(readText(file), { lineCounter: lines, prettyErrors: false })
  const [error] = document.errors
  if (error !== undefined)
    throw new FormatError(`${file}:${lines.linePos(error.pos[0]).line}`, error.message)
  if (document.contents === null) return { engine: {}, flags: {}, warnings: [] }
  if (!isMap(document.contents)) throw new FormatError(file, "is not a mapping of sections")

  const engine: Record<string, unknown> = {}
  const flags: Record<string, unknown> = {}
  const warnings: string[] = []
  const visit = (key: string, value: unknown, at: string): void => {
    const option = ENGINE_KEYS[key] ?? ownKey(key)
    const flag = FLAG_KEYS[key]
    if (option !== undefined) {
      if (value !== null && value !== "")
        engine[option] = optionValue(option, value, `${at}: ${key}`)
    } else if (flag !== undefined) {
      if (value !== null && value !== "")
        flags[flag.flag] = typed(flag.type, value, `${at}: ${key}`)
    } else {
      warnings.push(`${at}: key "${key}" has no effect: ${NO_EFFECT[key] ?? "it is not known"}`)
    }
  }
  const walk = (map: unknown, prefix: string): void => {
    if (!isMap(map)) return
    for (const { key, value } of map.items) {
      const name = prefix + String(isScalar(key) ? key.value : key)
      const offset = isScalar(key) ? (key.range?.[0] ?? 0) : 0
      const at = `${file}:${lines.linePos(offset).line}`
      if (isMap(value)) walk(value, `${name}.`)
      else visit(name, plain(value, document), at)
    }
  }
  walk(document.contents, "")
  return { engine, flags, warnings }
}

function plain(node: unknown, document: Document): unknown {
  return isNode(node) ? (node.toJS(document) as unknown) : null
}

/** Options of this project may stand at the top, under their flag's name. */
function ownKey(key: string): keyof EngineConfig | undefined {
  return CONFIG_OPTIONS.find(({ flag }) => flag === key)?.key
}

function optionValue(key: keyof EngineConfig, value: unknown, where: string): unknown {
  const option = CONFIG_OPTIONS.find((o) => o.key === key)
  if (option === undefined) throw new ConfigError(`${where}: unknown option`)
  const type = option.type
  if (type === "list") return Array.isArray(value) ? value.map(String) : [String(value)]
  return typed(
    type === "integer" ? "number" : type === "boolean" ? "boolean" : "string",
    value,
    where,
  )
}

function typed(type: "string" | "number" | "boolean", value: unknown, where: string): unknown {
  if (type === "string" && (typeof value === "string" || typeof value === "number"))
    return String(value)
  if (typeof value === type) return value
  // KTransformers' own file writes some numbers as strings
  if (
    type === "number" &&
    typeof value === "string" &&
    value.trim() !== "" &&
    !Number.isNaN(Number(value))
  )
    return Number(value)
  throw new ConfigError(`${where} ${JSON.stringify(value)}: expected a ${type}`)
}

function readText(file: string): string {
  try {
    const bytes = readFileSync(file)
    if (bytes.length > MAX_BYTES)
      throw new FormatError(
        file,
        `${bytes.length} bytes is no configuration (at most ${MAX_BYTES})`,
      )
    return bytes.toString("utf8")
  } catch (cause) {
    if (cause instanceof FormatError) throw cause
    throw new FormatError(file, reasonOf(cause), { cause })
  }
}

/** An error of the file system in words. */
export function reasonOf(cause: unknown): string {
  const { code } = cause as { code?: string }
  if (code === "ENOENT") return "no such file or folder"
  if (code === "EACCES" || code === "EPERM") return "permission denied"
  if (code === "EISDIR") return "is a folder"
  if (code === "ENOTDIR") return "a part of the path is no folder"
  if (code === "EROFS") return "the file system is read-only"
  if (code === "ENOSPC") return "no space is left on the disk"
  return cause instanceof Error ? cause.message : String(cause)
}
