import { configFromFolder } from "../models/config-hf.ts"
import { openWeights } from "../weights/open.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { createdFolder, modelsFolder } from "./home.ts"
import { readMetadata } from "./library/metadata.ts"
import { Store } from "./library/store.ts"
import { type ListedModel, listModels } from "./model-resolve.ts"
import { formatBytes, table, write, writeJson } from "./output.ts"
import { mainType } from "./weights-summary.ts"

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
    const models = [...listModels(folder).map(describeModel), ...createdRows(folder)]
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

/** Models that are made of others. */
function createdRows(folder: string): ModelRow[] {
  const created = new Store(createdFolder(), folder).created()
  return created
    .toSorted((a, b) => a.name.localeCompare(b.name))
    .map(({ name, path, settings }) => {
      const base = { name, path, parent: settings.parent }
      try {
        const { sizeBytes: size, details } = readMetadata(path)
        return { ...base, size, architecture: details.family, quantization: details.quantization }
      } catch (error) {
        const problem = error instanceof Error ? error.message : String(error)
        return { ...base, size: 0, architecture: "?", quantization: "unreadable", problem }
      }
    })
}

export interface ModelRow {
  /** What a created model is made of. */
  readonly parent?: string
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
