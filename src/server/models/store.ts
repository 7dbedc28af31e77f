import type { TemplateMessage } from "../types.ts"
import type { KnownModel, ModelParameters } from "./library.ts"

/** A line about work that takes its time, as Ollama's clients show it. */
export interface Progress {
  readonly status: string
  readonly digest?: string
  readonly total?: number
  readonly completed?: number
}

export type OnProgress = (progress: Progress) => void

/** What a created model is made of: a model there is, or files that were sent as blobs. */
export interface NewModel {
  readonly name: string
  readonly from?: KnownModel | undefined
  /** Digests ("sha256:…") by file name. */
  readonly files?: Readonly<Record<string, string>> | undefined
  readonly system?: string | undefined
  readonly template?: string | undefined
  readonly parameters?: ModelParameters | undefined
  readonly messages?: readonly TemplateMessage[] | undefined
  readonly license?: readonly string[] | undefined
  /** A file type of `kt quantize`. */
  readonly quantize?: string | undefined
}

/**
 * What makes, brings and deletes models, in folders of its own; names never become paths. All of it throws
 * RequestErrors, or KtErrors whose cause is this machine.
 */
export interface ModelStore {
  hasBlob(digest: string): Promise<boolean>
  /** Keeps a body under its digest, once it is whole and has that digest. */
  putBlob(digest: string, body: ReadableStream<Uint8Array> | null): Promise<void>
  /** @throws RequestError before anything is done, where the model cannot be made so */
  checkNew(model: NewModel): void
  create(model: NewModel, onProgress: OnProgress): Promise<void>
  copy(source: KnownModel, name: string): Promise<void>
  /** Whether `remove` would take it. */
  isOurs(model: KnownModel): boolean
  remove(model: KnownModel): Promise<void>
  /** @throws RequestError where the name is of another registry than the hub */
  checkPull(name: string): void
  pull(name: string, onProgress: OnProgress, signal: AbortSignal): Promise<void>
}
