import { FormatError } from "../errors.ts"
import type { DTypeInfo } from "../tensor/dtype.ts"
import type { ByteSource, Checkpoint, WeightEntry } from "./source.ts"

/** A tensor as its file's header describes it; `offset` counts from the start of the file. */
export interface StoredTensor {
  readonly name: string
  readonly dtype: DTypeInfo
  readonly shape: readonly number[]
  readonly offset: number
  readonly byteLength: number
}

/**
 * The tensors of one or more open files under one name space: what GGUF and safetensors have in
 * common.
 */
export class TensorTable {
  readonly #entries = new Map<string, WeightEntry>()
  readonly #places = new Map<string, { source: ByteSource; offset: number }>()
  readonly #sources: (ByteSource & Partial<Disposable>)[] = []
  #totalBytes = 0

  get totalBytes(): number {
    return this.#totalBytes
  }

  get files(): string[] {
    return this.#sources.map((s) => s.path)
  }

  /** Takes ownership of an open file: `close` disposes of it. */
  own(source: ByteSource & Partial<Disposable>): void {
    this.#sources.push(source)
  }

  add(source: ByteSource, tensor: StoredTensor): void {
    const { name, dtype, shape, offset, byteLength } = tensor
    const known = this.#entries.get(name)
    if (known !== undefined) {
      const where = known.file === source.path ? "twice in this file" : `also in ${known.file}`
      throw new FormatError(source.path, `tensor "${name}": stored ${where}`)
    }
    const address = source.address + offset
    this.#entries.set(name, { name, dtype, shape, address, byteLength, file: source.path })
    this.#places.set(name, { source, offset })
    this.#totalBytes += byteLength
  }

  has(name: string): boolean {
    return this.#entries.has(name)
  }

  get size(): number {
    return this.#entries.size
  }

  names(): Iterable<string> {
    return this.#entries.keys()
  }

  get(name: string): WeightEntry | undefined {
    return this.#entries.get(name)
  }

  bytes(path: string, name: string): Uint8Array {
    const entry = this.#entries.get(name)
    const place = this.#places.get(name)
    if (entry === undefined || place === undefined)
      throw new FormatError(path, `has no tensor "${name}"`)
    return place.source.read(place.offset, entry.byteLength)
  }

  drop(name: string): void {
    const entry = this.#entries.get(name)
    const place = this.#places.get(name)
    if (entry !== undefined) place?.source.advise?.(place.offset, entry.byteLength, "dontneed")
  }

  close(): void {
    for (const source of this.#sources.splice(0)) source[Symbol.dispose]?.()
    this.#entries.clear()
    this.#places.clear()
  }

  /** This table as a checkpoint of the given kind, with what else the kind has to say. */
  checkpoint<K extends "gguf" | "safetensors", T extends object>(
    kind: K,
    path: string,
    more: T,
  ): Checkpoint & { readonly kind: K } & T {
    return {
      kind,
      path,
      files: this.files,
      totalBytes: this.totalBytes,
      names: () => this.names(),
      get: (name: string) => this.get(name),
      bytes: (name: string) => this.bytes(path, name),
      drop: (name: string) => this.drop(name),
      close: () => this.close(),
      ...more,
    }
  }
}

/** Tensors of one file must not share bytes; `tensors` is sorted in place by offset. */
export function checkNoOverlap(file: string, tensors: StoredTensor[]): void {
  tensors.sort((a, b) => a.offset - b.offset)
  for (let i = 1; i < tensors.length; i++) {
    const previous = tensors[i - 1] as StoredTensor
    const tensor = tensors[i] as StoredTensor
    const end = previous.offset + previous.byteLength
    if (tensor.offset < end) {
      throw new FormatError(
        file,
        `tensor "${tensor.name}": starts at byte ${tensor.offset}, inside tensor "${previous.name}" which ends at ${end}`,
      )
    }
  }
}
