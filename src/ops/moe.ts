import { KtError } from "../errors.ts"
import { I32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, empty } from "./dispatch.ts"

/** Experts of each token and their weights: ids [tokens, k] I32, weights [tokens, k] F32, best first. */
export interface Routing {
  readonly ids: Tensor
  readonly weights: Tensor
}

/**
 * Softmax over all experts, then the k best (ties: the lower id first); `normalize` makes their weights sum to 1.
 * logits [tokens, experts] F32.
 */
export function topkSoftmax(logits: Tensor, k: number, normalize: boolean): Routing {
  const backend = backendOf("topkSoftmax", logits)
  if (!(Number.isInteger(k) && k >= 1 && k <= logits.dim(-1)))
    throw new KtError(`topkSoftmax: k is ${k}, there are ${logits.dim(-1)} experts`)
  const ids = empty(logits, [logits.dim(0), k], I32)
  const weights = empty(logits, [logits.dim(0), k])
  backend.check(
    backend.library.kt_topk_softmax(
      backend.ctx,
      logits.desc,
      normalize ? 1 : 0,
      ids.desc,
      weights.desc,
    ),
    "topkSoftmax",
  )
  return { ids, weights }
}
