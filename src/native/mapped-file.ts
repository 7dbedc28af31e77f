import { FormatError } from "../errors.ts"
import { KT_ADVISE_DONTNEED, KT_ADVISE_WILLNEED, layouts } from "./abi.generated.ts"
import type { Library } from "./library.ts"
import { requireLibrary } from "./library.ts"
import { nativeView, outSlot } from "./memory.ts"

/** A whole file, mapped read-only. Only windows of it are ever viewed from JavaScript. */
export class MappedFile {
  readonly path: string
  readonly size: number
  readonly address: number
  readonly #library: Library
  #open = true

  private constructor(path: string, address: number, size: number, library: Library) {
    this.path = path
    this.address = address
    this.size = size
    this.#library = library
  }

  /** @throws FormatError naming the file when it cannot be opened or is empty */
  static open(path: string, library: Library = requireLibrary("cpu")): MappedFile {
    const out = outSlot(layouts.kt_file_map.size / 8)
    const name = Buffer.from(`${path}\0`, "utf8")
    if (library.kt_file_map(name, out) !== 0) throw new FormatError(path, library.kt_last_error())
    return new MappedFile(path, Number(out[0]), Number(out[1]), library)
  }

  /** A view of `length` bytes at `offset`. */
  read(offset: number, length: number): Uint8Array {
    if (!this.#open) throw new FormatError(this.path, "read after close")
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new FormatError(
        this.path,
        `bytes ${offset}..${offset + length} lie outside the file's ${this.size}`,
      )
    }
    return length === 0
      ? new Uint8Array(0)
      : new Uint8Array(nativeView(this.address + offset, length))
  }

  /** Tells the kernel that a range will be read soon, or is not needed any more (its resident pages are dropped). */
  advise(offset: number, length: number, advice: "willneed" | "dontneed"): void {
    if (length <= 0) return
    this.#library.kt_file_advise(
      this.address + offset,
      length,
      advice === "willneed" ? KT_ADVISE_WILLNEED : KT_ADVISE_DONTNEED,
    )
  }

  [Symbol.dispose](): void {
    if (!this.#open) return
    this.#open = false
    this.#library.kt_file_unmap(this.address, this.size)
  }
}
