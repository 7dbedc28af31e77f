import { createHash } from "node:crypto"
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs"
import { join } from "node:path"

import { z } from "zod"

import { fileType } from "../../convert/file-types.ts"
import { ConfigError, KtError, RequestError } from "../../errors.ts"
import type { KnownModel, ModelSettings } from "../../server/models/library.ts"
import { plainName } from "../../server/models/names.ts"
import type { ModelStore, NewModel, OnProgress } from "../../server/models/store.ts"
import { ChatTemplate } from "../../tokenizer/chat-template.ts"
import { locateWeights } from "../../weights/open.ts"
import { logger } from "../log.ts"
import { syncFolder, UNFINISHED, unfinished, writeAtomically } from "./atomic.ts"
import { Blobs } from "./blobs.ts"
import type { Catalog } from "./catalog.ts"
import { readMetadata } from "./metadata.ts"
import { removePulled, wasPulled } from "./pulled.ts"
import { Pulls } from "./pulls.ts"
import { runKt } from "./run-kt.ts"

/** A model that was made here. */
export interface CreatedModel {
  readonly name: string
  /** Of its weights. */
  readonly path: string
  readonly settings: ModelSettings
  /** Unix seconds. */
  readonly created: number
  readonly digest: string
}

const manifestSchema = z.object({
  version: z.literal(1),
  name: z.string(),
  created: z.int(),
  /** Where the weights are: a folder of this store's, or a model's path. */
  weights: z.union([
    z.object({ own: z.string().regex(/^[0-9a-f]{64}$/), file: z.string().nullable() }),
    z.object({ path: z.string() }),
  ]),
  settings: z.object({
    parent: z.string(),
    system: z.string().optional(),
    template: z.string().optional(),
    parameters: z.record(z.string(), z.unknown()).optional(),
    messages: z
      .array(z.looseObject({ role: z.string(), content: z.string().nullable() }))
      .optional(),
    license: z.array(z.string()).optional(),
  }),
})

type Manifest = z.infer<typeof manifestSchema>

/** Names of created models: a word, and perhaps a tag behind a colon. They become names of files. */
const NAME = /^[A-Za-z0-9_][\w.-]{0,99}(:[A-Za-z0-9_][\w.-]{0,99})?$/
/** Names of the files that a model may be made of. */
const FILE = /^[A-Za-z0-9_][\w.+ -]{0,199}$/

/**
 * Models that are made of others: a small file each, with the weights of the other model or of a folder of files that
 * clients sent. Everything that is written appears whole or not at all.
 */
export class Store {
  readonly #folder: string
  readonly #modelsFolder: string
  readonly #blobs: Blobs
  readonly #cache = new Map<string, { readonly stamp: string; readonly model: CreatedModel }>()
  /** Changes are made one after the other. */
  #changes: Promise<unknown> = Promise.resolve()

  /** @param folder Its own, below KT_HOME @param modelsFolder Where models are brought to */
  constructor(folder: string, modelsFolder: string) {
    this.#folder = folder
    this.#modelsFolder = modelsFolder
    this.#blobs = new Blobs(join(folder, "blobs"))
    this.#sweep()
  }

  created(): CreatedModel[] {
    return this.#manifestFiles().flatMap((file) => this.#read(file) ?? [])
  }

  /** What changes the models of a catalog. */
  with(catalog: Catalog): ModelStore {
    const pulls = new Pulls(this.#modelsFolder)
    return {
      hasBlob: (digest) => Promise.resolve(this.#blobs.has(digest)),
      putBlob: (digest, body) => this.#blobs.put(digest, body),
      checkNew: (model) => this.#check(model, catalog),
      create: (model, onProgress) => this.#change(() => this.#create(model, catalog, onProgress)),
      copy: (source, name) => this.#change(() => this.#copy(source, name, catalog)),
      isOurs: (model) => {
        const file = catalog.file(model)
        return file.isCreated || wasPulled(this.#modelsFolder, file.path)
      },
      remove: (model) => this.#change(() => this.#remove(model, catalog)),
      checkPull: (name) => void pulls.source(name, catalog),
      pull: (name, onProgress, signal) => pulls.pull(name, catalog, onProgress, signal),
    }
  }

  #change<T>(work: () => T | Promise<T>): Promise<T> {
    const done = this.#changes.then(work)
    this.#changes = done.catch(() => {})
    return done
  }

  #manifestFiles(): string[] {
    if (!existsSync(this.#folder)) return []
    return readdirSync(this.#folder)
      .filter((name) => name.endsWith(".json") && !name.startsWith("."))
      .map((name) => join(this.#folder, name))
  }

  #read(file: string): CreatedModel | undefined {
    const stat = statSync(file, { throwIfNoEntry: false })
    if (stat === undefined) return undefined
    const stamp = `${stat.mtimeMs} ${stat.size} ${stat.ino}`
    const known = this.#cache.get(file)
    if (known?.stamp === stamp) return known.model
    try {
      const text = readFileSync(file, "utf8")
      const { name, created, weights, settings } = manifestSchema.parse(JSON.parse(text))
      const path = "path" in weights ? weights.path : this.#ownPath(weights.own, weights.file)
      const digest = createHash("sha256").update(text).digest("hex")
      const model = { name, path, settings: settings as ModelSettings, created, digest }
      this.#cache.set(file, { stamp, model })
      return model
    } catch (error) {
      const reason = error instanceof Error ? error.message.split("\n")[0] : String(error)
      logger("models").warn(`${file}: no model of ours, left alone: ${reason}`)
      return undefined
    }
  }

  #ownPath(hash: string, file: string | null): string {
    const folder = join(this.#folder, "weights", hash)
    return file === null ? folder : join(folder, file)
  }

  #check(model: NewModel, catalog: Catalog): void {
    const { from, files, quantize, template } = model
    this.#newName(model.name, catalog)
    if ((from === undefined) === (files === undefined))
      throw invalid("from", "a model is made from another one, or from files: exactly one of them")
    for (const [file, digest] of Object.entries(files ?? {})) {
      if (!FILE.test(file) || file.includes(".."))
        throw invalid("files", `the file name ${JSON.stringify(file.slice(0, 80))} is not plain`)
      if (!this.#blobs.has(digest))
        throw new RequestError(400, `there is no blob ${digest}: send it to /api/blobs first`, {
          code: "blob_not_found",
          param: "files",
        })
    }
    if (template !== undefined) checkTemplate(template)
    if (quantize !== undefined) {
      try {
        fileType(quantize)
      } catch (error) {
        throw invalid("quantize", error instanceof ConfigError ? error.message : String(error))
      }
    }
  }

  /** RequestError 400, or 409 where the name is one of a file's. */
  #newName(given: string, catalog: Catalog): string {
    const name = given.replace(/:latest$/, "")
    if (!NAME.test(name) || name.includes("..") || name.toLowerCase() === "default")
      throw invalid(
        "model",
        `${JSON.stringify(given.slice(0, 80))} is no name for a model: letters, digits, "_", "-" and ".", and perhaps a tag behind ":"`,
      )
    const other = catalog.list().find((one) => plainName(one.name) === plainName(name))
    if (other !== undefined && !other.isCreated)
      throw new RequestError(409, `model "${other.name}" is a file of the models folder`, {
        code: "model_exists",
        param: "model",
      })
    return other?.name ?? name
  }

  async #create(model: NewModel, catalog: Catalog, onProgress: OnProgress): Promise<void> {
    this.#check(model, catalog)
    const name = this.#newName(model.name, catalog)
    onProgress({ status: "gathering model components" })
    const source = model.from === undefined ? undefined : catalog.file(model.from)
    let weights = source === undefined ? this.#fromFiles(model.files ?? {}) : reference(source.path)
    if (model.quantize !== undefined) {
      const path = "path" in weights ? weights.path : this.#ownPath(weights.own, weights.file)
      onProgress({ status: `quantizing to ${model.quantize}` })
      weights = await this.#quantized(path, model.quantize)
    }
    const { system, template, parameters, messages, license } = model
    const inherited = source?.settings
    const all = { ...inherited?.parameters, ...parameters }
    onProgress({ status: "writing manifest" })
    this.#write(name, weights, {
      parent: model.from?.name ?? "",
      ...optional("system", system ?? inherited?.system),
      ...optional("template", template ?? inherited?.template),
      ...(Object.keys(all).length === 0 ? {} : { parameters: all }),
      ...optional("messages", messages ?? inherited?.messages),
      ...optional("license", license ?? inherited?.license),
    })
    // what was replaced may have been the last to need its weights
    this.#collect()
  }

  #copy(source: KnownModel, given: string, catalog: Catalog): void {
    const name = this.#newName(given, catalog)
    const file = catalog.file(source)
    const settings = file.settings ?? { parent: file.name }
    const own = this.#manifests().find((manifest) => manifest.name === file.name)
    this.#write(name, file.isCreated && own ? own.weights : reference(file.path), settings)
  }

  #remove(model: KnownModel, catalog: Catalog): void {
    const file = catalog.file(model)
    if (file.isCreated) {
      rmSync(this.#manifestPath(file.name), { force: true })
      syncFolder(this.#folder)
      return this.#collect()
    }
    const users = this.created().filter(({ path }) => path === file.path)
    if (users.length > 0)
      throw new RequestError(
        409,
        `model "${file.name}" is what ${users.map(({ name }) => `"${name}"`).join(", ")} are made of: delete these first`,
        { code: "model_in_use", param: "model" },
      )
    if (!wasPulled(this.#modelsFolder, file.path))
      throw new RequestError(
        403,
        `model "${file.name}" was neither pulled nor created here, so its file is not deleted`,
        { code: "model_not_ours", param: "model" },
      )
    removePulled(this.#modelsFolder, file.path)
  }

  #manifestPath(name: string): string {
    return join(this.#folder, `${encodeURIComponent(name)}.json`)
  }

  #write(name: string, weights: Manifest["weights"], settings: ModelSettings): void {
    const created = Math.floor(Date.now() / 1000)
    const manifest = { version: 1, name, created, weights, settings }
    writeAtomically(this.#manifestPath(name), `${JSON.stringify(manifest, undefined, 2)}\n`)
  }

  #manifests(): Manifest[] {
    return this.#manifestFiles().flatMap((file) => {
      if (this.#read(file) === undefined) return []
      return [manifestSchema.parse(JSON.parse(readFileSync(file, "utf8")))]
    })
  }

  /** A folder of the files, made once for the same files. */
  #fromFiles(files: Readonly<Record<string, string>>): Manifest["weights"] {
    const entries = Object.entries(files).toSorted(([a], [b]) => (a < b ? -1 : 1))
    const own = createHash("sha256")
      .update(entries.map(([file, digest]) => `${digest} ${file}\n`).join(""))
      .digest("hex")
    this.#ownFolder(own, (folder) => {
      for (const [file, digest] of entries) this.#blobs.link(digest, join(folder, file))
      try {
        readMetadata(folder)
      } catch (error) {
        const reason = error instanceof Error ? error.message.replaceAll(`${folder}/`, "") : ""
        throw invalid("files", `they are no model: ${reason.replaceAll(folder, "files")}`)
      }
    })
    return { own, file: ggufOf(this.#ownPath(own, null)) }
  }

  async #quantized(path: string, type: string): Promise<Manifest["weights"]> {
    const { digest } = readMetadata(path)
    const where = locateWeights(path)
    const { name } = fileType(type)
    const own = createHash("sha256").update(`${digest} ${name}`).digest("hex")
    const folder = this.#ownPath(own, null)
    const file = `model.${name}.gguf`
    if (existsSync(folder)) return { own, file }
    const temporary = unfinished(folder)
    mkdirSync(temporary, { recursive: true })
    try {
      const out = join(temporary, file)
      const args =
        where.kind === "gguf"
          ? ["quantize", where.path, out, name]
          : ["convert", where.path, out, "--type", name]
      await runKt(args).catch((error: unknown) => {
        const reason = error instanceof KtError ? error.message : String(error)
        throw invalid("quantize", reason.replaceAll(where.path, "the model").replaceAll(out, file))
      })
      renameSync(temporary, folder)
      syncFolder(join(folder, ".."))
    } catch (error) {
      rmSync(temporary, { recursive: true, force: true })
      throw error
    }
    return { own, file }
  }

  #ownFolder(hash: string, fill: (folder: string) => void): void {
    const folder = this.#ownPath(hash, null)
    if (existsSync(folder)) return
    const temporary = unfinished(folder)
    mkdirSync(temporary, { recursive: true })
    try {
      fill(temporary)
      syncFolder(temporary)
      renameSync(temporary, folder)
      syncFolder(join(folder, ".."))
    } catch (error) {
      rmSync(temporary, { recursive: true, force: true })
      throw error
    }
  }

  /** Weights that no model is made of any more go. */
  #collect(): void {
    const folder = join(this.#folder, "weights")
    if (!existsSync(folder)) return
    const used = new Set(
      this.#manifests().flatMap(({ weights }) => ("own" in weights ? [weights.own] : [])),
    )
    for (const name of readdirSync(folder))
      if (/^[0-9a-f]{64}$/.test(name) && !used.has(name))
        rmSync(join(folder, name), { recursive: true, force: true })
  }

  /** Removes what a crash left behind. */
  #sweep(): void {
    this.#blobs.sweep()
    for (const folder of [this.#folder, join(this.#folder, "weights")]) {
      if (!existsSync(folder)) continue
      for (const name of readdirSync(folder))
        if (name.startsWith(UNFINISHED) && isOld(join(folder, name)))
          rmSync(join(folder, name), { recursive: true, force: true })
    }
  }
}

/** Another process may be making it now. */
function isOld(path: string): boolean {
  const { mtimeMs = 0 } = statSync(path, { throwIfNoEntry: false }) ?? {}
  return Date.now() - mtimeMs > 3600 * 1000
}

function reference(path: string): Manifest["weights"] {
  return { path }
}

function ggufOf(folder: string): string | null {
  const where = locateWeights(folder)
  return where.kind === "gguf" ? where.path.slice(folder.length + 1) : null
}

function optional<K extends string, T>(key: K, value: T | undefined): Partial<Record<K, T>> {
  return value === undefined ? {} : ({ [key]: value } as Record<K, T>)
}

function invalid(param: string, reason: string): RequestError {
  return new RequestError(400, `${param}: ${reason}`, { code: "invalid_value", param })
}

/** Ollama's own are Go templates, which nothing here reads. */
function checkTemplate(template: string): void {
  const isGo = /\{\{-?\s*(\.|\$|if |range |with |end|else|template |define |block )/.test(template)
  if (isGo && !template.includes("{%"))
    throw invalid(
      "template",
      "it is a Go template; templates here are Jinja, as in the model's own files (leave it out to use the model's)",
    )
  try {
    new ChatTemplate(template)
  } catch (error) {
    throw invalid("template", error instanceof Error ? error.message : String(error))
  }
}
