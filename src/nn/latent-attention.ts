import { KtError } from "../errors.ts"
import { copy, embedding, pagedAttention, storeKv } from "../ops/index.ts"
import { F32, I32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"
import { Attention } from "./attention.ts"
import type { ForwardBatch, LayerKVCache } from "./forward-batch.ts"
import type { LatentProjection } from "./latent.ts"
import { registerModules } from "./module.ts"

/** Memory for keys and values that are made of latents; more heads than fit are taken in turn. */
export const EXPANDED_BYTES = 64 * 2 ** 20

/**
 * What a multiplication costs that makes keys and values, in units of one in attention. Measured on Zen 4 with 16, 64 and 128
 * heads of DeepSeek-V3's sizes, Q8_0, F16 cache, two threads: with it the prediction falls between the forms where the
 * times do (between 128 and 192 new tokens after 1024), and 512 new tokens after 2048 take 0.6 of the absorbed form's time.
 */
const EXPANSION_COST = 1.2

/** Sizes that decide between the two forms. */
export interface LatentSizes {
  readonly rank: number
  /** Of a head's key: without rope, and with. */
  readonly nope: number
  readonly rotary: number
  readonly value: number
}

/**
 * Whether `count` new tokens of a sequence of `length` are cheaper with each head's keys and values made of the latents
 * (expanded) than on the latents themselves (absorbed), by multiplications: expanding costs every cached token once and
 * makes each pair of query and key cheaper. With DeepSeek-V3's sizes it pays from about 200 new tokens on after a long
 * context, and from 70 on where a sequence begins.
 */
export function prefersExpanded(
  sizes: LatentSizes,
  count: number,
  length: number,
  maxBytes = EXPANDED_BYTES,
): boolean {
  const { rank, nope, rotary, value } = sizes
  if (count === 1 || length * floatsPerToken(sizes, 1) * 4 > maxBytes) return false
  const pairs = count * (length - (count - 1) / 2)
  const absorbed = count * rank * (nope + value) + pairs * (2 * rank + rotary)
  const expanded = EXPANSION_COST * length * rank * (nope + value) + pairs * (nope + rotary + value)
  return expanded < absorbed
}

/** Latents in F32, and the keys and values of `heads` heads. */
function floatsPerToken({ rank, nope, rotary, value }: LatentSizes, heads: number): number {
  return rank + rotary + heads * (nope + rotary + value)
}

/** Sequences that follow each other in a batch and are computed in the same form; one at a time if expanded. */
interface Run {
  readonly expanded: boolean
  readonly firstSeq: number
  numSeqs: number
  readonly firstToken: number
  numTokens: number
  /** Where the latents of an expanded sequence are, in order. */
  readonly slots: Int32Array | undefined
}

/**
 * Attention over latents (DeepSeek-V2, arXiv 2405.04434): what is cached of a token is one compressed key and value for all
 * heads, and a rotated key that they share.
 */
export class LatentAttention extends Attention {
  readonly sizes: LatentSizes
  readonly expandedBytes: number

  constructor(options: {
    readonly layerIdx: number
    readonly numHeads: number
    readonly scale: number
    readonly sizes: LatentSizes
    /** Memory for expanded keys and values. */
    readonly expandedBytes?: number
  }) {
    const { sizes, layerIdx, numHeads, scale } = options
    const { rank, rotary } = sizes
    super({ layerIdx, numHeads, numKVHeads: 1, headDim: rank + rotary, vDim: rank, scale })
    this.sizes = sizes
    this.expandedBytes = options.expandedBytes ?? EXPANDED_BYTES
  }

  /**
   * q [T, heads, nope + rotary], latents [T, rank], kRope [T, 1, rotary], both rotated → [T, heads, value]; latents and
   * kRope go to the cache.
   */
  mix(
    q: Tensor,
    latents: Tensor,
    kRope: Tensor,
    projection: LatentProjection,
    batch: ForwardBatch,
  ): Tensor {
    const { rank, value } = this.sizes
    const cache = this.cache(batch)
    if (cache.rest === undefined) throw new KtError("latent attention needs values in keys")
    storeKv(latents.unflatten(-1, [1, rank]), kRope, batch.slotMapping, cache.v, cache.rest)
    const out = Tensor.empty(q.backend, F32, [batch.numTokens, this.numHeads, value])
    const { arena } = q.backend
    let runs = runsOf.get(batch)
    if (runs === undefined) {
      runs = makeRuns(batch, cache.k.dim(2), this)
      runsOf.set(batch, runs)
    }
    for (const run of runs) {
      const mark = arena.mark()
      const own = q.narrow(0, run.firstToken, run.numTokens)
      const to = out.narrow(0, run.firstToken, run.numTokens)
      if (run.slots === undefined) this.#absorbed(run, own, cache, projection, batch, to)
      else this.#expanded(run.slots, own, cache, projection, to)
      arena.release(mark)
    }
    return out
  }

  #absorbed(
    run: Run,
    q: Tensor,
    cache: LayerKVCache,
    projection: LatentProjection,
    batch: ForwardBatch,
    out: Tensor,
  ): void {
    const { rank, nope, rotary } = this.sizes
    const { firstSeq, numSeqs, firstToken } = run
    const query = Tensor.empty(q.backend, F32, [q.dim(0), q.dim(1), rank + rotary])
    projection.absorb(q.narrow(-1, 0, nope), query.narrow(-1, 0, rank))
    copy(q.narrow(-1, nope, rotary), query.narrow(-1, rank, rotary))
    const starts =
      firstToken === 0
        ? batch.queryStart.narrow(0, firstSeq, numSeqs + 1)
        : startsFrom(batch.queryStart, firstSeq, numSeqs, firstToken)
    const mixed = pagedAttention(
      query,
      cache.k,
      cache.v,
      batch.blockTables.narrow(0, firstSeq, numSeqs),
      starts,
      batch.seqLens.narrow(0, firstSeq, numSeqs),
      this.params,
    )
    projection.valuesOf(mixed, 0, out)
  }

  #expanded(
    slots: Int32Array,
    q: Tensor,
    cache: LayerKVCache,
    projection: LatentProjection,
    out: Tensor,
  ): void {
    const { sizes, numHeads } = this
    const { rank, nope, rotary, value } = sizes
    const { backend } = q
    const length = slots.length
    const perHead = (floatsPerToken(sizes, 1) - floatsPerToken(sizes, 0)) * 4 * length
    const left = this.expandedBytes - floatsPerToken(sizes, 0) * 4 * length
    const atOnce = Math.min(numHeads, Math.max(1, Math.floor(left / perHead)))
    const stored = embedding(slotRows(cache.k), Tensor.from(backend, slots))
    const keyBuffer = Tensor.empty(backend, F32, [length, atOnce, nope + rotary])
    const valueBuffer = Tensor.empty(backend, F32, [length, atOnce, value])
    const table = Tensor.from(backend, Int32Array.of(0), [1, 1])
    const starts = Tensor.from(backend, Int32Array.of(0, q.dim(0)))
    const lens = Tensor.from(backend, Int32Array.of(length))
    for (let head = 0; head < numHeads; head += atOnce) {
      const heads = Math.min(atOnce, numHeads - head)
      const keys = keyBuffer.narrow(1, 0, heads)
      const values = valueBuffer.narrow(1, 0, heads)
      projection.keysOf(
        perHeadView(stored.narrow(-1, 0, rank), heads),
        head,
        keys.narrow(-1, 0, nope),
      )
      projection.valuesOf(perHeadView(stored.narrow(-1, 0, rank), heads), head, values)
      copy(perHeadView(stored.narrow(-1, rank, rotary), heads), keys.narrow(-1, nope, rotary))
      pagedAttention(
        q.narrow(1, head, heads),
        onePage(keys),
        onePage(values),
        table,
        starts,
        lens,
        this.params,
        out.narrow(1, head, heads),
      )
    }
  }
}

/** Made by a step's first layer for all of them. */
const runsOf = new WeakMap<ForwardBatch, readonly Run[]>()

function makeRuns(
  batch: ForwardBatch,
  pageSize: number,
  { sizes, expandedBytes }: LatentAttention,
): readonly Run[] {
  const whole: Run = {
    expanded: false,
    firstSeq: 0,
    numSeqs: batch.numSeqs,
    firstToken: 0,
    numTokens: batch.numTokens,
    slots: undefined,
  }
  if (batch.phase === "decode") return [whole]
  const starts = batch.queryStart.toInt32Array()
  const lens = batch.seqLens.toInt32Array()
  const runs: Run[] = []
  let tables: Int32Array | undefined
  for (let s = 0; s < batch.numSeqs; s++) {
    const firstToken = starts[s] as number
    const numTokens = (starts[s + 1] as number) - firstToken
    const length = lens[s] as number
    const expanded = prefersExpanded(sizes, numTokens, length, expandedBytes)
    const last = runs.at(-1)
    if (!expanded && last !== undefined && !last.expanded) {
      last.numSeqs++
      last.numTokens += numTokens
      continue
    }
    let slots: Int32Array | undefined
    if (expanded) {
      tables ??= batch.blockTables.toInt32Array()
      const row = tables.subarray(s * batch.blockTables.dim(1))
      slots = Int32Array.from(
        { length },
        (_, p) => (row[Math.floor(p / pageSize)] as number) * pageSize + (p % pageSize),
      )
    }
    runs.push({ expanded, firstSeq: s, numSeqs: 1, firstToken, numTokens, slots })
  }
  return runs
}

/** Query starts of some sequences, counted from the first one's first token. */
function startsFrom(all: Tensor, first: number, count: number, token: number): Tensor {
  const values = all.toInt32Array().subarray(first, first + count + 1)
  return Tensor.from(
    all.backend,
    Int32Array.from(values, (start) => start - token),
  )
}

/** A cache [pages, 1, page_size, dim] as rows of a table by slot; a view that dies with the step. */
function slotRows({ backend, dtype, shape, data, owner }: Tensor): Tensor {
  const [pages, , pageSize, dim] = shape as readonly [number, number, number, number]
  return new Tensor(backend, dtype, [pages * pageSize, dim], data, { owner })
}

/** Rows [L, n] as those of several heads that all read the same: [L, heads, n]. */
function perHeadView(
  { backend, dtype, shape, strides, data, owner }: Tensor,
  heads: number,
): Tensor {
  const [length, n] = shape as readonly [number, number]
  const [row, inner] = strides as readonly [number, number]
  return new Tensor(backend, dtype, [length, heads, n], data, { strides: [row, 0, inner], owner })
}

/** [L, heads, dim] as a cache of one page [1, heads, L, dim]. */
function onePage({ backend, dtype, shape, strides, data, owner }: Tensor): Tensor {
  const [length, heads, dim] = shape as readonly [number, number, number]
  const [row, head, inner] = strides as readonly [number, number, number]
  const options = { strides: [row * length, head, row, inner], owner }
  return new Tensor(backend, dtype, [1, heads, length, dim], data, options)
}

registerModules({ LatentAttention })
