import { KtError } from "../errors.ts"
import type { CachedBlock } from "./prefix-cache.ts"

/**
 * Owns the numbers of state slots, for models whose layers keep a state per sequence. A slot is private to the sequence that
 * writes it, or it is a snapshot: the state after the tokens of a block of the prefix cache, read by sequences that begin
 * with that prefix and never written. A snapshot costs no copy, since a step reads one slot and writes another.
 *
 * There are as many slots as sequences may run, so that each has one, and some more for snapshots; of those the least
 * recently used is given up first.
 */
export class StateSlots {
  readonly slots: number
  readonly #free: number[] = []
  #fresh = 0
  /** By slot, in the order of use. */
  readonly #snapshots = new Map<number, CachedBlock>()
  /** Sequences whose next step reads a snapshot's slot. */
  readonly #readers: Int32Array
  #pinned = 0
  /** Told of a snapshot whose slot is about to be written by somebody else. */
  onEvict: ((block: CachedBlock) => void) | undefined

  constructor(slots: number) {
    if (slots < 1) throw new KtError(`a state cache of ${slots} slots`)
    this.slots = slots
    this.#readers = new Int32Array(slots)
  }

  get numSnapshots(): number {
    return this.#snapshots.size
  }

  /** Slots that take() can hand out, those of unread snapshots included. */
  get numAvailable(): number {
    return this.#free.length + (this.slots - this.#fresh) + this.#snapshots.size - this.#pinned
  }

  isRead(block: CachedBlock): boolean {
    return block.state >= 0 && (this.#readers[block.state] as number) > 0
  }

  /** A slot to write, its old contents forgotten; undefined when all are in use. */
  take(): number | undefined {
    const slot = this.#free.pop()
    if (slot !== undefined) return slot
    if (this.#fresh < this.slots) return this.#fresh++
    for (const [snapshot, block] of this.#snapshots) {
      if ((this.#readers[snapshot] as number) > 0) continue
      this.onEvict?.(block)
      this.#snapshots.delete(snapshot)
      block.state = -1
      return snapshot
    }
    return undefined
  }

  /** Gives back a private slot. */
  release(slot: number): void {
    this.#free.push(slot)
  }

  /** A private slot becomes the snapshot of a block that has none. */
  keep(block: CachedBlock, slot: number): void {
    if (block.state >= 0) throw new KtError(`a block has the snapshot ${block.state} already`)
    block.state = slot
    this.#snapshots.set(slot, block)
  }

  /** The slot of a block's snapshot, which stays as it is until unread(). */
  read(block: CachedBlock): number {
    const slot = block.state
    if (slot < 0) throw new KtError("a block without snapshot was read")
    this.#snapshots.delete(slot)
    this.#snapshots.set(slot, block)
    if ((this.#readers[slot] as number) === 0) this.#pinned++
    this.#readers[slot] = (this.#readers[slot] as number) + 1
    return slot
  }

  unread(slot: number): void {
    const readers = (this.#readers[slot] as number) - 1
    if (readers < 0) throw new KtError(`state slot ${slot} is read by nobody`)
    this.#readers[slot] = readers
    if (readers > 0) return
    if (this.#snapshots.has(slot)) this.#pinned--
    else this.#free.push(slot)
  }

  /** The snapshot of a block is not wanted any more; its slot is free once nobody reads it. */
  forget(block: CachedBlock): void {
    const slot = block.state
    if (slot < 0) return
    block.state = -1
    this.#snapshots.delete(slot)
    if ((this.#readers[slot] as number) === 0) this.#free.push(slot)
    else this.#pinned--
  }
}
