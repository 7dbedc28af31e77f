import { configFromFolder } from "../models/config-hf.ts"
import type { GgufMetadata } from "../weights/metadata.ts"
import { openWeights } from "../weights/open.ts"
import type { WeightSource } from "../weights/source.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { modelsFolder } from "./home.ts"
import { type ListedModel, listModels } from "./model-resolve.ts"
import { formatBytes, table, write, writeJson } from "./output.ts"

export const list = defineCommand({
  name: "list",
  summary: "Show the models of the models folder",
  details: "Names that it shows, or beginnings of them, can be given as MODEL to every command.",
  flags: { ...JSON_FLAG },
  examples: [
    { command: "kt list", says: "name, size, architecture and quantisation" },
    { command: "kt list --json", says: "with paths, for other tools" },
  ],
  async run({ flags }) {
    const folder = modelsFolder()
    const models = listModels(folder).map(describeModel)
    if (flags.json) return writeJson({ folder, models })
    if (models.length === 0)
      return write(`${folder} holds no models; \`kt pull org/repo:quant\` downloads one\n`)
    const rows = models.map((m) => [
      m.name,
      formatBytes(m.size),
      m.architecture,
      m.quantization,
      m.path,
    ])
    await write(table(["NAME", "SIZE", "ARCHITECTURE", "QUANT", "PATH"], rows))
  },
})

export interface ModelRow {
  readonly name: string
  readonly size: number
  readonly architecture: string
  readonly quantization: string
  readonly path: string
  /** Why the model cannot be opened. */
  readonly problem?: string
}

/** A model with what its headers say; one that cannot be opened is listed with the reason. */
export function describeModel(model: ListedModel): ModelRow {
  const base = { name: model.name, size: model.sizeBytes, path: model.path }
  try {
    const weights = openWeights(model.path)
    try {
      const architecture =
        weights.kind === "gguf" ? weights.architecture : configFromFolder(model.path).model_type
      return { ...base, architecture, quantization: mainType(weights) }
    } finally {
      weights.close()
    }
  } catch (error) {
    const problem = error instanceof Error ? error.message : String(error)
    return { ...base, architecture: "?", quantization: "unreadable", problem }
  }
}

/** The type that most of the bytes have. */
export function mainType(weights: WeightSource): string {
  const bytes = new Map<string, number>()
  for (const name of weights.names()) {
    const entry = weights.get(name)
    if (entry !== undefined)
      bytes.set(entry.dtype.name, (bytes.get(entry.dtype.name) ?? 0) + entry.byteLength)
  }
  return [...bytes].toSorted((a, b) => b[1] - a[1])[0]?.[0] ?? "vocabulary only"
}

/** Metadata that can be shown: scalars, and the lengths of arrays. */
export function shownMetadata(metadata: GgufMetadata): Record<string, unknown> {
  const shown: Record<string, unknown> = {}
  for (const [key, value] of metadata) {
    if (typeof value === "bigint") shown[key] = Number(value)
    else if (typeof value !== "object") shown[key] = value
    else shown[key] = null
  }
  return shown
}
