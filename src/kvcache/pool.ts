import { KtError } from "../errors.ts"
import { Pieces } from "../native/memory.ts"
import type { LayerKVCache } from "../nn/forward-batch.ts"
import { type DTypeInfo, rowBytes } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"

/** What one layer stores per token. */
export interface KVLayerSpec {
  readonly kvHeads: number
  readonly kDim: number
  readonly vDim: number
  /** A token's values are the first vDim of its key (latent attention): they take no memory of their own. */
  readonly valuesInKeys?: boolean
}

type Backend = Tensor["backend"]

/** Slot numbers (page * page_size + offset) are i32. */
const MAX_SLOTS = 2 ** 31 - 1

/** Bytes of one page over all layers, K and V together. */
export function kvBytesPerPage(
  layers: readonly KVLayerSpec[],
  pageSize: number,
  dtype: DTypeInfo,
): number {
  let bytes = 0
  for (const { kvHeads, kDim, vDim, valuesInKeys } of layers) {
    const values = valuesInKeys ? 0 : rowBytes(dtype, vDim)
    bytes += kvHeads * pageSize * (rowBytes(dtype, kDim) + values)
  }
  return bytes
}

/**
 * The K and V pages of every layer. Address space is taken at once; the system gives memory to a page when it is first
 * written, so an unused cache costs next to nothing.
 */
export class KVPool {
  readonly layers: readonly LayerKVCache[]
  readonly pages: number
  readonly pageSize: number
  readonly dtype: DTypeInfo
  readonly bytes: number
  /** Of one page over all layers: what copyOut() and copyIn() move. */
  readonly pieceBytes: number
  readonly #entries: readonly Entries[]

  /**
   * @param backend The device, or that of each layer
   * @throws NativeError when the address space cannot be had
   */
  constructor(
    backend: Backend | ((layer: number) => Backend),
    layers: readonly KVLayerSpec[],
    options: { pages: number; pageSize: number; dtype: DTypeInfo },
  ) {
    const { pages, pageSize, dtype } = options
    if (pages * pageSize > MAX_SLOTS)
      throw new KtError(`a KV cache of ${pages * pageSize} tokens exceeds ${MAX_SLOTS}`)
    this.pages = pages
    this.pageSize = pageSize
    this.dtype = dtype
    this.bytes = pages * kvBytesPerPage(layers, pageSize, dtype)
    const made: LayerKVCache[] = []
    this.layers = made
    try {
      for (const [i, { kvHeads, kDim, vDim, valuesInKeys }] of layers.entries()) {
        const device = typeof backend === "function" ? backend(i) : backend
        const k = Tensor.allocate(device, dtype, [pages, kvHeads, pageSize, kDim])
        made.push({ k, v: k })
        made[made.length - 1] = valuesInKeys
          ? { k, v: k.narrow(-1, 0, vDim), rest: k.narrow(-1, vDim, kDim - vDim) }
          : { k, v: Tensor.allocate(device, dtype, [pages, kvHeads, pageSize, vDim]) }
      }
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
    this.#entries = made.flatMap(({ k, v }, i) =>
      (layers[i]?.valuesInKeys ? [k] : [k, v]).map(entriesOf),
    )
    this.pieceBytes = this.#entries.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /** Writes a page's K and V, layer after layer, to memory of `pieceBytes`. */
  copyOut(page: number, to: Uint8Array): void {
    copyOut(this.#entries, page, to)
  }

  /** Overwrites a page with what copyOut() gave. */
  copyIn(page: number, from: Uint8Array): void {
    copyIn(this.#entries, page, from)
  }

  [Symbol.dispose](): void {
    for (const { k, v } of this.layers) {
      k[Symbol.dispose]()
      v[Symbol.dispose]()
    }
  }
}

/** The entries of a contiguous tensor's first dimension, wherever they lie. */
export interface Entries {
  readonly backend: Tensor["backend"]
  readonly pieces: Pieces
  readonly bytes: number
}

export function entriesOf({ backend, data, shape, strides }: Tensor): Entries {
  const bytes = strides[0] as number
  return { backend, pieces: new Pieces(data, bytes, shape[0] as number), bytes }
}

/** Joins entry `index` of every tensor. */
export function copyOut(entries: readonly Entries[], index: number, to: Uint8Array): void {
  let at = 0
  for (const { backend, pieces, bytes } of entries) {
    if (backend.isHost) to.set(pieces.view(index), at)
    else backend.copy(to.subarray(at, at + bytes), pieces.addressOf(index), bytes)
    at += bytes
  }
}

/** Divides what copyOut() joined. */
export function copyIn(entries: readonly Entries[], index: number, from: Uint8Array): void {
  let at = 0
  for (const { backend, pieces, bytes } of entries) {
    const part = from.subarray(at, at + bytes)
    if (backend.isHost) pieces.view(index).set(part)
    else backend.copy(pieces.addressOf(index), part, bytes)
    at += bytes
  }
}
