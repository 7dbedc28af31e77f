import { join } from "node:path"

import { UsageError } from "../errors.ts"
import { shardOf } from "../weights/gguf.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import type { Downloaded } from "./download.ts"
import { modelsFolder } from "./home.ts"
import { parseRepo } from "./hub.ts"
import { fetchItems, type Item, repoFolder, repoItems } from "./library/fetch-repo.ts"
import { logger } from "./log.ts"
import { formatBytes, write, writeJson } from "./output.ts"
import { type Progress, progressBar } from "./progress.ts"

export const pull = defineCommand({
  name: "pull",
  summary: "Download a model into the models folder",
  details: `A download that was interrupted goes on where it stopped, sizes and SHA-256 are checked, and a
file gets its name only when it is whole. HF_TOKEN is sent to HF_ENDPOINT's host alone.`,
  positionals: [
    {
      name: "SOURCE",
      help: "org/repo, org/repo:quant, hf.co/org/repo:quant, org/repo@revision:quant, or a URL",
      required: true,
    },
  ],
  flags: {
    name: { type: "string", hint: "file", help: "name of the file, for a URL" },
    sha256: { type: "string", hint: "hex", help: "checksum to ask of the file, for a URL" },
    ...JSON_FLAG,
  },
  logLevel: "info",
  examples: [
    {
      command: "kt pull Qwen/Qwen3-8B-GGUF:Q4_K_M",
      says: "one quantisation of a repository, all its shards",
    },
    { command: "kt pull Qwen/Qwen3-0.6B", says: "a folder with safetensors" },
    { command: "kt pull https://example.org/model.gguf", says: "a file from anywhere" },
  ],
  async run({ args, flags }) {
    const source = args[0] as string
    const { items, folder } = await itemsOf(source, flags.name, flags.sha256)
    const bars = new Map<Item, Progress>()
    const title = ({ path }: Item): string => path.slice(modelsFolder().length + 1)
    const results = await fetchItems(items, folder, {
      onProgress: (item, done, total) =>
        bars
          .getOrInsertComputed(item, () => progressBar(title(item), formatBytes))
          .update(done, total),
      onNote: (line) => logger("pull").warn(line),
      onFile: (item, file) => {
        bars.get(item)?.[Symbol.dispose]()
        if (!file.verified)
          logger("pull").warn(`${title(item)}: no checksum is known to compare with`)
        logger("pull").info(
          `${title(item)}: ${formatBytes(file.bytes)}${file.skipped ? ", was here already" : ""}`,
        )
      },
    }).finally(() => {
      for (const bar of bars.values()) bar[Symbol.dispose]()
    })
    const path = modelPath(results)
    if (flags.json) return writeJson({ path, files: results })
    await write(`${path}\n`)
  },
})

async function itemsOf(
  source: string,
  name: string | undefined,
  sha256: string | undefined,
): Promise<{ items: Item[]; folder: string }> {
  if (/^https?:\/\/(?!(hf\.co|huggingface\.co)\/[^/]+\/[^/]+$)/i.test(source))
    return { items: [urlItem(source, name, sha256)], folder: modelsFolder() }
  const repo = parseRepo(source.replace(/^(https?:\/\/)?(hf\.co|huggingface\.co)\//i, ""))
  if (repo === undefined) throw new UsageError(`"${source}" is neither org/repo[:quant] nor a URL`)
  return { items: await repoItems(repo, modelsFolder()), folder: repoFolder(repo, modelsFolder()) }
}

function urlItem(source: string, name: string | undefined, sha256: string | undefined): Item {
  const url = URL.parse(source)
  if (url === null) throw new UsageError(`${source} is no URL`)
  if (sha256 !== undefined && !/^[0-9a-f]{64}$/i.test(sha256))
    throw new UsageError(`--sha256 ${sha256}: expected 64 hexadecimal digits`)
  const file = name ?? decodeURIComponent(url.pathname.split("/").at(-1) ?? "")
  if (!/^[\w][\w.+ -]*$/.test(file))
    throw new UsageError(`the URL gives no file name ("${file}")`, { hint: "give one with --name" })
  return { url: source, path: join(modelsFolder(), file), sha256: sha256?.toLowerCase() }
}

/** What to give as MODEL: the first shard, the one file, or the folder of safetensors. */
function modelPath(files: readonly Downloaded[]): string {
  const ggufs = files.filter(({ path }) => path.endsWith(".gguf"))
  const first = ggufs.find(({ path }) => (shardOf(path)?.index ?? 1) === 1)
  if (first !== undefined) return first.path
  const { path } = files.at(-1) as Downloaded
  return path.endsWith(".safetensors") && files.length > 1 ? join(path, "..") : path
}
