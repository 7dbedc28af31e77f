import type { BlockManager } from "./block-manager.ts"
import type { CachedBlock } from "./prefix-cache.ts"
import type { PrefixTiers } from "./prefix-tiers.ts"
import type { StateSlots } from "./state-slots.ts"

/**
 * Brings the known prefix of the sequence that starts next back to the device, over as many steps as the disk takes: others
 * go on meanwhile. What has come is held until the sequence takes it.
 */
export class Restore {
  readonly #blocks: BlockManager
  readonly #tiers: PrefixTiers
  #owner: object | undefined
  readonly #held = new Set<CachedBlock>()
  readonly #pinned = new Set<CachedBlock>()

  constructor(blocks: BlockManager, tiers: PrefixTiers) {
    this.#blocks = blocks
    this.#tiers = tiers
  }

  get isActive(): boolean {
    return this.#owner !== undefined
  }

  isOf(owner: object): boolean {
    return this.#owner === owner
  }

  /**
   * One more part of the way. True when all of `hits` are on the device and held there, and the state of the last, where
   * `states` are kept. False: some are on their way, or failed and will not be found again.
   *
   * @param maxBlocks That are copied at once, so that a step of others is not late
   */
  bring(
    owner: object,
    hits: readonly CachedBlock[],
    states: StateSlots | undefined,
    maxBlocks: number,
  ): boolean {
    const tiers = this.#tiers
    if (this.#owner !== owner) this.end()
    this.#owner = owner
    tiers.poll()
    this.#forgetOthers(new Set(hits))
    for (const block of hits) {
      if (block.page >= 0) this.#hold(block)
      else if (block.host >= 0 && !this.#pinned.has(block)) {
        tiers.pin(block)
        this.#pinned.add(block)
      }
    }
    let copies = 0
    const missing: CachedBlock[] = []
    for (const block of hits) {
      if (block.page >= 0) continue
      if (!tiers.isLoaded(block) || copies >= maxBlocks || this.#blocks.numFree === 0) {
        missing.push(block)
        continue
      }
      tiers.load(block, this.#blocks.adopt(block))
      this.#held.add(block)
      this.#unpin(block)
      copies++
    }
    const last = hits.at(-1)
    const lacksState = states !== undefined && last !== undefined && last.state < 0
    if (missing.length > 0 || lacksState) tiers.request(missing, lacksState ? [last] : [])
    if (missing.length > 0) return false
    return !lacksState || this.#bringState(last, states)
  }

  #bringState(block: CachedBlock, states: StateSlots): boolean {
    if (!this.#tiers.isStateLoaded(block)) return false
    this.#tiers.pinState(block)
    const slot = states.take()
    if (slot !== undefined) {
      this.#tiers.loadState(block, slot)
      states.keep(block, slot)
    }
    this.#tiers.unpinState(block)
    return slot !== undefined
  }

  /** The sequence has taken what it needs, or will not come: nothing is held any more. */
  end(): void {
    for (const block of [...this.#held].reverse()) this.#blocks.release(block.page)
    this.#held.clear()
    for (const block of this.#pinned) this.#tiers.unpin(block)
    this.#pinned.clear()
    this.#owner = undefined
  }

  #hold(block: CachedBlock): void {
    if (this.#held.has(block)) return
    this.#blocks.acquire(block)
    this.#held.add(block)
    this.#unpin(block)
  }

  #unpin(block: CachedBlock): void {
    if (this.#pinned.delete(block)) this.#tiers.unpin(block)
  }

  #forgetOthers(wanted: ReadonlySet<CachedBlock>): void {
    for (const block of this.#pinned) if (!wanted.has(block)) this.#unpin(block)
    for (const block of this.#held) {
      if (wanted.has(block)) continue
      this.#held.delete(block)
      this.#blocks.release(block.page)
    }
  }
}
