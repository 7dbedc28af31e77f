import type { RunnableModel } from "../../src/engine/model-runner.ts"
import { KVPool } from "../../src/kvcache/pool.ts"
import type { Backend } from "../../src/native/backend.ts"
import { nativeView } from "../../src/native/memory.ts"
import type { ForwardBatch } from "../../src/nn/forward-batch.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"

export const KV_DIM = 8

/** A cache of one layer with one head, whose slots are rows of KV_DIM floats. */
export function jsPool(backend: Backend, pages: number, pageSize: number): KVPool {
  const layer = { kvHeads: 1, kDim: KV_DIM, vDim: KV_DIM }
  return new KVPool(backend, [layer], { pages, pageSize, dtype: F32 })
}

/**
 * A model in TypeScript over the native inputs: keeps (token, position, rope length) of every token in the K cache, reads
 * them back through the block tables, and gives logits that depend on all of them.
 */
export class JsModel implements RunnableModel {
  readonly vocab: number
  readonly phases = new Set<string>()
  #scale: number

  constructor(vocab: number, scale = 3) {
    this.vocab = vocab
    this.#scale = scale
  }

  forward(batch: ForwardBatch): Tensor {
    this.phases.add(batch.phase)
    const { backend } = batch.inputIds
    const cache = (batch.kvCache[0] as { k: Tensor }).k
    const [, , pageSize] = cache.shape as [number, number, number, number]
    const keys = new Float32Array(nativeView(cache.data, cache.numel * 4))
    const ids = batch.inputIds.toInt32Array()
    const positions = batch.positions.toInt32Array()
    const slots = batch.slotMapping.toInt32Array()
    const starts = batch.queryStart.toInt32Array()
    const lengths = batch.seqLens.toInt32Array()
    if (ids.length !== batch.numTokens || batch.ropeLengths.length !== batch.numTokens)
      throw new Error(`${ids.length} ids of ${batch.numTokens}`)
    for (let t = 0; t < ids.length; t++)
      keys.set(
        [ids[t] as number, positions[t] as number, batch.ropeLengths[t] as number],
        (slots[t] as number) * KV_DIM,
      )
    const rows = batch.logitsRows.toInt32Array()
    const logits = Tensor.empty(backend, F32, [rows.length, this.vocab])
    const values = new Float32Array(nativeView(logits.data, logits.numel * 4))
    const width = batch.blockTables.dim(1)
    const tables = batch.blockTables.toInt32Array()
    for (const [r, token] of rows.entries()) {
      const s = starts.findIndex((start, i) => start <= token && token < (starts[i + 1] as number))
      const last = (lengths[s] as number) - ((starts[s + 1] as number) - token)
      let state = 1
      for (let p = 0; p <= last; p++) {
        const slot = (tables[s * width + Math.floor(p / pageSize)] as number) * pageSize
        const at = (slot + (p % pageSize)) * KV_DIM
        if (keys[at + 1] !== p) throw new Error(`position ${keys[at + 1]} found at ${p}`)
        state = Math.imul(state, 31) + (keys[at] as number) * 7 + (keys[at + 2] as number)
      }
      for (let v = 0; v < this.vocab; v++) {
        values[r * this.vocab + v] = jsLogit(state, v, this.#scale)
      }
    }
    return logits
  }
}

/** The logit of a token after what a state stands for: 31 * state + 7 * token + rope length, from 1 on. */
export function jsLogit(state: number, token: number, scale: number): number {
  let h = Math.imul(state ^ Math.imul(token + 1, 0x9e3779b1), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 15), 0xc2b2ae35) >>> 8
  return (h / 16777216 - 0.5) * 2 * scale
}
