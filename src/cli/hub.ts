import { type ListFileEntry, listFiles } from "@huggingface/hub"

import { ConfigError, KtError } from "../errors.ts"
import { shardOf } from "../weights/gguf.ts"
import { refusal } from "./download.ts"
import { reasonOf } from "./kt-config.ts"

/** Where the hub is and who asks. */
export interface Hub {
  readonly endpoint: string
  readonly token: string | undefined
}

/** HF_ENDPOINT and HF_TOKEN, as Hugging Face's own tools read them. */
export function hubFromEnvironment(
  env: Readonly<Record<string, string | undefined>> = process.env,
): Hub {
  const endpoint = (env["HF_ENDPOINT"] || "https://huggingface.co").replace(/\/+$/, "")
  if (!URL.canParse(endpoint)) throw new ConfigError(`HF_ENDPOINT ${endpoint}: is no URL`)
  return { endpoint, token: env["HF_TOKEN"] || undefined }
}

/** A file of a repository. */
export interface HubFile {
  readonly path: string
  readonly size: number
  /** Of files in large file storage; others have none. */
  readonly sha256: string | undefined
}

export interface RepoName {
  readonly repo: string
  readonly quant: string | undefined
  readonly revision: string
}

/** "org/repo", "org/repo:Q4_K_M", "org/repo@revision:Q4_K_M". */
export function parseRepo(text: string): RepoName | undefined {
  const match = /^([\w.-]+\/[\w.-]+?)(?:@([\w./-]+?))?(?::([\w.-]+))?$/.exec(text)
  if (match === null || /(^|\/)\.\.?(\/|$)/.test(match[1] as string)) return undefined
  return { repo: match[1] as string, revision: match[2] ?? "main", quant: match[3] }
}

/** @throws KtError in words for a repository that is not there or not for this token */
export async function repoFiles(hub: Hub, { repo, revision }: RepoName): Promise<HubFile[]> {
  const files: HubFile[] = []
  try {
    const entries = listFiles({
      repo,
      revision,
      recursive: true,
      hubUrl: hub.endpoint,
      ...(hub.token === undefined ? {} : { accessToken: hub.token }),
    }) as AsyncIterable<ListFileEntry>
    for await (const { type, path, size, lfs } of entries) {
      if (type !== "file") continue
      if (!isPlainPath(path))
        throw new KtError(`${repo}: the file name ${JSON.stringify(path)} leaves its folder`)
      files.push({ path, size: lfs?.size ?? size, sha256: lfs?.oid })
    }
  } catch (cause) {
    if (cause instanceof KtError) throw cause
    const { statusCode } = cause as { statusCode?: number }
    const where = `${hub.endpoint}/${repo}`
    if (statusCode !== undefined) throw refusal(statusCode, where, hub.token !== undefined)
    throw new KtError(`${where}: ${reasonOf(cause)}`, {
      hint: "check the connection, a proxy (HTTPS_PROXY), or HF_ENDPOINT",
      cause,
    })
  }
  return files
}

export function fileUrl(hub: Hub, { repo, revision }: RepoName, path: string): string {
  const encoded = path.split("/").map(encodeURIComponent).join("/")
  return `${hub.endpoint}/${repo}/resolve/${encodeURIComponent(revision)}/${encoded}`
}

/** Taken where no quantisation is named: small and good first. */
const PREFERRED = ["Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q5_K_M", "Q8_0", "BF16", "F16"]

/** What a folder needs beside its weights. */
const COMPANIONS =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|chat_template|vocab|preprocessor_config)\.json$|^(merges\.txt|tokenizer\.model|chat_template\.jinja)$|^model\.safetensors\.index\.json$/

/**
 * Which files of a repository make a model: one GGUF with all its shards, else safetensors with their companions.
 *
 * @throws ConfigError that lists what there is
 */
export function chooseFiles(name: RepoName, files: readonly HubFile[]): HubFile[] {
  const { repo, quant } = name
  const models = files.filter(
    ({ path }) =>
      path.endsWith(".gguf") && !/mmproj/i.test(path) && (shardOf(path)?.index ?? 1) === 1,
  )
  if (models.length > 0) return withShards(pickGguf(repo, quant, models), files, repo)
  const weights = files.filter(({ path }) => /^[^/]+\.safetensors$/.test(path))
  if (weights.length === 0)
    throw new ConfigError(`${repo} holds no GGUF and no safetensors files`, {
      hint:
        files.length === 0
          ? "it is empty"
          : `it holds ${files
              .slice(0, 6)
              .map((f) => f.path)
              .join(", ")}`,
    })
  if (quant !== undefined)
    throw new ConfigError(
      `${repo} holds safetensors, which have no quantisation "${quant}" to choose`,
    )
  const companions = files.filter(({ path }) => COMPANIONS.test(path))
  return [...companions, ...weights]
}

function pickGguf(repo: string, quant: string | undefined, models: readonly HubFile[]): HubFile {
  if (quant !== undefined) {
    const found = models.filter(({ path }) => hasQuant(path, quant))
    const [only] = found
    if (only !== undefined && found.length === 1) return only
    if (found.length > 1)
      throw new ConfigError(`${repo}: several files are ${quant}: ${paths(found)}`)
    throw new ConfigError(`${repo} has no file of quantisation ${quant}`, {
      hint: `it has ${paths(models)}`,
    })
  }
  const [only] = models
  if (only !== undefined && models.length === 1) return only
  for (const preferred of PREFERRED) {
    const [found, another] = models.filter(({ path }) => hasQuant(path, preferred))
    if (found !== undefined && another === undefined) return found
  }
  throw new ConfigError(`${repo} holds ${models.length} models: name one, as in ${repo}:Q4_K_M`, {
    hint: `it has ${paths(models)}`,
  })
}

/** Whole words only: Q4_K is not Q4_K_M. */
function hasQuant(path: string, quant: string): boolean {
  const escaped = quant.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
  return new RegExp(`(^|[^A-Za-z0-9])${escaped}(?=$|[^A-Za-z0-9_])`, "i").test(
    path.replace(/\.gguf$/i, ""),
  )
}

function withShards(model: HubFile, files: readonly HubFile[], repo: string): HubFile[] {
  const shard = shardOf(model.path)
  if (shard === undefined) return [model]
  const folder = model.path.slice(0, model.path.lastIndexOf("/") + 1)
  const parts = files.filter(({ path }) => {
    const part = shardOf(path)
    return path.startsWith(folder) && part?.prefix === shard.prefix && part.count === shard.count
  })
  if (parts.length !== shard.count)
    throw new ConfigError(
      `${repo}: ${parts.length} of the ${shard.count} shards of ${model.path} are there`,
    )
  return parts.toSorted((a, b) => a.path.localeCompare(b.path))
}

function paths(files: readonly HubFile[]): string {
  const names = files.map(({ path }) => path)
  return names.length > 12 ? `${names.slice(0, 12).join(", ")}, …` : names.join(", ")
}

function isPlainPath(path: string): boolean {
  return (
    !path.startsWith("/") &&
    !path.includes("\\") &&
    !path.split("/").some((p) => p === ".." || p === "." || p === "")
  )
}
