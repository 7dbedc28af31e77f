import type { DTypeInfo } from "../tensor/dtype.ts"

/** Bytes that can be addressed natively: a read-only mapping of one file. */
export interface ByteSource {
  readonly path: string
  readonly size: number
  /** Native address of byte 0. */
  readonly address: number
  /** A view (never a copy of the file) of `length` bytes at `offset`; bounds are checked. */
  read(offset: number, length: number): Uint8Array
  /** Says that a range will be read soon, or that its resident pages can go; a hint. */
  advise?(offset: number, length: number, advice: "willneed" | "dontneed"): void
}

/** One stored tensor: where its bytes lie, in PyTorch order (outermost dimension first). */
export interface WeightEntry {
  readonly name: string
  readonly dtype: DTypeInfo
  readonly shape: readonly number[]
  readonly address: number
  readonly byteLength: number
  /** File that holds it, for messages. */
  readonly file: string
  /** Fills the tensor's bytes where they are made of other tensors' values: nothing lies at `address` (0) then. */
  readonly build?: (to: Uint8Array) => void
  /** Only the bytes are stored and `shape` counts the values: the model knows the shape. */
  readonly isFlat?: boolean
}

/** Named tensors of one checkpoint (one GGUF with its splits, or one folder of safetensors). */
export interface WeightSource {
  readonly kind: "gguf" | "safetensors"
  readonly path: string
  names(): Iterable<string>
  get(name: string): WeightEntry | undefined
  /** Bytes of all tensors. */
  readonly totalBytes: number
  close(): void
}

/**
 * How a reader opens a file: the native mapping, or memory in tests. Disposed of when the
 * checkpoint is closed.
 */
export type OpenSource = (path: string) => ByteSource & Partial<Disposable>

/**
 * A checkpoint whose tensors' bytes can also be viewed from TypeScript (small tensors, tools,
 * tests).
 */
export interface Checkpoint extends WeightSource {
  /** Every file of it, in order. */
  readonly files: readonly string[]
  /** A view of the stored bytes of one tensor; an unknown name is a FormatError. */
  bytes(name: string): Uint8Array
  /** Says that a tensor is not needed in memory for now; it stays readable. */
  drop(name: string): void
}
