import { KT_ABI_MAJOR, KT_ABI_MINOR, layouts } from "../native/abi.generated.ts"
import { F32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, descOf, empty, expectShape } from "./dispatch.ts"

export interface AttentionOptions {
  /** Multiplies q · k; usually 1 / sqrt(head dimension). */
  readonly scale: number
  /** cap · tanh(score / cap); 0 or absent: none. */
  readonly softCap?: number
  /** W: a query at p sees keys p - W + 1 … p; 0 or absent: all before it. */
  readonly slidingWindow?: number
  /** C: a query at p sees keys ⌊p / C⌋ · C … p; 0 or absent: all before it. */
  readonly chunkSize?: number
  /** Multiplies the query at p by 1 + scale · ln(1 + ⌊(p + 1) / floor⌋) (Llama 4). */
  readonly temperature?: { readonly scale: number; readonly floor: number } | undefined
  /** A query sees all keys of its sequence, later ones too; without window and chunks. */
  readonly bidirectional?: boolean
  /** [heads]: one more logit per head, without a value. */
  readonly sinks?: Tensor | null
}

/**
 * Writes keys and values into a layer's pages. k [tokens, kvHeads, kDim], v [tokens, kvHeads, vDim] f32, slotMapping
 * [tokens] i32 = page · pageSize + offset (negative: the token is not kept), caches [pages, kvHeads, pageSize, dim] F16, F32 or Q8_0.
 */
export function storeKv(
  k: Tensor,
  v: Tensor,
  slotMapping: Tensor,
  kCache: Tensor,
  vCache: Tensor,
): void {
  const backend = backendOf("storeKv", k, v, slotMapping, kCache, vCache)
  backend.check(
    backend.library.kt_store_kv(
      backend.ctx,
      k.desc,
      v.desc,
      slotMapping.desc,
      kCache.desc,
      vCache.desc,
    ),
    "storeKv",
  )
}

const { size: PARAMS_BYTES, fields: PARAMS } = layouts.kt_attention_params

/**
 * Attention, causal unless asked otherwise, of a ragged batch over its pages. q [tokens, heads, kDim], caches [pages, kvHeads, pageSize, dim],
 * blockTables [seqs, maxPages] i32, queryStart [seqs + 1] i32 (sequence s owns rows queryStart[s] … queryStart[s + 1] of q),
 * seqLens [seqs] i32 (the new tokens included, which are the last). Returns [tokens, heads, vDim].
 */
export function pagedAttention(
  q: Tensor,
  kCache: Tensor,
  vCache: Tensor,
  blockTables: Tensor,
  queryStart: Tensor,
  seqLens: Tensor,
  options: AttentionOptions,
  out: Tensor = empty(q, [q.dim(0), q.dim(1), vCache.dim(-1)], F32),
): Tensor {
  const sinks = options.sinks ?? null
  const backend = backendOf(
    "pagedAttention",
    q,
    kCache,
    vCache,
    blockTables,
    queryStart,
    seqLens,
    sinks,
    out,
  )
  if (sinks !== null) expectShape("pagedAttention", "sinks", sinks, [q.dim(1)])
  const { params } = backend
  params.setUint32(PARAMS.struct_size, PARAMS_BYTES, true)
  params.setUint32(PARAMS.abi_version, KT_ABI_MAJOR * 65536 + KT_ABI_MINOR, true)
  params.setFloat32(PARAMS.scale, options.scale, true)
  params.setFloat32(PARAMS.soft_cap, options.softCap ?? 0, true)
  params.setInt32(PARAMS.sliding_window, options.slidingWindow ?? 0, true)
  params.setInt32(PARAMS.chunk_size, options.chunkSize ?? 0, true)
  params.setFloat32(PARAMS.temperature_scale, options.temperature?.scale ?? 0, true)
  params.setFloat32(PARAMS.temperature_floor, options.temperature?.floor ?? 0, true)
  params.setUint32(PARAMS.bidirectional, options.bidirectional === true ? 1 : 0, true)
  backend.check(
    backend.library.kt_paged_attention(
      backend.ctx,
      q.desc,
      kCache.desc,
      vCache.desc,
      blockTables.desc,
      queryStart.desc,
      seqLens.desc,
      descOf(sinks),
      backend.paramsAddress,
      out.desc,
    ),
    "pagedAttention",
  )
  return out
}
