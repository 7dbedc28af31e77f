import { closeSync, existsSync, openSync, readdirSync, readSync, statSync } from "node:fs"
import { join } from "node:path"

import { FormatError } from "../errors.ts"
import { MappedFile } from "../native/mapped-file.ts"
import { type GgufFile, openGguf, shardOf, shardPath } from "./gguf.ts"
import { withQuantization } from "./quantized.ts"
import {
  openSafetensors,
  SAFETENSORS_INDEX,
  SAFETENSORS_SINGLE,
  type SafetensorsFile,
} from "./safetensors.ts"
import type { OpenSource } from "./source.ts"

/**
 * Opens a checkpoint: a GGUF file (its first shard), a safetensors file, a folder with safetensors
 * (preferred where a folder holds both, as KTransformers does) or a folder with one GGUF model.
 */
export function openWeights(
  path: string,
  open: OpenSource = MappedFile.open,
): GgufFile | SafetensorsFile {
  const weights = openStored(path, open)
  return weights.kind === "gguf" ? weights : withQuantization(weights)
}

/** As `openWeights`, with the tensors of quantised safetensors as they are stored. */
export function openStored(
  path: string,
  open: OpenSource = MappedFile.open,
): GgufFile | SafetensorsFile {
  const where = locateWeights(path)
  return where.kind === "gguf" ? openGguf(where.path, open) : openSafetensors(where.path, open)
}

/** What `openWeights` would open; an error names what is there instead. */
export function locateWeights(path: string): { kind: "gguf" | "safetensors"; path: string } {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) throw new FormatError(path, "no such file or folder")
  if (stat.isDirectory()) return locateInFolder(path)
  if (!stat.isFile()) throw new FormatError(path, "is neither a file nor a folder")
  if (firstBytes(path) === "GGUF") return { kind: "gguf", path }
  if (path.endsWith(".safetensors")) return { kind: "safetensors", path }
  throw new FormatError(
    path,
    "is neither a GGUF file (it does not start with GGUF) nor a .safetensors file",
  )
}

function locateInFolder(folder: string): { kind: "gguf" | "safetensors"; path: string } {
  if (existsSync(join(folder, SAFETENSORS_INDEX)) || existsSync(join(folder, SAFETENSORS_SINGLE))) {
    return { kind: "safetensors", path: folder }
  }
  const names = readdirSync(folder).toSorted()
  const models = names.filter(
    (name) => name.endsWith(".gguf") && !/mmproj/i.test(name) && isFirstShard(name),
  )
  const [model] = models
  if (models.length > 1) {
    throw new FormatError(folder, `holds ${models.length} GGUF models: ${listed(models)}`, {
      hint: "name one of them",
    })
  }
  if (model !== undefined) return { kind: "gguf", path: join(folder, model) }
  const shard = names
    .map((name) => ({ name, part: shardOf(name) }))
    .find((n) => n.part !== undefined)
  if (shard?.part !== undefined) {
    const first = shardPath(join(folder, shard.name), shard.part.prefix, 1, shard.part.count)
    throw new FormatError(first, `the first shard is missing, ${shard.name} is there`, {
      hint: "complete the download",
    })
  }
  if (names.some((name) => name.endsWith(".safetensors")))
    return { kind: "safetensors", path: folder }
  if (names.some((name) => /^pytorch_model.*\.bin$|\.pth?$/.test(name))) {
    throw new FormatError(folder, "holds PyTorch weights only", {
      hint: "convert them to safetensors or GGUF",
    })
  }
  throw new FormatError(folder, "holds no weights (no *.gguf, no *.safetensors)")
}

function isFirstShard(name: string): boolean {
  return (shardOf(name)?.index ?? 1) === 1
}

function listed(names: readonly string[]): string {
  return names.length > 8 ? `${names.slice(0, 8).join(", ")}, …` : names.join(", ")
}

function firstBytes(path: string): string {
  const bytes = Buffer.alloc(4)
  const fd = openSync(path, "r")
  try {
    return bytes.toString("latin1", 0, readSync(fd, bytes, 0, 4, 0))
  } finally {
    closeSync(fd)
  }
}
