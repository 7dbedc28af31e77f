import { type Pointer, toArrayBuffer } from "bun:ffi"

import { KtError, NativeError } from "../errors.ts"
import { KT_SLAB_HUGE_PAGES, KT_SLAB_PINNED } from "./abi.generated.ts"
import type { Address, Library } from "./library.ts"

/** One ArrayBuffer holds at most this much; larger memory is addressed, never viewed whole. */
const MAX_VIEW_BYTES = 2 ** 32

/** A view over native memory. It owns nothing: whoever owns the memory must outlive it. */
export function nativeView(address: Address, bytes: number): ArrayBuffer {
  if (bytes > MAX_VIEW_BYTES)
    throw new KtError(`a view of ${bytes} bytes exceeds ${MAX_VIEW_BYTES}`)
  return toArrayBuffer(address as Pointer, 0, bytes)
}

/** Reads a field that a native function wrote into a slot made with {@link outSlot}. */
export function outSlot(words = 1): BigInt64Array {
  // an explicit ArrayBuffer: views over small implicit ones may move under a compiled caller
  return new BigInt64Array(new ArrayBuffer(words * 8))
}

/** Zeroed native memory with one owner. Views made from it are dead after dispose(). */
export class Slab {
  readonly address: Address
  readonly bytes: number
  readonly #library: Library
  #alive = true

  /** `pinned`: the library's devices read and write the memory at the same address. */
  constructor(
    library: Library,
    bytes: number,
    options: { hugePages?: boolean; pinned?: boolean } = {},
  ) {
    const out = outSlot()
    const flags =
      (options.hugePages ? KT_SLAB_HUGE_PAGES : 0) + (options.pinned ? KT_SLAB_PINNED : 0)
    const status = library.kt_slab_create(bytes, flags, out)
    if (status !== 0) throw new NativeError("kt_slab_create", status, library.kt_last_error())
    this.address = Number(out[0])
    this.bytes = bytes
    this.#library = library
  }

  /** A view of part of the slab. */
  view(offset = 0, bytes = this.bytes - offset): ArrayBuffer {
    if (!this.#alive) throw new KtError("slab used after dispose")
    if (offset < 0 || bytes < 0 || offset + bytes > this.bytes)
      throw new KtError(`view ${offset}+${bytes} is outside a slab of ${this.bytes} bytes`)
    return nativeView(this.address + offset, bytes)
  }

  [Symbol.dispose](): void {
    if (!this.#alive) return
    this.#alive = false
    this.#library.kt_slab_destroy(this.address, this.bytes)
  }
}

const PAGE_BYTES = 4096

/** Whole pages of memory of somebody else's, a mapped file's for example, page-locked for a library's devices until dispose. */
export class PinnedPages implements Disposable {
  readonly #library: Library
  readonly #address: Address
  #alive = true

  /** @throws NativeError that says why they cannot be page-locked */
  constructor(library: Library, address: Address, bytes: number) {
    const first = address - (address % PAGE_BYTES)
    const length = Math.ceil((address + bytes - first) / PAGE_BYTES) * PAGE_BYTES
    const slot = outSlot()
    slot[0] = BigInt(first)
    const status = library.kt_slab_create(length, KT_SLAB_PINNED, slot)
    if (status !== 0) throw new NativeError("kt_slab_create", status, library.kt_last_error())
    if (Number(slot[0]) !== first) throw new KtError(`${library.path} page-locks no given memory`)
    this.#library = library
    this.#address = first
  }

  [Symbol.dispose](): void {
    if (!this.#alive) return
    this.#alive = false
    this.#library.kt_slab_destroy(this.#address, 0)
  }
}

/** Memory that tensors lie in, with one owner. */
export interface Memory extends Disposable {
  readonly address: Address
  readonly bytes: number
}

/** Zeroed memory of a context's device, which the host does not see. */
export class DeviceBuffer implements Memory {
  readonly address: Address
  readonly bytes: number
  readonly #library: Library
  readonly #ctx: () => Address
  #alive = true

  /** @throws NativeError that says what was asked for and what is free */
  constructor(library: Library, ctx: () => Address, bytes: number) {
    const out = outSlot()
    const status = library.kt_buffer_create(ctx(), bytes, out)
    if (status !== 0) throw new NativeError("kt_buffer_create", status, library.kt_last_error())
    this.address = Number(out[0])
    this.bytes = bytes
    this.#library = library
    this.#ctx = ctx
  }

  [Symbol.dispose](): void {
    if (!this.#alive) return
    this.#alive = false
    this.#library.kt_buffer_destroy(this.#ctx(), this.address, this.bytes)
  }
}

/** A point in an arena's step: what is allocated after it can be taken back at once. */
export interface ArenaMark {
  readonly slab: number
  readonly used: number
}

/** Allocations that live until the next reset: bump allocation in one slab that grows between steps, never within one. */
export class Arena {
  readonly #allocate: (bytes: number) => Memory
  readonly #align: number
  #slabs: Memory[]
  #index = 0
  #current: Memory
  #used = 0
  /** Counts resets, so that a tensor of an earlier step can be told. */
  generation = 0
  /** Counts how often memory was given back: addresses of a step hold for the same step as long as it stays. */
  moves = 0

  constructor(allocate: (bytes: number) => Memory, bytes: number, align = 64) {
    this.#allocate = allocate
    this.#align = align
    this.#current = allocate(bytes)
    this.#slabs = [this.#current]
  }

  /** Address of `bytes` bytes (not zeroed). */
  alloc(bytes: number): Address {
    const start = Math.ceil(this.#used / this.#align) * this.#align
    if (start + bytes > this.#current.bytes) return this.#next(bytes)
    this.#used = start + bytes
    return this.#current.address + start
  }

  /** Goes on in the next slab that is large enough: one that a release() left behind, or a new one. */
  #next(bytes: number): Address {
    do {
      this.#index++
      if (this.#index === this.#slabs.length) {
        const held = this.#slabs.reduce((sum, slab) => sum + slab.bytes, 0)
        this.#slabs.push(this.#allocate(Math.max(bytes, held)))
      }
      this.#current = this.#slabs[this.#index] as Memory
    } while (this.#current.bytes < bytes)
    this.#used = bytes
    return this.#current.address
  }

  mark(): ArenaMark {
    return { slab: this.#index, used: this.#used }
  }

  /**
   * Takes back everything allocated since the mark: a layer's temporaries, once its result lies in memory from before.
   * So that activations of one layer, not of all, decide how much memory a step needs.
   */
  release(mark: ArenaMark): void {
    this.#index = mark.slab
    this.#current = this.#slabs[mark.slab] as Memory
    this.#used = mark.used
  }

  /** Takes everything back; all memory stays where it is. */
  rewind(): void {
    this.release({ slab: 0, used: 0 })
  }

  /** Frees everything at once. After a step that outgrew the slab, one slab of the whole size replaces the pieces. */
  reset(): void {
    this.generation++
    this.#used = 0
    this.#index = 0
    if (this.#slabs.length > 1) {
      const total = this.#slabs.reduce((sum, slab) => sum + slab.bytes, 0)
      for (const slab of this.#slabs) slab[Symbol.dispose]()
      this.#slabs = [this.#allocate(total)]
      this.moves++
    }
    this.#current = this.#slabs[0] as Memory
  }

  [Symbol.dispose](): void {
    for (const slab of this.#slabs) slab[Symbol.dispose]()
    this.#slabs = []
  }
}

/** Bytes of one view over a part of larger memory. */
const WINDOW_BYTES = 2 ** 30

/** Equal pieces of native memory, as views; made in windows, since one view does not reach over large memory. */
export class Pieces {
  readonly address: Address
  /** Bytes of a piece, and of the step to the next. */
  readonly bytes: number
  readonly count: number
  readonly #perWindow: number
  readonly #windows: (ArrayBuffer | undefined)[] = []

  constructor(address: Address, bytes: number, count: number) {
    this.address = address
    this.bytes = bytes
    this.count = count
    this.#perWindow = Math.max(1, Math.floor(WINDOW_BYTES / bytes))
  }

  addressOf(index: number): Address {
    return this.address + index * this.bytes
  }

  /** Piece `index`; whoever owns the memory must outlive the view. */
  view(index: number): Uint8Array {
    if (!(index >= 0 && index < this.count))
      throw new KtError(`piece ${index} of ${this.count} in native memory`)
    const window = Math.floor(index / this.#perWindow)
    const first = window * this.#perWindow
    const pieces = Math.min(this.#perWindow, this.count - first)
    const buffer = (this.#windows[window] ??= nativeView(
      this.addressOf(first),
      pieces * this.bytes,
    ))
    return new Uint8Array(buffer, (index - first) * this.bytes, this.bytes)
  }
}
