import type { ForwardBatch } from "../nn/forward-batch.ts"
import { selectLogitsRows } from "../nn/layers.ts"
import { Module } from "../nn/module.ts"
import { copy } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { ModelConfig } from "./config.ts"

/** A model that computes states of whole texts, each token seeing all others: the root of its tree. */
export abstract class EncoderModel extends Module {
  readonly config: ModelConfig

  constructor(config: ModelConfig) {
    super()
    this.config = config
  }

  /** States [R, hidden] of `batch.logitsRows`, after the last layer's norm. */
  abstract states(batch: ForwardBatch): Tensor

  /** Logits of the classification head: states [R, hidden] of first tokens → [R, labels]. */
  abstract classify(states: Tensor): Tensor

  /** States are normed by the last layer. */
  normed(states: Tensor): Tensor {
    return states
  }
}

/** Runs layers over x [T, hidden], which is overwritten, and picks the rows that a batch asks for. */
export function encode(
  x: Tensor,
  layers: readonly { forward(x: Tensor, batch: ForwardBatch): Tensor }[],
  batch: ForwardBatch,
): Tensor {
  const { arena } = x.backend
  for (const layer of layers) {
    const mark = arena.mark()
    // the states stay where they are, so that the layer's temporaries can be taken back
    copy(layer.forward(x, batch), x)
    arena.release(mark)
  }
  return selectLogitsRows(x, batch)
}
