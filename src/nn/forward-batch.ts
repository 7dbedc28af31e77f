import { DeviceError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import type { Arena, ArenaMark } from "../native/memory.ts"
import type { StateSegments } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"

/** K and V pages of one layer. */
export interface LayerKVCache {
  /** [pages, kv_heads, page_size, k_dim] */
  readonly k: Tensor
  /** [pages, kv_heads, page_size, v_dim] */
  readonly v: Tensor
  /** [pages, 1, page_size, k_dim - v_dim]: the end of k where v is its beginning (latent attention) */
  readonly rest?: Tensor
}

/** States of one linear-attention layer, one slot each. */
export interface LayerStateCache {
  /** [slots, kernel - 1, channels] F32: the last inputs of the convolution, oldest first */
  readonly conv: Tensor
  /** [slots, heads, k_dim, v_dim] F32 */
  readonly state: Tensor
}

/** What a batch has for layers that keep a state per sequence. */
export interface BatchStates {
  /** The batch's tokens, cut where a sequence begins and where a state is kept. */
  readonly segments: StateSegments
  /** One per linear-attention layer. */
  readonly layers: readonly LayerStateCache[]
}

/**
 * One step's input: the new tokens of all its sequences, concatenated (ragged). T tokens, S sequences, R rows of logits.
 * A sequence's query tokens are its last ones: token i of sequence s has position seqLens[s] - queryLen(s) + i.
 */
export interface ForwardBatch {
  /** "decode": every sequence has exactly one token. */
  readonly phase: "prefill" | "decode" | "mixed"
  readonly numTokens: number
  readonly numSeqs: number
  /** [T] i32 */
  readonly inputIds: Tensor
  /** [T] i32 */
  readonly positions: Tensor
  /** [T] i32: page * page_size + offset where the token's K and V go */
  readonly slotMapping: Tensor
  /** [S, max_pages] i32 */
  readonly blockTables: Tensor
  /** [S + 1] i32: first query token of each sequence, then T */
  readonly queryStart: Tensor
  /** [S] i32: tokens in the cache after this step */
  readonly seqLens: Tensor
  /** [R] i32: tokens whose logits, or states, are wanted */
  readonly logitsRows: Tensor
  /** [T] i32: 0, or 1 in the second text of a pair; for encoders */
  readonly tokenTypes?: Tensor
  /** Per token: the length that chooses length-dependent rope (dynamic NTK, longrope): prompt length, then position + 1. */
  readonly ropeLengths: Int32Array
  /** One per attention layer. */
  readonly kvCache: readonly LayerKVCache[]
  /** For models with linear-attention layers. */
  readonly states?: BatchStates | undefined
  /** The same batch by the device that its tensors are on, this one included; for models on several devices. */
  readonly elsewhere?: ReadonlyMap<Backend, ForwardBatch>
}

/** What a step's temporaries lie in on all of its devices: a layer's are given back at once. */
export class StepMemory {
  readonly #arenas: readonly Arena[]
  readonly #marks: ArenaMark[] = []

  constructor({ elsewhere, positions }: ForwardBatch) {
    this.#arenas = [...(elsewhere?.keys() ?? [positions.backend])].map(({ arena }) => arena)
  }

  mark(): void {
    for (let i = 0; i < this.#arenas.length; i++) this.#marks[i] = (this.#arenas[i] as Arena).mark()
  }

  release(): void {
    for (let i = 0; i < this.#arenas.length; i++)
      (this.#arenas[i] as Arena).release(this.#marks[i] as ArenaMark)
  }
}

/** The batch with its tensors on a device. @throws DeviceError where the step was not prepared for it */
export function batchOn(batch: ForwardBatch, backend: Backend | undefined): ForwardBatch {
  if (backend === undefined || batch.positions.backend === backend) return batch
  const there = batch.elsewhere?.get(backend)
  if (there === undefined) throw new DeviceError(`the step's inputs are not on ${backend.label}`)
  return there
}
