import { type AttentionOptions, pagedAttention, storeKv } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { ForwardBatch, LayerKVCache } from "./forward-batch.ts"
import { Module, type Parameter, registerModules } from "./module.ts"

export interface AttentionModuleOptions {
  readonly layerIdx: number
  readonly numHeads: number
  readonly numKVHeads: number
  readonly headDim: number
  /** Dimension of values where it differs from that of keys. */
  readonly vDim?: number
  readonly scale: number
  /** Keys a query sees, its own included; 0 = all before it. */
  readonly slidingWindow?: number
  /** A query sees only keys of its own chunk of so many positions; 0 = all before it. */
  readonly chunkSize?: number
  /** Growth of the scores with the query's position. */
  readonly temperature?: { readonly scale: number; readonly floor: number } | undefined
  readonly softCap?: number
  /** One more logit per head, without a value. */
  readonly sinks?: boolean
  /** Queries see later keys too. */
  readonly bidirectional?: boolean
}

/** Attention of grouped queries, causal unless asked otherwise, over the paged KV cache of one layer. */
export class Attention extends Module {
  readonly layerIdx: number
  readonly numHeads: number
  readonly numKVHeads: number
  readonly headDim: number
  readonly vDim: number
  /** What the kernel is told; the sinks, [heads] F32, are bound with the weights. */
  params: AttentionOptions
  readonly hasSinks: boolean

  constructor(options: AttentionModuleOptions) {
    super()
    this.layerIdx = options.layerIdx
    this.numHeads = options.numHeads
    this.numKVHeads = options.numKVHeads
    this.headDim = options.headDim
    this.vDim = options.vDim ?? options.headDim
    this.hasSinks = options.sinks ?? false
    this.params = {
      scale: options.scale,
      slidingWindow: options.slidingWindow ?? 0,
      chunkSize: options.chunkSize ?? 0,
      temperature: options.temperature,
      softCap: options.softCap ?? 0,
      bidirectional: options.bidirectional ?? false,
    }
  }

  override parameters(): Parameter[] {
    if (!this.hasSinks) return []
    const bind = (sinks: Tensor): void => void (this.params = { ...this.params, sinks })
    return [{ name: "../sinks", shape: [this.numHeads], kind: "vector", bind }]
  }

  cache(batch: ForwardBatch): LayerKVCache {
    return batch.kvCache[this.layerIdx] as LayerKVCache
  }

  /** q [T, heads, k_dim], k [T, kv_heads, k_dim], v [T, kv_heads, v_dim] → [T, heads, v_dim]; k and v go to the cache. */
  forward(q: Tensor, k: Tensor, v: Tensor, batch: ForwardBatch): Tensor {
    const { k: keys, v: values } = this.cache(batch)
    storeKv(k, v, batch.slotMapping, keys, values)
    return this.attend(q, batch)
  }

  /** Attention alone, where k and v are in the cache already. */
  attend(q: Tensor, batch: ForwardBatch): Tensor {
    const { k, v } = this.cache(batch)
    const { blockTables, queryStart, seqLens } = batch
    return pagedAttention(q, k, v, blockTables, queryStart, seqLens, this.params)
  }
}

registerModules({ Attention })
