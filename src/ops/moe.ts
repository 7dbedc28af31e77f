import { KtError } from "../errors.ts"
import { I32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, empty, expectShape } from "./dispatch.ts"
import { type Activation, ACTIVATIONS } from "./elementwise.ts"

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

/**
 * out[t] = Σⱼ weights[t][j] · down[e](act(gate[e] x[t]) · (up[e] x[t])), e = ids[t][j]. x [tokens, hidden] F32,
 * ids [tokens, k] I32, weights [tokens, k] F32; gate, up [experts, inter, hidden] and down [experts, hidden, inter] of any
 * weight type, packed or not.
 */
export function fusedExperts(
  x: Tensor,
  ids: Tensor,
  weights: Tensor,
  gate: Tensor,
  up: Tensor,
  down: Tensor,
  act: Activation,
  out = empty(x, x.shape),
): Tensor {
  const backend = backendOf("fusedExperts", x, ids, weights, gate, up, down, out)
  expectShape("fusedExperts", "up", up, gate.shape)
  expectShape("fusedExperts", "down", down, [gate.dim(0), x.dim(-1), gate.dim(1)])
  expectShape("fusedExperts", "weights", weights, ids.shape)
  backend.check(
    backend.library.kt_fused_experts(
      backend.ctx,
      x.desc,
      ids.desc,
      weights.desc,
      gate.desc,
      up.desc,
      down.desc,
      ACTIVATIONS[act],
      out.desc,
    ),
    "fusedExperts",
  )
  return out
}
