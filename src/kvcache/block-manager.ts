import { KtError } from "../errors.ts"
import {
  type BlockHash,
  type CachedBlock,
  hashBlock,
  isOnAnyTier,
  PrefixCache,
} from "./prefix-cache.ts"
import type { PrefixTiers } from "./prefix-tiers.ts"
import { Restore } from "./restore.ts"
import type { StateSlots } from "./state-slots.ts"

export interface BlockManagerOptions {
  readonly pages: number
  /** Tokens per page. */
  readonly pageSize: number
  /** Keep the contents of freed pages findable until their memory is needed. */
  readonly prefixCache: boolean
  readonly hash?: BlockHash | undefined
  /** For models whose layers keep a state per sequence. */
  readonly states?: StateSlots | undefined
  /** What keeps blocks whose pages are taken; needs the prefix cache. */
  readonly tiers?: PrefixTiers | undefined
}

/**
 * Owns the numbers of KV pages: who uses them (reference counts), which are free, and which freed ones still hold a
 * known prefix, oldest use first. A page with a block in the prefix cache is never handed out for writing before that
 * block has left it, for another tier where there is one.
 *
 * Free pages are taken in this order: used before and without known contents, never used (so that untouched memory
 * stays unmapped as long as possible), then the least recently used prefix.
 */
export class BlockManager {
  readonly pages: number
  readonly pageSize: number
  readonly prefixCache: PrefixCache | undefined
  readonly states: StateSlots | undefined
  readonly tiers: PrefixTiers | undefined
  /** Of the sequence that starts next; undefined where the device is the only tier. */
  readonly restore: Restore | undefined
  readonly #refs: Int32Array
  /** The block whose contents a page holds. */
  readonly #blockOf: (CachedBlock | undefined)[]
  readonly #free: number[] = []
  #fresh = 0
  /** Doubly linked list of unused pages with known contents; entry `pages` is its head. */
  readonly #next: Int32Array
  readonly #previous: Int32Array
  #idle = 0

  constructor(options: BlockManagerOptions) {
    const { pages, pageSize } = options
    if (pages < 1 || pageSize < 1)
      throw new KtError(`a KV cache of ${pages} pages of ${pageSize} tokens`)
    this.pages = pages
    this.pageSize = pageSize
    const { states } = options
    this.states = states
    const cache = options.prefixCache
      ? new PrefixCache(options.hash ?? hashBlock, (block) => this.#forget(block))
      : undefined
    this.prefixCache = cache
    this.tiers = cache && options.tiers
    this.restore = this.tiers && new Restore(this, this.tiers)
    this.#refs = new Int32Array(pages)
    this.#blockOf = new Array<CachedBlock | undefined>(pages).fill(undefined)
    this.#next = new Int32Array(pages + 1)
    this.#previous = new Int32Array(pages + 1)
    this.#next[pages] = pages
    this.#previous[pages] = pages
    const { tiers } = this
    if (tiers === undefined || cache === undefined) return
    tiers.attach(cache)
    if (states !== undefined) states.onEvict = (block) => tiers.demoteState(block)
  }

  /** Pages that allocate() can hand out, those with unused prefixes included. */
  get numFree(): number {
    return this.#free.length + (this.pages - this.#fresh) + this.#idle
  }

  /** Unused pages whose contents can still be found. */
  get numIdle(): number {
    return this.#idle
  }

  /** Sequences that use a page. */
  refCount(page: number): number {
    return this.#refs[page] as number
  }

  pagesFor(tokens: number): number {
    return Math.ceil(tokens / this.pageSize)
  }

  /**
   * The longest chain of known blocks that starts the sequence, `maxBlocks` at most. tokens [n] and ropeKeys [n] cover
   * at least maxBlocks pages. Nothing is reserved before acquire().
   */
  match(tokens: Int32Array, ropeKeys: Int32Array | undefined, maxBlocks: number): CachedBlock[] {
    const found: CachedBlock[] = []
    if (this.prefixCache === undefined) return found
    let parent: CachedBlock | undefined
    for (let i = 0; i < maxBlocks; i++) {
      const start = i * this.pageSize
      const end = start + this.pageSize
      const block = this.prefixCache.find(
        parent,
        tokens.subarray(start, end),
        ropeKeys?.subarray(start, end),
      )
      if (block === undefined) break
      found.push(block)
      parent = block
    }
    return found
  }

  /** Of these blocks, how many lie in pages that nobody uses (acquiring them takes from numFree). */
  countIdle(blocks: readonly CachedBlock[]): number {
    let idle = 0
    for (const { page } of blocks) if (page >= 0 && this.#refs[page] === 0) idle++
    return idle
  }

  /** Takes a share in a block's page: to be read, never to be written. */
  acquire(block: CachedBlock): number {
    const { page } = block
    if (page < 0) throw new KtError("a prefix block was used after its page was taken")
    const refs = this.#refs[page] as number
    if (refs === 0) this.#unlink(page)
    this.#refs[page] = refs + 1
    return page
  }

  /** A page to write, its old contents forgotten. @throws KtError when none is free */
  allocate(): number {
    let page = this.#free.pop()
    if (page === undefined && this.#fresh < this.pages) page = this.#fresh++
    if (page === undefined) {
      page = this.#next[this.pages] as number
      if (page === this.pages) throw new KtError(`all ${this.pages} KV pages are in use`)
      this.#unlink(page)
      this.#vacate(page)
    }
    this.#refs[page] = 1
    return page
  }

  /** A page in use for a block that another tier has; the caller fills it. */
  adopt(block: CachedBlock): number {
    const page = this.allocate()
    this.#blockOf[page] = block
    block.page = page
    return page
  }

  /** The block of a page that is about to be overwritten goes to the tier below, if there is one. */
  #vacate(page: number): void {
    const block = this.#blockOf[page] as CachedBlock
    this.#blockOf[page] = undefined
    this.tiers?.demote(block)
    if (block.state >= 0) this.tiers?.demoteState(block)
    this.states?.forget(block)
    block.page = -1
    if (!isOnAnyTier(block)) this.prefixCache?.remove(block)
  }

  /** The cache has removed a block; a page that somebody still uses becomes private. */
  #forget(block: CachedBlock): void {
    this.states?.forget(block)
    this.tiers?.forget(block)
    const { page } = block
    if (page < 0 || this.#blockOf[page] !== block) return
    this.#blockOf[page] = undefined
    if (this.#refs[page] !== 0) return
    this.#unlink(page)
    this.#free.push(page)
  }

  /** Forgets every known prefix on all tiers; running sequences go on. */
  clear(): void {
    this.restore?.end()
    this.tiers?.clearDisk()
    for (const block of this.prefixCache?.blocks() ?? []) this.prefixCache?.remove(block)
  }

  /** Gives up a share. Of a sequence, release the last page first: the end of a prefix is worth less than its start. */
  release(page: number): void {
    const refs = this.#refs[page] as number
    if (!(refs > 0)) throw new KtError(`KV page ${page} was freed twice`)
    this.#refs[page] = refs - 1
    if (refs > 1) return
    if (this.#blockOf[page] === undefined) this.#free.push(page)
    else this.#link(page)
  }

  /** See PrefixCache.insert; `page` is full, computed and in use. */
  publish(
    parent: CachedBlock | undefined,
    tokens: Int32Array,
    ropeKeys: Int32Array | undefined,
    page: number,
  ): CachedBlock | undefined {
    const block = this.prefixCache?.insert(parent, tokens, ropeKeys, page)
    if (block === undefined) return block
    if (block.page === page) this.#blockOf[page] = block
    this.tiers?.save(block)
    return block
  }

  /** Appends to the most recently used end. */
  #link(page: number): void {
    const head = this.pages
    const last = this.#previous[head] as number
    this.#next[last] = page
    this.#previous[page] = last
    this.#next[page] = head
    this.#previous[head] = page
    this.#idle++
  }

  #unlink(page: number): void {
    const before = this.#previous[page] as number
    const after = this.#next[page] as number
    this.#next[before] = after
    this.#previous[after] = before
    this.#idle--
  }
}
