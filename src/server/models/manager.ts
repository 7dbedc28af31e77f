import { KtError, MemoryError, RequestError } from "../../errors.ts"
import { Admission, type Workload } from "../admission.ts"
import type { ModelMetrics, ServerMetrics } from "../metrics.ts"
import { tokenTable } from "../token-table.ts"
import type { ServerConfig } from "../types.ts"
import type { KnownModel, LoadedModel, ModelLibrary } from "./library.ts"
import { type Alias, checkName, findModel, MODEL_ALIAS, plainName } from "./names.ts"

export interface ModelsOptions {
  readonly library: ModelLibrary
  readonly aliases: readonly Alias[]
  /** Engines at once. */
  readonly maxModels: number
  /** What all engines together may plan with; Infinity leaves it to each engine to see what is free. */
  readonly memoryBytes: number
  /** Of models that a request brought in and said nothing about. */
  readonly keepAliveMs: number
  /** Longest wait of a request for its model. */
  readonly loadTimeoutMs: number
}

/** Where a model's lines of the log go. */
export type ModelLog = (level: "info" | "warning", message: string) => void

/** A model in use: it stays loaded until `release`, and as long as it has work. */
export interface Lease {
  readonly model: KnownModel
  readonly loaded: LoadedModel
  readonly admission: Admission
  readonly metrics: ModelMetrics
  /** How long this request waited for the model. */
  readonly loadMs: number
  release(): void
}

/** A loaded model, for those who look on. */
export interface LoadedEntry {
  readonly model: KnownModel
  readonly loaded: LoadedModel
  readonly active: number
  /** Date.now()'s ms when it will be unloaded; Infinity for never. */
  readonly expiresMs: number
}

interface Slot {
  readonly key: string
  /** By the name it was last used under. */
  model: KnownModel
  state: "loading" | "ready" | "leaving"
  loaded: LoadedModel | undefined
  /** What the files say, by the name that a request used. */
  readonly described: Map<string, KnownModel>
  admission: Admission
  /** Loading has ended, in whatever way. */
  readonly ready: Promise<void>
  readonly settle: (error?: unknown) => void
  /** Unloading has ended. */
  readonly gone: Promise<void>
  readonly vanish: () => void
  progress: { done: number; total: number }
  leases: number
  /** Requests that wait for `ready`. */
  waiting: number
  /** Those, and requests that wait for `gone`. */
  queued: number
  usedMs: number
  keepAliveMs: number
  timer: ReturnType<typeof setTimeout> | undefined
  /** Woken when nothing uses the model any more. */
  idle: (() => void)[]
}

/** What an engine keeps for the rest of the process beside weights and KV cache, as its memory plan has it. */
const RESERVE_BYTES = 192 * 2 ** 20
/** Names whose model is remembered while it is loaded, so that a request does not look through folders. */
const MAX_REMEMBERED = 256
const RETRY_SECONDS = 5

/**
 * The models of one server, an engine each. One is loaded when a request names it, first come first served; the least
 * recently used leaves where room is needed, after its running answers, however busy it is: requests that come for it
 * meanwhile wait for their turn to have it loaded again, so that no model starves another.
 */
export class ModelManager {
  readonly #options: ModelsOptions
  readonly #config: ServerConfig
  readonly #workload: Workload
  readonly #metrics: ServerMetrics
  readonly #log: ModelLog
  /** By the key of their weights. */
  readonly #slots = new Map<string, Slot>()
  readonly #remembered = new Map<string, KnownModel>()
  /** Loads are done one after the other, in the order in which they were asked for. */
  #loads: Promise<unknown> = Promise.resolve()
  /** The model that was given at the start, which stays. */
  #first: KnownModel | undefined

  constructor(
    options: ModelsOptions,
    server: {
      readonly config: ServerConfig
      readonly workload: Workload
      readonly metrics: ServerMetrics
      readonly log: ModelLog
    },
  ) {
    this.#options = options
    this.#config = server.config
    this.#workload = server.workload
    this.#metrics = server.metrics
    this.#log = server.log
  }

  get library(): ModelLibrary {
    return this.#options.library
  }

  /** What all models together may be, and take now. */
  get limits(): { maxModels: number; memoryBytes: number; usedBytes: number } {
    const { maxModels, memoryBytes } = this.#options
    return { maxModels, memoryBytes, usedBytes: this.#usedBytes() }
  }

  /** Whether requests mean it that name no model. */
  isDefault(model: KnownModel): boolean {
    return this.#first?.name === model.name
  }

  /** Takes a model that is loaded already and stays. */
  adopt(model: KnownModel, loaded: LoadedModel): void {
    const slot = this.#slot(this.library.describe(model))
    this.#first = slot.model
    slot.keepAliveMs = Number.POSITIVE_INFINITY
    this.#begin(slot, loaded)
  }

  /** Names have changed: models were made, copied, brought or deleted. */
  changed(): void {
    this.#remembered.clear()
    const models = this.library.list()
    // an engine goes on under another name of its weights
    for (const slot of this.#slots.values()) {
      slot.described.clear()
      if (models.some(({ name }) => name === slot.model.name)) continue
      slot.model = models.find(({ key }) => key === slot.key) ?? slot.model
    }
    if (!models.some(({ name }) => name === this.#first?.name)) this.#first = undefined
  }

  /** Models that are loaded, most recently used first. */
  loaded(): LoadedEntry[] {
    return [...this.#slots.values()]
      .toSorted((a, b) => b.usedMs - a.usedMs)
      .flatMap((slot) => {
        const { model, loaded, admission, keepAliveMs, usedMs } = slot
        if (loaded === undefined || slot.state !== "ready") return []
        const ago = performance.now() - usedMs
        const expiresMs = this.#isBusy(slot)
          ? Date.now() + keepAliveMs
          : Date.now() - ago + keepAliveMs
        return [{ model, loaded, active: admission.active, expiresMs }]
      })
  }

  /** What a model does now; progress while it is being loaded. */
  state(model: KnownModel): { state: "none" | Slot["state"]; done: number; total: number } {
    const slot = this.#slots.get(model.key)
    if (slot === undefined) return { state: "none", done: 0, total: 0 }
    return { state: slot.state, ...slot.progress }
  }

  /** The model that a name means; undefined and "default" mean the one of the start. RequestError 400, 404. */
  find(name: string | null | undefined, orDefault = false): KnownModel {
    if (name === undefined || name === null || name === "") return this.#default()
    const known = this.#remembered.get(name)
    if (known !== undefined) return known
    checkName(name)
    const models = this.library.list()
    const found = findModel(name, models, this.#options.aliases)
    if (found !== undefined) return this.#remember(name, found)
    if (orDefault || plainName(name) === MODEL_ALIAS) {
      const model = this.#default()
      // another one may be the default tomorrow where none was given at the start
      return model.key === this.#first?.key ? this.#remember(name, model) : model
    }
    throw new RequestError(404, `model "${name}" not found; ${whatThereIs(models)}`, {
      code: "model_not_found",
      param: "model",
    })
  }

  /**
   * Waits until a model is loaded, and keeps it so until the lease is released.
   *
   * @param keepAliveMs How long it stays after that; undefined leaves it as it is
   * @throws RequestError 503 where that takes too long, or the reason why it cannot be loaded
   */
  async use(model: KnownModel, keepAliveMs?: number, signal?: AbortSignal): Promise<Lease> {
    const started = performance.now()
    for (let waitedMs = 0; ; waitedMs = performance.now() - started) {
      const slot = this.#slots.get(model.key)
      if (slot?.state === "ready") return this.#lease(slot, model, keepAliveMs, waitedMs)
      if (slot?.state === "leaving") await this.#wait(slot, slot.gone, started, signal)
      else {
        const loading = slot ?? this.#load(model)
        // it counts as in use from now until the lease is taken, or nobody might ever have it
        loading.waiting++
        try {
          await this.#wait(loading, loading.ready, started, signal)
          if (loading.state === "ready")
            return this.#lease(loading, model, keepAliveMs, performance.now() - started)
        } finally {
          loading.waiting--
          this.#settled(loading)
        }
      }
    }
  }

  /** Unloads a model when its running answers have ended; false where it is not loaded. */
  async unload(model: KnownModel): Promise<boolean> {
    if (this.library.isFixed === true)
      throw new RequestError(400, "keep_alive 0: the model stays loaded while the server runs", {
        code: "unsupported_value",
        param: "keep_alive",
      })
    const slot = this.#slots.get(model.key)
    if (slot === undefined) return false
    await slot.ready.catch(() => {})
    if (this.#slots.get(model.key) === slot) await this.#unload(slot, "on request")
    return true
  }

  /** Ends all engines. */
  async close(): Promise<void> {
    await this.#loads
    await Promise.all(
      [...this.#slots.values()].map(async (slot) => {
        clearTimeout(slot.timer)
        await slot.loaded?.client.close()
      }),
    )
    this.#slots.clear()
  }

  #default(): KnownModel {
    if (this.#first !== undefined) return this.#first
    const [recent] = this.loaded()
    if (recent !== undefined) return recent.model
    const models = this.library.list()
    const [only] = models
    if (only !== undefined && models.length === 1) return only
    throw new RequestError(400, `model: no model is the default one; ${whatThereIs(models)}`, {
      code: "model_required",
      param: "model",
    })
  }

  #remember(name: string, model: KnownModel): KnownModel {
    if (this.#slots.get(model.key)?.state !== "ready") return model
    if (this.#remembered.size >= MAX_REMEMBERED) this.#remembered.clear()
    this.#remembered.set(name, model)
    return model
  }

  #slot(model: KnownModel): Slot {
    const ready = Promise.withResolvers<void>()
    const gone = Promise.withResolvers<void>()
    // whoever waits for it learns of a failure; it may be that nobody does any more
    ready.promise.catch(() => {})
    const slot: Slot = {
      key: model.key,
      model,
      state: "loading",
      loaded: undefined,
      described: new Map(),
      admission: new Admission(1, 0),
      ready: ready.promise,
      settle: (error) => (error === undefined ? ready.resolve() : ready.reject(error)),
      gone: gone.promise,
      vanish: gone.resolve,
      progress: { done: 0, total: model.sizeBytes },
      leases: 0,
      waiting: 0,
      queued: 0,
      usedMs: performance.now(),
      keepAliveMs: this.#options.keepAliveMs,
      timer: undefined,
      idle: [],
    }
    this.#slots.set(model.key, slot)
    return slot
  }

  #begin(slot: Slot, loaded: LoadedModel): void {
    slot.loaded = loaded
    slot.admission = new Admission(
      loaded.client.info.maxBatchSize,
      this.#config.maxQueue,
      this.#workload,
      () => this.#settled(slot),
    )
    // grammars need it later, and requests must not wait for it then
    if (loaded.client.info.pooling?.generates !== false)
      loaded.client.setVocabulary(tokenTable(loaded.tokenizer))
    void loaded.client.failed.then((error) => this.#lost(slot, error))
    slot.state = "ready"
    slot.settle()
    this.#settled(slot)
  }

  #lease(slot: Slot, model: KnownModel, keepAliveMs: number | undefined, loadMs: number): Lease {
    const { loaded, admission } = slot
    if (loaded === undefined) throw new RangeError(`${model.name} is ready without an engine`)
    const described = slot.described.getOrInsertComputed(model.name, () =>
      this.library.describe(model),
    )
    slot.leases++
    slot.model = described
    slot.usedMs = performance.now()
    if (keepAliveMs !== undefined && !this.#stays(slot)) slot.keepAliveMs = keepAliveMs
    clearTimeout(slot.timer)
    let released = false
    return {
      model: described,
      loaded,
      admission,
      metrics: this.#metrics.forModel(model.name),
      loadMs,
      release: () => {
        if (released) return
        released = true
        slot.leases--
        this.#settled(slot)
      },
    }
  }

  #stays(slot: Slot): boolean {
    return slot.key === this.#first?.key
  }

  #isBusy(slot: Slot): boolean {
    return slot.leases > 0 || slot.waiting > 0 || slot.admission.active > 0
  }

  /** When nothing uses a model, its time begins to run. */
  #settled(slot: Slot): void {
    if (this.#isBusy(slot)) return
    slot.usedMs = performance.now()
    for (const wake of slot.idle.splice(0)) wake()
    clearTimeout(slot.timer)
    if (slot.state !== "ready" || slot.keepAliveMs === Number.POSITIVE_INFINITY) return
    const unload = (): void => {
      if (!this.#isBusy(slot) && slot.state === "ready") void this.#unload(slot, "its time is over")
    }
    // timers hold 31 bits of ms
    slot.timer = setTimeout(unload, Math.min(slot.keepAliveMs, 2 ** 31 - 1))
    slot.timer.unref()
  }

  /** Waits for a model to be loaded, or to be gone so that it can be loaded again. */
  async #wait(
    slot: Slot,
    until: Promise<void>,
    startedMs: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { maxQueue } = this.#config
    if (slot.queued > maxQueue)
      throw new RequestError(503, `${maxQueue} requests wait for model "${slot.model.name}"`, {
        code: "model_loading",
        retryAfterSeconds: RETRY_SECONDS,
      })
    const { loadTimeoutMs } = this.#options
    const late = Promise.withResolvers<never>()
    const timer = setTimeout(
      () => {
        late.reject(
          new RequestError(
            503,
            `model "${slot.model.name}" is still being loaded after ${loadTimeoutMs / 1000} s`,
            { code: "model_loading", retryAfterSeconds: RETRY_SECONDS },
          ),
        )
      },
      Math.max(0, startedMs + loadTimeoutMs - performance.now()),
    )
    const end = (): void => {
      const cause: unknown = signal?.aborted === true ? signal.reason : this.#workload.signal.reason
      late.reject(cause)
    }
    signal?.addEventListener("abort", end, { once: true })
    this.#workload.signal.addEventListener("abort", end, { once: true })
    this.#workload.add(1, 0)
    slot.queued++
    try {
      if (signal?.aborted === true) throw signal.reason
      await Promise.race([until, late.promise])
    } finally {
      slot.queued--
      this.#workload.add(-1, 0)
      clearTimeout(timer)
      signal?.removeEventListener("abort", end)
      this.#workload.signal.removeEventListener("abort", end)
    }
  }

  #load(model: KnownModel): Slot {
    const slot = this.#slot(model)
    this.#loads = this.#loads.then(() => this.#loadNow(slot))
    return slot
  }

  async #loadNow(slot: Slot): Promise<void> {
    const { name } = slot.model
    const started = performance.now()
    try {
      const loaded = await this.#loadInto(slot)
      if (this.#stays(slot)) slot.keepAliveMs = Number.POSITIVE_INFINITY
      const seconds = ((performance.now() - started) / 1000).toFixed(2)
      this.#log("info", `${name}: loaded in ${seconds} s`)
      this.#metrics.loaded(name, "loaded")
      this.#begin(slot, loaded)
    } catch (error) {
      this.#slots.delete(slot.key)
      this.#metrics.loaded(name, "failed")
      const refusal = asLoadError(name, error)
      this.#log("warning", refusal.message)
      slot.settle(refusal)
      slot.vanish()
    }
  }

  /** Makes room as long as it is needed, and loads. */
  async #loadInto(slot: Slot): Promise<LoadedModel> {
    const { model } = slot
    await this.library.prepare?.([model])
    this.library.check(model)
    this.#log("info", `${model.name}: loading`)
    let reported = 0
    const onProgress = (done: number, total: number): void => {
      slot.progress = { done, total }
      if (total === 0 || done / total < reported + 0.25) return
      reported = done / total
      this.#log("info", `${model.name}: ${(reported * 100).toFixed(0)} % of the weights`)
    }
    for (;;) {
      await this.#makeRoom(slot)
      const victim = (): Slot | undefined => this.#victim(slot)
      const left = this.#options.memoryBytes - this.#usedBytes(slot)
      try {
        const loaded = await this.library.load(model, left, { onProgress })
        if (loaded.isCut !== true || victim() === undefined) return loaded
        await loaded.client.close()
      } catch (error) {
        if (!(error instanceof MemoryError) || victim() === undefined) throw error
      }
      await this.#unload(victim() as Slot, `${model.name} needs its memory`)
    }
  }

  async #makeRoom(slot: Slot): Promise<void> {
    const { maxModels, memoryBytes } = this.#options
    const need = slot.model.sizeBytes + RESERVE_BYTES
    for (;;) {
      const others = [...this.#slots.values()].filter(({ loaded }) => loaded !== undefined)
      const isFull = others.length >= maxModels
      if (!isFull && (others.length === 0 || this.#usedBytes(slot) + need <= memoryBytes)) return
      const victim = this.#victim(slot)
      if (victim === undefined) {
        // what does not fit beside those that stay, its own plan says in numbers
        if (!isFull) return
        throw new RequestError(
          503,
          `${maxModels} models are loaded and stay, and no more may be: --max-models`,
          { code: "no_room_for_model", retryAfterSeconds: RETRY_SECONDS },
        )
      }
      await this.#unload(victim, `${slot.model.name} needs its place`)
    }
  }

  #usedBytes(except?: Slot): number {
    let bytes = 0
    for (const slot of this.#slots.values()) {
      if (slot === except || slot.loaded === undefined) continue
      const { weightBytes, kvCacheBytes, cacheRamBytes, draftBytes } = slot.loaded.client.info
      bytes += weightBytes + kvCacheBytes + cacheRamBytes + draftBytes
    }
    return bytes
  }

  /** Who leaves: the one whose last use is longest ago, those without work first; one that leaves already before all. */
  #victim(except: Slot): Slot | undefined {
    const rank = (slot: Slot): number => (slot.state === "leaving" ? 0 : this.#isBusy(slot) ? 2 : 1)
    return [...this.#slots.values()]
      .filter((slot) => slot !== except && slot.loaded !== undefined && !this.#stays(slot))
      .toSorted((a, b) => rank(a) - rank(b) || a.usedMs - b.usedMs)[0]
  }

  async #unload(slot: Slot, why: string): Promise<void> {
    if (slot.state === "leaving") return slot.gone
    // those that waited for it have it first
    while (slot.waiting > 0) await new Promise<void>((resolve) => setImmediate(resolve))
    if (this.#slots.get(slot.key) !== slot) return slot.gone
    slot.state = "leaving"
    clearTimeout(slot.timer)
    this.#forget(slot.key)
    while (this.#isBusy(slot)) await new Promise<void>((resolve) => slot.idle.push(resolve))
    try {
      await slot.loaded?.client.close()
    } finally {
      // it may have ended by itself meanwhile, and been loaded again
      if (this.#slots.get(slot.key) === slot) this.#slots.delete(slot.key)
      slot.loaded = undefined
      slot.vanish()
      this.#log("info", `${slot.model.name}: unloaded, ${why}`)
    }
  }

  /** An engine that has ended takes what it was doing with it; the next request has the model loaded again. */
  #lost(slot: Slot, error: Error): void {
    const { name } = slot.model
    this.#log("warning", `${name}: ${error.message}`)
    // where there is no other way to it, requests are told so
    if (this.library.isFixed === true || this.#slots.get(slot.key) !== slot) return
    clearTimeout(slot.timer)
    this.#forget(slot.key)
    this.#slots.delete(slot.key)
    slot.state = "leaving"
    this.#metrics.loaded(name, "failed")
    // what is left of it
    const end = (): void => slot.vanish()
    void slot.loaded?.client.close().then(end, end)
    slot.loaded = undefined
  }

  #forget(key: string): void {
    for (const [name, model] of this.#remembered)
      if (model.key === key) this.#remembered.delete(name)
  }
}

function whatThereIs(models: readonly KnownModel[]): string {
  if (models.length === 0) return "this server has none"
  const names = models.slice(0, 8).map(({ name }) => `"${name}"`)
  return `this server has ${names.join(", ")}${models.length > 8 ? ", …" : ""}`
}

function asLoadError(name: string, error: unknown): RequestError {
  if (error instanceof RequestError) return error
  const isMemory = error instanceof MemoryError
  const reason = error instanceof Error ? error.message : String(error)
  return new RequestError(isMemory ? 503 : 500, `model "${name}" cannot be loaded: ${reason}`, {
    code: isMemory ? "not_enough_memory" : "model_load_failed",
    cause: error,
    ...(error instanceof KtError && error.hint !== undefined ? { hint: error.hint } : {}),
  })
}
