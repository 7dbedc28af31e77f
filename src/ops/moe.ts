import { KtError } from "../errors.ts"
import {
  KT_ABI_MAJOR,
  KT_ABI_MINOR,
  KT_EXPERTS_SCALE_INPUT,
  layouts,
} from "../native/abi.generated.ts"
import { I32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, descOf, empty, expectShape, putPointer } from "./dispatch.ts"
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

/** What `fusedExperts` computes with; the matrices are of any weight type, packed or not. */
export interface ExpertsOperands {
  /** [tokens, hidden] F32 */
  readonly x: Tensor
  /** [tokens, k] I32 */
  readonly ids: Tensor
  /** [tokens, k] F32 */
  readonly weights: Tensor
  /** [experts, inter, hidden] */
  readonly gate: Tensor
  readonly up: Tensor
  /** [experts, hidden, inter] */
  readonly down: Tensor
  /** [experts, inter] and [experts, hidden] F32 */
  readonly gateBias?: Tensor | null
  readonly upBias?: Tensor | null
  readonly downBias?: Tensor | null
  readonly act: Activation
  /** The weights multiply the experts' input and not their output. */
  readonly scaleInput?: boolean
}

const ARGS = layouts.kt_experts_args

/**
 * out[t] = Σⱼ weights[t][j] · (down[e] · act(gate[e] · x[t] + gateBias[e], up[e] · x[t] + upBias[e]) + downBias[e]) with
 * e = ids[t][j]: [tokens, hidden].
 */
export function fusedExperts(o: ExpertsOperands, out = empty(o.x, o.x.shape)): Tensor {
  const { x, ids, weights, gate, up, down, gateBias = null, upBias = null, downBias = null } = o
  const backend = backendOf("fusedExperts", x, ids, weights, gate, up, down, gateBias, upBias, out)
  expectShape("fusedExperts", "up", up, gate.shape)
  expectShape("fusedExperts", "down", down, [gate.dim(0), x.dim(-1), gate.dim(1)])
  expectShape("fusedExperts", "weights", weights, ids.shape)
  const { params } = backend
  const { fields } = ARGS
  params.setUint32(fields.struct_size, ARGS.size, true)
  params.setUint32(fields.abi_version, KT_ABI_MAJOR * 65536 + KT_ABI_MINOR, true)
  putPointer(params, fields.x, x.desc)
  putPointer(params, fields.ids, ids.desc)
  putPointer(params, fields.weights, weights.desc)
  putPointer(params, fields.gate, gate.desc)
  putPointer(params, fields.up, up.desc)
  putPointer(params, fields.down, down.desc)
  putPointer(params, fields.gate_bias, descOf(gateBias))
  putPointer(params, fields.up_bias, descOf(upBias))
  putPointer(params, fields.down_bias, descOf(downBias))
  putPointer(params, fields.out, out.desc)
  params.setUint32(fields.act, ACTIVATIONS[o.act], true)
  params.setUint32(fields.flags, o.scaleInput === true ? KT_EXPERTS_SCALE_INPUT : 0, true)
  backend.check(
    backend.library.kt_fused_experts(backend.ctx, backend.paramsAddress),
    "fusedExperts",
  )
  return out
}
