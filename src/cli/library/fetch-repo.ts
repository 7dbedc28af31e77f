import { join } from "node:path"

import { download, type Downloaded } from "../download.ts"
import { chooseFiles, fileUrl, hubFromEnvironment, repoFiles, type RepoName } from "../hub.ts"
import { recordPulled } from "./pulled.ts"

/** What is brought, and where it goes. */
export interface Item {
  readonly url: string
  readonly path: string
  readonly size?: number
  readonly sha256?: string | undefined
}

export interface FetchHooks {
  readonly onProgress?: (item: Item, done: number, total: number) => void
  /** A file is whole. */
  readonly onFile?: (item: Item, file: Downloaded) => void
  readonly onNote?: (line: string) => void
  readonly signal?: AbortSignal
}

/** The files of a repository that make a model. @throws KtError in words */
export async function repoItems(name: RepoName, modelsFolder: string): Promise<Item[]> {
  const hub = hubFromEnvironment()
  const files = chooseFiles(name, await repoFiles(hub, name))
  const folder = repoFolder(name, modelsFolder)
  return files.map(({ path, size, sha256 }) => ({
    url: fileUrl(hub, name, path),
    path: join(folder, ...path.split("/")),
    size,
    sha256,
  }))
}

export function repoFolder({ repo }: RepoName, modelsFolder: string): string {
  return join(modelsFolder, ...repo.split("/"))
}

/** Brings files into a folder and remembers them as brought by us. */
export async function fetchItems(
  items: readonly Item[],
  folder: string,
  hooks: FetchHooks = {},
): Promise<Downloaded[]> {
  const hub = hubFromEnvironment()
  const results: Downloaded[] = []
  for (const item of items) {
    const sameHost = URL.parse(item.url)?.origin === URL.parse(hub.endpoint)?.origin
    const result = await download({
      ...item,
      token: sameHost ? hub.token : undefined,
      onProgress: (done, total) => hooks.onProgress?.(item, done, total),
      ...(hooks.onNote === undefined ? {} : { onNote: hooks.onNote }),
      ...(hooks.signal === undefined ? {} : { signal: hooks.signal }),
    })
    hooks.onFile?.(item, result)
    results.push(result)
  }
  recordPulled(folder, results)
  return results
}
