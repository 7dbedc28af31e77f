import { KtError } from "../../errors.ts"
import { type FileMetadata, outcomeOf } from "./metadata.ts"

export interface ReadHeader {
  readonly path: string
}

/** Errors lose their class on the way. */
export type HeaderRead =
  | { readonly path: string; readonly stamp: string; readonly metadata: FileMetadata }
  | {
      readonly path: string
      readonly stamp: string
      readonly message: string
      readonly hint: string | undefined
    }
  /** There is no such file any more. */
  | { readonly path: string; readonly stamp: undefined }

declare const self: Worker

/** Reads headers of model files: of a large vocabulary that takes some tens of milliseconds each. */
if (!Bun.isMainThread)
  self.onmessage = (event: MessageEvent): void => {
    const { path } = event.data as ReadHeader
    self.postMessage(read(path))
  }

function read(path: string): HeaderRead {
  try {
    const outcome = outcomeOf(path)
    if ("metadata" in outcome) return { path, ...outcome }
    const { stamp, error } = outcome
    const hint = error instanceof KtError ? error.hint : undefined
    return { path, stamp, message: error.message, hint }
  } catch {
    return { path, stamp: undefined }
  }
}
