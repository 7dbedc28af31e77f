import type { EngineClient, EngineInfo } from "../../worker/protocol.ts"
import type { ModelMetadata, SamplingDefaults, ServerTokenizer, TemplateMessage } from "../types.ts"
import type { ModelStore } from "./store.ts"

/** Sampling and more that a created model has of its own, under Ollama's names; checked when it is created. */
export type ModelParameters = Readonly<Record<string, unknown>>

/** What a created model adds to the one it is made from. */
export interface ModelSettings {
  /** The model it is made from, as it was named. */
  readonly parent: string
  readonly system?: string
  /** Jinja source in place of the weights' own. */
  readonly template?: string
  readonly parameters?: ModelParameters
  /** They come before each conversation. */
  readonly messages?: readonly TemplateMessage[]
  readonly license?: readonly string[]
}

/** A model that can be served, loaded or not. */
export interface KnownModel extends ModelMetadata {
  /** Models with the same key share one engine. */
  readonly key: string
  readonly settings?: ModelSettings | undefined
  /** Names that mean it too, in lower case. */
  readonly otherNames?: readonly string[] | undefined
  /** Why it cannot be loaded, where its header says so. */
  readonly problem?: string | undefined
}

export interface LoadedModel {
  readonly client: EngineClient
  readonly tokenizer: ServerTokenizer
  /** Of the weights, where they have one. */
  readonly chatTemplate?: string | undefined
  /** Sampling where a request says nothing, as its files have it; undefined takes the server's. */
  readonly defaults?: SamplingDefaults | undefined
  /** The context is shorter than the model's, for want of memory, and too short for much. */
  readonly isCut?: boolean
  /** The tokenizer with a template of a created model's own. */
  withTemplate(template: string): ServerTokenizer
}

/** What bounds a model's steps on this machine. */
export interface StepLimits {
  /** Bytes/s that all its threads read from memory. */
  readonly readBytes: number
  /** Seconds that a step takes at least: so many sequences, the tokens each computes, the positions before them. */
  leastSeconds(sequences: number, tokens: number, depth: number): number
}

export interface LoadHooks {
  readonly onProgress: (done: number, total: number) => void
}

/** The models of this machine, as the server sees them; it never sees a path. */
export interface ModelLibrary {
  /** Its models are loaded and cannot be loaded again. */
  readonly isFixed?: boolean
  /** What makes, brings and deletes models; without it there are those that there are. */
  readonly store?: ModelStore | undefined
  /** All that can be served, by name. */
  list(): readonly KnownModel[]
  /** Looks at files that were not looked at before, beside the event loop; default all. */
  prepare?(models?: readonly KnownModel[]): Promise<void>
  /** With all that its files say of it, which takes longer: chat template and metadata. */
  describe(model: KnownModel): KnownModel
  /** Looks at its files, before another model makes room for it. @throws KtError where they cannot be loaded */
  check(model: KnownModel): void
  /** @param memoryBytes What the engine may take at most. @throws KtError in words */
  load(model: KnownModel, memoryBytes: number, hooks: LoadHooks): Promise<LoadedModel>
  /** Measures for a second or two with all of the engine's threads. @throws KtError in words */
  limits?(model: KnownModel, info: EngineInfo, signal: AbortSignal): Promise<StepLimits>
}
