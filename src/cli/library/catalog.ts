import { realpathSync, statSync } from "node:fs"

import type { EngineConfig } from "../../config.ts"
import { engineConfig } from "../../config.ts"
import { KtError, RequestError } from "../../errors.ts"
import type {
  KnownModel,
  LoadedModel,
  LoadHooks,
  ModelLibrary,
  ModelSettings,
  StepLimits,
} from "../../server/models/library.ts"
import type { ModelStore } from "../../server/models/store.ts"
import type { SamplingDefaults } from "../../server/types.ts"
import type { EngineInfo } from "../../worker/protocol.ts"
import { leastSeconds } from "../bench-limits.ts"
import type { ModelLimits } from "../bench-machine.ts"
import { type ListedModel, listModels, modelName } from "../model-resolve.ts"
import { openSession, type Session } from "../session.ts"
import { learnHeaders } from "./header-reader.ts"
import { otherNames, readMetadata } from "./metadata.ts"
import { runKt } from "./run-kt.ts"
import type { CreatedModel, Store } from "./store.ts"

export interface CatalogOptions {
  readonly folder: string
  /** Of every engine; the model and what belongs to it alone are replaced. */
  readonly config: EngineConfig
  /** Given on the command line, wherever it lies. */
  readonly first?: {
    readonly path: string
    readonly name: string | undefined
    /** It was created here. */
    readonly own?: CreatedModel | undefined
    /** Jinja source in place of its files' own. */
    readonly template?: string | undefined
  }
  /** Sampling where a request says nothing, for the model at a path. */
  readonly defaultsOf?: (path: string) => SamplingDefaults
  /** Where models are made, and what brings and deletes them. */
  readonly store?: Store
  readonly turns?: SharedArrayBuffer
}

/** Below this a context that memory has cut is not worth having while another model could leave. */
const USEFUL_CONTEXT = 4096

/** The models of a folder, those made from them, and the one of the command line. */
export class Catalog implements ModelLibrary {
  readonly store: ModelStore | undefined
  readonly #options: CatalogOptions

  constructor(options: CatalogOptions) {
    this.#options = options
    this.store = options.store?.with(this)
  }

  list(): readonly FileModel[] {
    const { folder, first } = this.#options
    const listed = listModels(folder)
    const models = new Map<string, FileModel>()
    if (first !== undefined) {
      const entry = listed.find(({ path }) => realPath(path) === realPath(first.path))
      const name = first.name ?? first.own?.name ?? modelName(first.path)
      const names = otherNames(first.path, entry?.group ?? "")
      models.set(
        name,
        first.own === undefined
          ? new FileModel(name, first.path, [...names, modelName(first.path).toLowerCase()])
          : new FileModel(name, first.path, [], first.own),
      )
    }
    const names = Map.groupBy(listed, ({ name }) => name)
    for (const entry of listed) {
      // under its other name it is another model
      const isFirst = first !== undefined && realPath(entry.path) === realPath(first.path)
      if (isFirst && first.own === undefined) continue
      const isAlone = names.get(entry.name)?.length === 1 && !models.has(entry.name)
      const name = isAlone ? entry.name : fullName(entry)
      if (!models.has(name))
        models.set(name, new FileModel(name, entry.path, otherNames(entry.path, entry.group)))
    }
    for (const created of this.#options.store?.created() ?? []) {
      if (models.has(created.name)) continue
      models.set(created.name, new FileModel(created.name, created.path, [], created))
    }
    return [...models.values()].toSorted((a, b) => a.name.localeCompare(b.name))
  }

  async prepare(models: readonly KnownModel[] = this.list()): Promise<void> {
    await learnHeaders(models.map((model) => this.file(model).path))
  }

  /** The model of the command line. */
  first(): KnownModel {
    const { first } = this.#options
    if (first === undefined) throw new KtError("no model was given")
    const models = this.list()
    const name = first.name ?? first.own?.name
    const found =
      models.find((model) => model.name === name) ??
      models.find(({ path }) => realPath(path) === realPath(first.path))
    if (found === undefined) throw new KtError(`${first.path} is gone`)
    return found
  }

  describe(model: KnownModel): KnownModel {
    const file = this.file(model)
    const { chatTemplate, info } = readMetadata(file.path)
    return {
      ...file.facts(),
      ...(chatTemplate === undefined ? {} : { chatTemplate }),
      ...(info === undefined ? {} : { info }),
    }
  }

  /** The model as it is here, with its path. @throws KtError when it has gone since */
  file(model: KnownModel): FileModel {
    if (model instanceof FileModel) return model
    const found = this.list().find(({ name }) => name === model.name)
    if (found === undefined)
      throw new RequestError(404, `model "${model.name}" not found; it was deleted meanwhile`, {
        code: "model_not_found",
        param: "model",
      })
    return found
  }

  check(model: KnownModel): void {
    const { path } = this.file(model)
    try {
      readMetadata(path)
    } catch (error) {
      throw withoutPath(error, path, model.name)
    }
  }

  async load(model: KnownModel, memoryBytes: number, hooks: LoadHooks): Promise<LoadedModel> {
    const { path } = this.file(model)
    try {
      return await this.#load(path, memoryBytes, hooks)
    } catch (error) {
      throw withoutPath(error, path, model.name)
    }
  }

  async limits(model: KnownModel, info: EngineInfo, signal: AbortSignal): Promise<StepLimits> {
    const { path } = this.file(model)
    const { config, first } = this.#options
    const isFirst = first !== undefined && realPath(first.path) === realPath(path)
    const own = isFirst ? config.modelPath : undefined
    const { threads, precision, device } = info
    const args = ["--threads", String(threads), "--precision", precision, "--json"]
    if (own !== undefined) args.push("--model-path", own)
    if (device !== "cpu") args.push("--device", device)
    try {
      const printed = await runKt(["bench", "limits", path, ...args], signal)
      const { limits, work } = JSON.parse(printed) as ModelLimits
      const kvBytes = info.kvCacheTokens === 0 ? 0 : info.kvCacheBytes / info.kvCacheTokens
      return {
        readBytes: limits.readBytes,
        leastSeconds: (sequences, tokens, depth) =>
          leastSeconds(work, limits, { sequences, tokens, depth, kvBytes }),
      }
    } catch (error) {
      throw withoutPath(error, path, model.name)
    }
  }

  async #load(path: string, memoryBytes: number, hooks: LoadHooks): Promise<LoadedModel> {
    const { config, first, turns } = this.#options
    const isFirst = first !== undefined && realPath(first.path) === realPath(path)
    const longest = readMetadata(path).contextLength ?? Number.POSITIVE_INFINITY
    const own = engineConfig({
      ...config,
      model: path,
      // a limit for all of them is none that each must reach
      contextLength: isFirst ? config.contextLength : Math.min(config.contextLength, longest),
      // what was given for one model is not for another
      modelPath: isFirst ? config.modelPath : undefined,
      rules: isFirst ? config.rules : undefined,
      draft: isFirst ? config.draft : undefined,
      memoryBytes: Number.isFinite(memoryBytes) ? Math.max(1, Math.floor(memoryBytes)) : 0,
    })
    const template = isFirst ? first.template : undefined
    const options = {
      onProgress: hooks.onProgress,
      ...(turns === undefined ? {} : { turns }),
      ...(template === undefined ? {} : { template }),
    }
    return loadedModel(await openSession(own, undefined, options), own, this.#options.defaultsOf)
  }
}

/** A session as the server's models have it. */
export function loadedModel(
  session: Session,
  config: EngineConfig,
  defaultsOf: CatalogOptions["defaultsOf"],
): LoadedModel {
  const { client, tokenizer, metadata } = session
  const { contextLength, trainedContextLength } = client.info
  return {
    client,
    tokenizer,
    chatTemplate: metadata.chatTemplate,
    defaults: defaultsOf?.(config.model),
    isCut:
      config.contextLength === 0 && contextLength < Math.min(trainedContextLength, USEFUL_CONTEXT),
    withTemplate: session.withTemplate,
  }
}

/** A model whose files are looked into when somebody asks for more than its name. */
export class FileModel implements KnownModel {
  readonly name: string
  readonly path: string
  readonly otherNames: readonly string[]
  readonly #own: CreatedModel | undefined
  #key: string | undefined

  constructor(name: string, path: string, otherNames: readonly string[], own?: CreatedModel) {
    this.name = name
    this.path = path
    this.otherNames = otherNames
    this.#own = own
  }

  get key(): string {
    return (this.#key ??= realPath(this.path))
  }

  get settings(): ModelSettings | undefined {
    return this.#own?.settings
  }

  /** Made here from another one. */
  get isCreated(): boolean {
    return this.#own !== undefined
  }

  get created(): number {
    return this.#own?.created ?? this.#metadata()?.created ?? 0
  }

  get sizeBytes(): number {
    const known = this.#metadata()?.sizeBytes
    return known ?? statSync(this.path, { throwIfNoEntry: false })?.size ?? 0
  }

  get digest(): string {
    return this.#own?.digest ?? this.#metadata()?.digest ?? "0".repeat(64)
  }

  get details(): KnownModel["details"] {
    const unknown = { format: "?", family: "?", parameterSize: "?", quantization: "?" }
    return this.#metadata()?.details ?? unknown
  }

  get problem(): string | undefined {
    try {
      readMetadata(this.path)
      return undefined
    } catch (error) {
      const known = withoutPath(error, this.path, this.name)
      return known instanceof Error ? known.message : String(known)
    }
  }

  /** All of it as a plain object. */
  facts(): KnownModel {
    const { name, key, created, sizeBytes, digest, details, settings, otherNames } = this
    const own = settings === undefined ? {} : { settings }
    return { name, key, created, sizeBytes, digest, details, otherNames, ...own }
  }

  #metadata(): ReturnType<typeof readMetadata> | undefined {
    try {
      return readMetadata(this.path)
    } catch {
      // shown as a problem; loading it says why
      return undefined
    }
  }
}

/** Clients are told of a model, not of where it lies. */
function withoutPath(error: unknown, path: string, name: string): unknown {
  if (!(error instanceof KtError) || !error.message.includes(path)) return error
  const message = error.message.replaceAll(path, name)
  const hint = error.hint === undefined ? {} : { hint: error.hint }
  return new KtError(message, { ...hint, cause: error })
}

function fullName({ group, name, kind }: ListedModel): string {
  return group === "" || kind === "safetensors" ? name : `${group}/${name}`
}

function realPath(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return path
  }
}
