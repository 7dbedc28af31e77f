import { KtError } from "../errors.ts"
import type { BlockManager } from "../kvcache/block-manager.ts"
import {
  digestOf,
  headerBytes,
  isSound,
  KV,
  readHeader,
  recordBytes,
  sealRecord,
  writeHeader,
} from "../kvcache/block-record.ts"
import type { CachedBlock } from "../kvcache/prefix-cache.ts"
import type { PieceMemory } from "../kvcache/prefix-tiers.ts"
import type { PrefixAction, PrefixAnswer } from "../worker/protocol.ts"
import type { RopeKey } from "./sequence.ts"

/** Bytes of one answer: what is copied between two steps, in some milliseconds. */
const MOST_BYTES = 16 * 2 ** 20

export interface SavedPrefixesOptions {
  readonly blocks: BlockManager
  readonly memory: PieceMemory
  /** Names the model and how it is computed; 32 hexadecimal digits. */
  readonly fingerprint: () => string
  readonly ropeKey: RopeKey | undefined
}

/**
 * Known prefixes as records that somebody keeps: those of a sequence's full pages, first to last, and back again. A
 * record says whose tokens it holds and is covered by checksums; one of another model or another place is refused.
 */
export class SavedPrefixes {
  readonly #options: SavedPrefixesOptions
  readonly #headerBytes: number
  readonly #recordBytes: number
  #fingerprint: string | undefined
  /** Where the next piece of an import goes on. */
  #parent: CachedBlock | undefined
  #digest = ""
  #index = 0
  #made = 0

  constructor(options: SavedPrefixesOptions) {
    this.#options = options
    this.#headerBytes = headerBytes(options.blocks.pageSize)
    this.#recordBytes = recordBytes(this.#headerBytes, options.memory.pieceBytes)
  }

  /** @throws KtError where nothing can be kept */
  do(action: PrefixAction): PrefixAnswer {
    const { blocks } = this.#options
    if (blocks.prefixCache === undefined) throw new KtError("the prefix cache is off")
    if (blocks.states !== undefined)
      throw new KtError("this model keeps a state per sequence, which a slot's file does not hold")
    switch (action.type) {
      case "export":
        return this.#export(action)
      case "import":
        return this.#import(action.records, action.isFirst)
      case "forget":
        return this.#forget(action)
    }
  }

  #answer(blocks: number, more: Partial<PrefixAnswer> = {}): PrefixAnswer {
    const { pageSize } = this.#options.blocks
    return { blocks, pageSize, recordBytes: this.#recordBytes, ...more }
  }

  #known({ ids, promptLength }: { ids: Int32Array; promptLength: number }): CachedBlock[] {
    const { blocks, ropeKey } = this.#options
    const keys = ropeKey && ids.map((_, i) => ropeKey(i < promptLength ? promptLength : i + 1))
    return blocks.match(ids, keys, Math.floor(ids.length / blocks.pageSize))
  }

  get #root(): string {
    return (this.#fingerprint ??= this.#options.fingerprint())
  }

  #export(action: PrefixAction & { type: "export" }): PrefixAnswer {
    const known = this.#known(action)
    const most = Math.max(1, Math.floor(MOST_BYTES / this.#recordBytes))
    const count = Math.max(0, Math.min(most, known.length - action.from))
    const records = new Uint8Array(count * this.#recordBytes)
    let parent = this.#root
    let done = 0
    for (const [i, block] of known.entries()) {
      const { tokens, ropeKeys } = block
      const digest = digestOf(parent, tokens, ropeKeys)
      if (i >= action.from && done < count) {
        const start = done * this.#recordBytes
        const record = records.subarray(start, start + this.#recordBytes)
        // what lies on the disk alone is not fetched
        if (!this.#copy(block, record)) break
        const { pieceBytes: payloadBytes } = this.#options.memory
        const header = { kind: KV, headerBytes: this.#headerBytes, payloadBytes } as const
        writeHeader(record, { ...header, digest, parent, tokens, ropeKeys })
        sealRecord(record, i * this.#recordBytes)
        done++
      }
      parent = digest
    }
    const isLast = done < count || action.from + done >= known.length
    return this.#answer(done, { records: records.slice(0, done * this.#recordBytes), isLast })
  }

  #copy(block: CachedBlock, record: Uint8Array): boolean {
    const { memory, blocks } = this.#options
    const to = record.subarray(this.#headerBytes, this.#headerBytes + memory.pieceBytes)
    if (block.page >= 0) {
      memory.copyOut(block.page, to)
      return true
    }
    return blocks.tiers?.copyOf(block, to) === true
  }

  #import(records: Uint8Array, isFirst: boolean): PrefixAnswer {
    if (isFirst) {
      this.#parent = undefined
      this.#digest = this.#root
      this.#index = 0
      this.#made = 0
    }
    const tokens: number[] = []
    const size = this.#recordBytes
    for (let start = 0; start < records.length; start += size) {
      const record = records.subarray(start, start + size)
      const header = readHeader(record, this.#headerBytes)
      if (header === undefined)
        return this.#answer(start / size, { problem: "it is damaged, or of other settings" })
      if (header.parent !== this.#digest) {
        const problem =
          isFirst && start === 0 ? "it is of another model, or of other settings" : "it is damaged"
        return this.#answer(start / size, { problem })
      }
      const digest = digestOf(this.#digest, header.tokens, header.ropeKeys)
      const place = { kind: KV, digest, offset: this.#index * size } as const
      if (!isSound(record, this.#headerBytes, place))
        return this.#answer(start / size, { problem: "it is damaged" })
      const block = this.#place(record, header.tokens, header.ropeKeys)
      if (block === undefined)
        return this.#answer(start / size, { tokens: Int32Array.from(tokens), isFull: true })
      this.#parent = block
      this.#digest = digest
      this.#index++
      tokens.push(...header.tokens)
    }
    return this.#answer(records.length / size, { tokens: Int32Array.from(tokens) })
  }

  /** The block that a record is of, known already or in a page of its own; undefined where there is no room. */
  #place(
    record: Uint8Array,
    tokens: Int32Array,
    ropeKeys: Int32Array | undefined,
  ): CachedBlock | undefined {
    const { blocks, memory } = this.#options
    if (this.#parent?.isGone) return undefined
    const known = blocks.prefixCache?.find(this.#parent, tokens, ropeKeys)
    if (known !== undefined) return known
    // its own beginning must not make room for its end
    if (this.#made >= blocks.pages - 1 || blocks.numFree <= 1) return undefined
    const page = blocks.allocate()
    memory.copyIn(page, record.subarray(this.#headerBytes, this.#headerBytes + memory.pieceBytes))
    const block = blocks.publish(this.#parent, tokens, ropeKeys, page)
    blocks.release(page)
    this.#made++
    return block
  }

  #forget(action: PrefixAction & { type: "forget" }): PrefixAnswer {
    const { blocks } = this.#options
    const known = this.#known(action).slice(action.from)
    blocks.restore?.end()
    for (const block of known.toReversed()) blocks.prefixCache?.remove(block)
    return this.#answer(known.length)
  }
}
