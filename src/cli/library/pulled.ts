import { existsSync, readFileSync, rmSync, statSync } from "node:fs"
import { basename, dirname, join, sep } from "node:path"

import { z } from "zod"

import { shardOf } from "../../weights/gguf.ts"
import { writeAtomically } from "./atomic.ts"

/** Which files of a folder were brought by us: only these are ever deleted. */
const RECORD = ".pulled.json"

const recordSchema = z.object({
  version: z.literal(1),
  files: z.record(z.string(), z.object({ bytes: z.int(), sha256: z.string() })),
})

type Pulled = z.infer<typeof recordSchema>["files"]

export interface PulledFile {
  readonly path: string
  readonly bytes: number
  readonly sha256: string
}

/** Remembers files as ours; `root` is the models folder, `folder` the one whose record they go into. */
export function recordPulled(folder: string, files: readonly PulledFile[]): void {
  const pulled: Pulled = { ...read(folder) }
  for (const { path, bytes, sha256 } of files)
    pulled[path.slice(folder.length + 1)] = { bytes, sha256 }
  writeAtomically(join(folder, RECORD), `${JSON.stringify({ version: 1, files: pulled })}\n`)
}

/** Whether all files of a model were brought by us. */
export function wasPulled(root: string, path: string): boolean {
  const found = recordOf(root, path)
  return found !== undefined && modelFiles(path, found.folder, found.pulled).length > 0
}

/** Deletes a model's files, and its companions with the last of the weights. */
export function removePulled(root: string, path: string): void {
  const found = recordOf(root, path)
  if (found === undefined) return
  const { folder, pulled } = found
  const gone = new Set(modelFiles(path, folder, pulled))
  const isWeights = (name: string): boolean => /\.(gguf|safetensors)$/.test(name)
  const left = Object.keys(pulled).filter((name) => !gone.has(name))
  if (!left.some(isWeights)) for (const name of left) gone.add(name)
  for (const name of gone) rmSync(join(folder, name), { force: true })
  const rest = Object.fromEntries(Object.entries(pulled).filter(([name]) => !gone.has(name)))
  if (Object.keys(rest).length === 0) rmSync(join(folder, RECORD), { force: true })
  else writeAtomically(join(folder, RECORD), `${JSON.stringify({ version: 1, files: rest })}\n`)
}

/** The record that a model's files are in: of its folder, or of one above it in the models folder. */
function recordOf(root: string, path: string): { folder: string; pulled: Pulled } | undefined {
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory() === true
  for (
    let folder = isFolder ? path : dirname(path);
    folder === root || folder.startsWith(root + sep);
    folder = dirname(folder)
  ) {
    const pulled = read(folder)
    if (pulled !== undefined) return { folder, pulled }
  }
  return undefined
}

/** Names, in the record, of the files that are the model; none where one of them is not ours. */
function modelFiles(path: string, folder: string, pulled: Pulled): string[] {
  const names = Object.keys(pulled)
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) {
    const below = path === folder ? "" : `${path.slice(folder.length + 1)}/`
    return names.filter((name) => name.startsWith(below))
  }
  const name = path.slice(folder.length + 1)
  if (pulled[name] === undefined) return []
  const shard = shardOf(basename(path))
  if (shard === undefined) return [name]
  return names.filter((other) => {
    const part = shardOf(basename(other))
    return (
      dirname(other) === dirname(name) &&
      part?.prefix === shard.prefix &&
      part.count === shard.count
    )
  })
}

function read(folder: string): Pulled | undefined {
  const file = join(folder, RECORD)
  if (!existsSync(file)) return undefined
  try {
    return recordSchema.parse(JSON.parse(readFileSync(file, "utf8"))).files
  } catch {
    // half a record would be of another program: nothing of it counts as ours
    return undefined
  }
}
