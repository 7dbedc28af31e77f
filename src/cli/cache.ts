import { readFileSync } from "node:fs"
import { join, resolve } from "node:path"

import { KtError, UsageError } from "../errors.ts"
import { ABOUT_FILE, folderParts, partFolder, removePart } from "../kvcache/disk-folder.ts"
import { SYSTEM_FILES } from "../kvcache/store-files.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { formatBytes, table, write, writeJson } from "./output.ts"

const FOLDER_FLAG = {
  "cache-dir": { type: "string", hint: "folder", help: "the servers' --cache-dir [KT_CACHE_DIR]" },
} as const

interface Row {
  readonly fingerprint: string
  readonly model: string
  readonly types: string
  readonly bytes: number
  readonly used: string
}

function folderOf(flag: string | undefined): string {
  const folder = flag ?? process.env["KT_CACHE_DIR"]
  if (!folder) throw new UsageError("which folder? give --cache-dir FOLDER or set KT_CACHE_DIR")
  return resolve(folder)
}

function rowsOf(folder: string): Row[] {
  return folderParts(SYSTEM_FILES, folder).map(({ fingerprint, bytes, segments }) => {
    const about = readAbout(join(partFolder(folder, fingerprint), ABOUT_FILE))
    const usedMs = segments.reduce((latest, segment) => Math.max(latest, segment.usedMs), 0)
    return {
      fingerprint,
      model: String(about["model"] ?? "?"),
      types: `${String(about["precision"] ?? "?")}, KV ${String(about["kvType"] ?? "?")}, ${String(about["isa"] ?? "?")}`,
      bytes,
      used: usedMs === 0 ? "-" : new Date(usedMs).toISOString(),
    }
  })
}

function readAbout(path: string): Record<string, unknown> {
  try {
    const about: unknown = JSON.parse(readFileSync(path, "utf8"))
    return typeof about === "object" && about !== null ? (about as Record<string, unknown>) : {}
  } catch {
    return {}
  }
}

const list = defineCommand({
  name: "cache list",
  summary: "Show what a prefix cache's folder holds, model by model",
  flags: { ...FOLDER_FLAG, ...JSON_FLAG },
  examples: [{ command: "kt cache list --cache-dir ~/kv", says: "models, bytes, last use" }],
  async run({ flags }) {
    const folder = folderOf(flags["cache-dir"])
    const rows = rowsOf(folder)
    if (flags.json) return writeJson({ folder, models: rows })
    if (rows.length === 0) return write(`${folder} holds no prefix cache\n`)
    const cells = rows.map((row) => [
      row.fingerprint.slice(0, 12),
      row.model,
      row.types,
      formatBytes(row.bytes),
      row.used,
    ])
    await write(table(["ID", "MODEL", "COMPUTED WITH", "SIZE", "LAST USE"], cells))
  },
})

const clear = defineCommand({
  name: "cache clear",
  summary: "Remove prefixes from a prefix cache's folder",
  details:
    "A model that a server writes is left alone; DELETE /cache asks that server to forget its own.",
  positionals: [
    { name: "ID", help: "as `kt cache list` shows it, or its beginning (default: all)" },
  ],
  flags: { ...FOLDER_FLAG, ...JSON_FLAG },
  examples: [
    { command: "kt cache clear --cache-dir ~/kv", says: "everything" },
    { command: "kt cache clear 3fa1 --cache-dir ~/kv", says: "one model" },
  ],
  async run({ args, flags }) {
    const folder = folderOf(flags["cache-dir"])
    const [id = ""] = args
    const rows = rowsOf(folder).filter(({ fingerprint }) => fingerprint.startsWith(id))
    if (rows.length === 0 && id !== "") throw new KtError(`${folder} holds no "${id}"`)
    const busy: string[] = []
    let bytes = 0
    for (const row of rows) {
      if (removePart(SYSTEM_FILES, folder, row.fingerprint)) bytes += row.bytes
      else busy.push(row.model)
    }
    if (flags.json) await writeJson({ bytes, busy })
    else await write(`${formatBytes(bytes)} removed\n`)
    if (busy.length > 0)
      throw new KtError(`a running server writes the prefixes of ${busy.join(", ")}`, {
        hint: "DELETE /cache of that server clears them",
      })
  },
})

export const cache = defineCommand({
  name: "cache",
  summary: "Work with the prefix cache on disk",
  flags: {},
  examples: [{ command: "kt cache list --cache-dir ~/kv", says: "what a folder holds" }],
  subCommands: { list: async () => list, clear: async () => clear },
  run: async () => {},
})
