import { basename } from "node:path"

import { ConfigError, RequestError } from "../../errors.ts"
import { findModel, plainName } from "../../server/models/names.ts"
import type { OnProgress, Progress } from "../../server/models/store.ts"
import { parseRepo, type RepoName } from "../hub.ts"
import type { Catalog } from "./catalog.ts"
import { fetchItems, repoFolder, repoItems } from "./fetch-repo.ts"

/** Progress of one file is told this often. */
const PROGRESS_MS = 250

/** A download that several clients may watch; it ends when the last of them has gone. */
interface Job {
  readonly watchers: Set<OnProgress>
  readonly done: Promise<void>
  readonly controller: AbortController
  last: Progress | undefined
}

/** Models that clients ask to be brought from the hub. */
export class Pulls {
  readonly #folder: string
  readonly #jobs = new Map<string, Job>()

  constructor(modelsFolder: string) {
    this.#folder = modelsFolder
  }

  /** Undefined where the model is here already. RequestError 400 for what the hub does not have by its name. */
  source(name: string, catalog: Catalog): RepoName | undefined {
    const isHub = /^(https?:\/\/)?(hf\.co|huggingface\.co)\//i.test(name)
    if (!isHub && findModel(name, catalog.list(), []) !== undefined) return undefined
    const repo = isHub
      ? parseRepo(name.replace(/^(https?:\/\/)?[^/]+\//, "").replace(/:latest$/, ""))
      : undefined
    if (repo !== undefined) return repo
    const reason = isHub
      ? "expected hf.co/user/repo:quantisation"
      : "it would come from Ollama's own registry, which is not asked; models come from Hugging Face's hub, as hf.co/user/repo:quantisation"
    throw new RequestError(400, `model ${JSON.stringify(name.slice(0, 120))}: ${reason}`, {
      code: "invalid_model_name",
      param: "model",
    })
  }

  async pull(
    name: string,
    catalog: Catalog,
    onProgress: OnProgress,
    signal: AbortSignal,
  ): Promise<void> {
    const repo = this.source(name, catalog)
    if (repo === undefined) return
    const key = plainName(name)
    const job = this.#jobs.get(key) ?? this.#start(key, repo)
    job.watchers.add(onProgress)
    if (job.last !== undefined) onProgress(job.last)
    const leave = (): void => {
      job.watchers.delete(onProgress)
      if (job.watchers.size === 0) job.controller.abort(gone())
    }
    signal.addEventListener("abort", leave, { once: true })
    if (signal.aborted) leave()
    try {
      await job.done
    } finally {
      signal.removeEventListener("abort", leave)
      job.watchers.delete(onProgress)
    }
  }

  #start(key: string, repo: RepoName): Job {
    const watchers = new Set<OnProgress>()
    const controller = new AbortController()
    const tell: OnProgress = (progress) => {
      job.last = progress
      for (const watch of watchers) watch(progress)
    }
    // begins when the job has a name: what it tells goes to whoever watches it then
    const done = Promise.resolve()
      .then(() => this.#fetch(repo, tell, controller.signal))
      .finally(() => this.#jobs.delete(key))
    done.catch(() => {})
    const job: Job = { watchers, done, controller, last: undefined }
    this.#jobs.set(key, job)
    return job
  }

  async #fetch(repo: RepoName, tell: OnProgress, signal: AbortSignal): Promise<void> {
    tell({ status: "pulling manifest" })
    let toldMs = 0
    const items = await repoItems(repo, this.#folder).catch(asRequest)
    const label = (item: {
      readonly path: string
      readonly sha256?: string | undefined
    }): string => (item.sha256 === undefined ? basename(item.path) : item.sha256.slice(0, 12))
    const digest = (item: { readonly sha256?: string | undefined }): { digest?: string } =>
      item.sha256 === undefined ? {} : { digest: `sha256:${item.sha256}` }
    await fetchItems(items, repoFolder(repo, this.#folder), {
      signal,
      onProgress: (item, completed, total) => {
        const now = performance.now()
        if (now - toldMs < PROGRESS_MS && completed < total) return
        toldMs = now
        tell({ status: `pulling ${label(item)}`, ...digest(item), total, completed })
      },
      onFile: (item, { bytes }) =>
        tell({ status: `pulling ${label(item)}`, ...digest(item), total: bytes, completed: bytes }),
      onNote: (line) => tell({ status: line }),
    }).catch(asRequest)
    tell({ status: "verifying sha256 digest" })
    tell({ status: "writing manifest" })
  }
}

/** What the name asked for is not there: that is the client's. */
function asRequest(error: unknown): never {
  if (error instanceof ConfigError || /status (401|403|404)\)/.test(String(error)))
    throw new RequestError(
      error instanceof ConfigError ? 400 : 404,
      error instanceof Error ? error.message : String(error),
      { code: "pull_failed", param: "model", cause: error },
    )
  throw error
}

function gone(): RequestError {
  return new RequestError(499, "the client closed the request", { code: "client_closed" })
}
