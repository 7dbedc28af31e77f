/**
 * Which tokens' keys and values are known, and where: full pages as a chain of blocks, each named by its parent and its own
 * tokens. A key and value depend on every token before them, so a block may be shared only where the whole chain is equal.
 */

/** Where a block's record lies on disk. */
export interface DiskPlace {
  /** The store's number of the segment. */
  readonly segment: number
  readonly offset: number
  /** Of the whole record. */
  readonly bytes: number
}

/** K and V of one full page of known tokens; it can be found as long as one of the tiers has them. */
export interface CachedBlock {
  /** The device's page, or -1. */
  page: number
  /** Slot of the state after its tokens (see StateSlots), or -1 where the device has none. */
  state: number
  /** Slots in host memory, or -1. */
  host: number
  hostState: number
  disk: DiskPlace | undefined
  diskState: DiskPlace | undefined
  /** No tier has it: it cannot be found any more. */
  isGone: boolean
  /** Its name on disk, once it was asked for. */
  digest: string | undefined
  readonly hash: number
  /** The block before it; undefined for the first of a sequence. */
  readonly parent: CachedBlock | undefined
  /** [pageSize] */
  readonly tokens: Int32Array
  /** [pageSize] the rope choice per token; undefined where the model's rope does not depend on length. */
  readonly ropeKeys: Int32Array | undefined
}

/** Mixes a block into its parent's hash; 53 bits, so that it stays a plain number. */
export type BlockHash = (
  parent: number,
  tokens: Int32Array,
  ropeKeys: Int32Array | undefined,
) => number

/** Two independent 32-bit multiply-xor hashes (murmur3's mixing steps), joined to 53 bits. */
export function hashBlock(
  parent: number,
  tokens: Int32Array,
  ropeKeys: Int32Array | undefined,
): number {
  let a = ((parent % 4294967296) ^ 0x9e3779b9) >>> 0
  let b = (Math.floor(parent / 4294967296) ^ 0x85ebca6b) >>> 0
  for (let i = 0; i < tokens.length; i++) {
    const value = tokens[i] as number
    a = mix(a, value)
    b = mix(b, value ^ 0x5bd1e995)
  }
  if (ropeKeys !== undefined) {
    for (let i = 0; i < ropeKeys.length; i++) {
      const value = ropeKeys[i] as number
      a = mix(a, value ^ 0x2545f491)
      b = mix(b, value)
    }
  }
  return (finish(b) % 2097152) * 4294967296 + finish(a)
}

function mix(state: number, value: number): number {
  let k = Math.imul(value, 0xcc9e2d51)
  k = (k << 15) | (k >>> 17)
  const s = state ^ Math.imul(k, 0x1b873593)
  return (Math.imul((s << 13) | (s >>> 19), 5) + 0xe6546b64) >>> 0
}

function finish(state: number): number {
  let h = state
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

export function isOnAnyTier(block: CachedBlock): boolean {
  return block.page >= 0 || block.host >= 0 || block.disk !== undefined
}

export function hasAnyState(block: CachedBlock): boolean {
  return block.state >= 0 || block.hostState >= 0 || block.diskState !== undefined
}

/** Blocks by hash, at most one a hash; a hit is a hit only after comparing parent, tokens and rope choice. */
export class PrefixCache {
  readonly #blocks = new Map<number, CachedBlock>()
  readonly #hash: BlockHash
  readonly #onRemove: ((block: CachedBlock) => void) | undefined

  constructor(hash: BlockHash = hashBlock, onRemove?: (block: CachedBlock) => void) {
    this.#hash = hash
    this.#onRemove = onRemove
  }

  get size(): number {
    return this.#blocks.size
  }

  /** The block that continues `parent` with these tokens, if a tier still has it. */
  find(
    parent: CachedBlock | undefined,
    tokens: Int32Array,
    ropeKeys: Int32Array | undefined,
  ): CachedBlock | undefined {
    const block = this.#blocks.get(this.#hash(parent?.hash ?? 0, tokens, ropeKeys))
    return block !== undefined && matches(block, parent, tokens, ropeKeys) ? block : undefined
  }

  /**
   * Makes `page` findable. Returns the block that now stands for these tokens: a new one, or the equal one that was there
   * before (the page stays private then, unless that block was on no page). Undefined when the hash belongs to other tokens
   * or the parent is gone: nothing can be chained below. `page` -1 is for blocks of the other tiers.
   */
  insert(
    parent: CachedBlock | undefined,
    tokens: Int32Array,
    ropeKeys: Int32Array | undefined,
    page: number,
  ): CachedBlock | undefined {
    if (parent?.isGone) return undefined
    const hash = this.#hash(parent?.hash ?? 0, tokens, ropeKeys)
    const found = this.#blocks.get(hash)
    if (found !== undefined && matches(found, parent, tokens, ropeKeys)) {
      if (found.page < 0) found.page = page
      return found
    }
    if (found !== undefined) {
      // a block whose parent is gone can never be found: it must not keep its chain from being built again
      if (!found.parent?.isGone) return undefined
      this.remove(found)
    }
    const block: CachedBlock = {
      page,
      state: -1,
      host: -1,
      hostState: -1,
      disk: undefined,
      diskState: undefined,
      isGone: false,
      digest: undefined,
      hash,
      parent,
      tokens: tokens.slice(),
      ropeKeys: ropeKeys?.slice(),
    }
    this.#blocks.set(hash, block)
    return block
  }

  /** Forgets a block: no tier has it any more, or none is to. */
  remove(block: CachedBlock): void {
    if (this.#blocks.get(block.hash) === block) this.#blocks.delete(block.hash)
    block.isGone = true
    this.#onRemove?.(block)
    block.page = -1
  }

  /** All blocks, in the order in which they became known. */
  blocks(): CachedBlock[] {
    return [...this.#blocks.values()]
  }
}

function matches(
  block: CachedBlock,
  parent: CachedBlock | undefined,
  tokens: Int32Array,
  ropeKeys: Int32Array | undefined,
): boolean {
  if (block.parent !== parent || !equal(block.tokens, tokens)) return false
  if (ropeKeys === undefined || block.ropeKeys === undefined) return ropeKeys === block.ropeKeys
  return equal(block.ropeKeys, ropeKeys)
}

function equal(a: Int32Array, b: Int32Array): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}
