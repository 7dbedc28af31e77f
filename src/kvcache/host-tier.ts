import type { Library } from "../native/library.ts"
import { Pieces, Slab } from "../native/memory.ts"
import type { CachedBlock } from "./prefix-cache.ts"

/**
 * Host memory for what left the device, in slots of one size within a fixed number of bytes. A slot holds the copy of a block
 * until the memory is needed: first go copies of what lies on the device too ("spare"), then the least recently used.
 * Address space is taken at once; the system gives memory to a slot when it is first written.
 */
export class HostTier implements Disposable {
  readonly slots: number
  readonly slotBytes: number
  readonly #slab: Slab
  readonly #pieces: Pieces
  readonly #onEvict: (block: CachedBlock) => void
  readonly #free: number[] = []
  #fresh = 0
  /** By slot, least recently used first. */
  readonly #spare = new Map<number, CachedBlock>()
  readonly #kept = new Map<number, CachedBlock>()
  /** Who reads or writes a slot: while anybody does it is not given up. */
  readonly #pins: Uint16Array
  /** Pinned slots whose block was forgotten: free once nobody uses them. */
  readonly #orphans = new Set<number>()

  /** @param onEvict Told that a block's copy is gone */
  constructor(
    library: Library,
    bytes: number,
    slotBytes: number,
    onEvict: (block: CachedBlock) => void,
  ) {
    this.slotBytes = slotBytes
    this.slots = Math.max(1, Math.floor(bytes / slotBytes))
    this.#slab = new Slab(library, this.slots * slotBytes, { hugePages: true })
    this.#pieces = new Pieces(this.#slab.address, slotBytes, this.slots)
    this.#onEvict = onEvict
    this.#pins = new Uint16Array(this.slots)
  }

  /** Slots with a block's copy. */
  get numUsed(): number {
    return this.#spare.size + this.#kept.size
  }

  get bytesUsed(): number {
    return this.numUsed * this.slotBytes
  }

  /** A slot for a block, in use until unpin(); undefined while all are in use. */
  take(block: CachedBlock): number | undefined {
    const slot = this.#vacant()
    if (slot === undefined) return undefined
    this.#kept.set(slot, block)
    this.#pins[slot] = 1
    return slot
  }

  #vacant(): number | undefined {
    const free = this.#free.pop()
    if (free !== undefined) return free
    if (this.#fresh < this.slots) return this.#fresh++
    for (const copies of [this.#spare, this.#kept]) {
      for (const [slot, block] of copies) {
        if ((this.#pins[slot] as number) > 0) continue
        copies.delete(slot)
        this.#onEvict(block)
        return slot
      }
    }
    return undefined
  }

  view(slot: number): Uint8Array {
    return this.#pieces.view(slot)
  }

  address(slot: number): number {
    return this.#pieces.addressOf(slot)
  }

  pin(slot: number): void {
    this.#pins[slot] = (this.#pins[slot] as number) + 1
  }

  unpin(slot: number): void {
    const pins = (this.#pins[slot] as number) - 1
    this.#pins[slot] = pins
    if (pins === 0 && this.#orphans.delete(slot)) this.#free.push(slot)
  }

  /** The slot was used; `spare` says that the device has its contents too. */
  use(slot: number, spare: boolean): void {
    const block = this.#spare.get(slot) ?? this.#kept.get(slot)
    if (block === undefined) return
    this.#spare.delete(slot)
    this.#kept.delete(slot)
    const copies = spare ? this.#spare : this.#kept
    copies.set(slot, block)
  }

  /** The block's copy is not wanted any more. */
  forget(slot: number): void {
    this.#spare.delete(slot)
    this.#kept.delete(slot)
    if ((this.#pins[slot] as number) > 0) this.#orphans.add(slot)
    else this.#free.push(slot)
  }

  [Symbol.dispose](): void {
    this.#slab[Symbol.dispose]()
  }
}
