import { kvLayers, stateLayers } from "../../src/engine/kv-layers.ts"
import { KVPool } from "../../src/kvcache/pool.ts"
import { StatePool } from "../../src/kvcache/state-pool.ts"
import type { HiddenStates } from "../../src/models/llama.ts"
import type { CausalLM } from "../../src/models/registry.ts"
import type { Backend } from "../../src/native/backend.ts"
import type { ForwardBatch } from "../../src/nn/forward-batch.ts"
import { F16, F32 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"

const PAGE_SIZE = 8

/** New tokens of one sequence in a step. */
export interface Piece {
  readonly sequence: number
  readonly ids: ArrayLike<number>
}

/**
 * Feeds sequences to a model step by step. Their pages are dealt out crosswise, so that block
 * tables matter.
 */
export class Sequences {
  readonly #model: CausalLM
  readonly #backend: Backend
  readonly #vocabSize: number
  readonly #pool: KVPool
  readonly #states: StatePool
  readonly #count: number
  readonly #maxPages: number
  readonly #promptLength: number
  readonly #lengths: number[]

  constructor(
    model: CausalLM,
    backend: Backend,
    options: { count: number; maxTokens: number; promptLength: number },
  ) {
    const { config } = model
    this.#model = model
    this.#backend = backend
    this.#vocabSize = config.vocab_size
    this.#count = options.count
    this.#maxPages = Math.ceil(options.maxTokens / PAGE_SIZE)
    this.#promptLength = options.promptLength
    this.#lengths = new Array<number>(options.count).fill(0)
    this.#pool = new KVPool(backend, kvLayers(config), {
      pages: this.#maxPages * options.count,
      pageSize: PAGE_SIZE,
      dtype: backend.precision === "f32" ? F32 : F16,
    })
    this.#states = new StatePool(backend, stateLayers(config), options.count)
  }

  /** Logits of every new token, [tokens, vocab] for each piece. */
  step(pieces: readonly Piece[], hiddenStates?: HiddenStates): Float32Array[] {
    const logits = this.#model.forward(this.#batch(pieces), hiddenStates).toFloat32Array()
    this.#backend.resetStep()
    let start = 0
    return pieces.map(({ sequence, ids }) => {
      this.#lengths[sequence] = (this.#lengths[sequence] as number) + ids.length
      const end = start + ids.length * this.#vocabSize
      const rows = logits.subarray(start, end)
      start = end
      return rows
    })
  }

  #page(sequence: number, index: number): number {
    return (this.#maxPages - 1 - index) * this.#count + sequence
  }

  #batch(pieces: readonly Piece[]): ForwardBatch {
    const ids: number[] = []
    const positions: number[] = []
    const slots: number[] = []
    const ropeLengths: number[] = []
    const queryStart = [0]
    const seqLens: number[] = []
    const tables: number[] = []
    for (const { sequence, ids: fresh } of pieces) {
      const past = this.#lengths[sequence] as number
      for (let i = 0; i < fresh.length; i++) {
        const position = past + i
        ids.push(fresh[i] as number)
        positions.push(position)
        const page = this.#page(sequence, Math.floor(position / PAGE_SIZE))
        slots.push(page * PAGE_SIZE + (position % PAGE_SIZE))
        ropeLengths.push(position < this.#promptLength ? this.#promptLength : position + 1)
      }
      queryStart.push(ids.length)
      seqLens.push(past + fresh.length)
      for (let page = 0; page < this.#maxPages; page++) tables.push(this.#page(sequence, page))
    }
    const ints = (values: readonly number[], shape?: readonly number[]): Tensor =>
      Tensor.from(this.#backend, Int32Array.from(values), shape ?? [values.length])
    return {
      phase: ids.length === pieces.length ? "decode" : "prefill",
      numTokens: ids.length,
      numSeqs: pieces.length,
      inputIds: ints(ids),
      positions: ints(positions),
      slotMapping: ints(slots),
      blockTables: ints(tables, [pieces.length, this.#maxPages]),
      queryStart: ints(queryStart),
      seqLens: ints(seqLens),
      logitsRows: ints(ids.map((_, i) => i)),
      ropeLengths: Int32Array.from(ropeLengths),
      kvCache: this.#pool.layers,
      states: {
        segments: {
          start: ints(queryStart),
          source: ints(pieces.map(({ sequence: s }) => (this.#lengths[s] === 0 ? -1 : s))),
          target: ints(pieces.map(({ sequence }) => sequence)),
        },
        layers: this.#states.layers,
      },
    }
  }

  [Symbol.dispose](): void {
    this.#pool[Symbol.dispose]()
    this.#states[Symbol.dispose]()
  }
}
