import { KtError } from "../errors.ts"
import {
  KT_ABI_MAJOR,
  KT_ABI_MINOR,
  KT_EXPERTS_ADD,
  KT_EXPERTS_SCALE_INPUT,
  KT_GROUP_MAX,
  KT_GROUP_TOP2_SUM,
  KT_SCORE_CHOSEN_SOFTMAX,
  KT_SCORE_SIGMOID,
  KT_SCORE_SOFTMAX,
  layouts,
} from "../native/abi.generated.ts"
import type { Backend } from "../native/backend.ts"
import { I32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"
import { backendOf, descOf, empty, expectShape, putPointer } from "./dispatch.ts"
import { type Activation, ACTIVATIONS } from "./elementwise.ts"

/** Experts of each token and their weights: ids [tokens, k] I32, weights [tokens, k] F32, best first. */
export interface Routing {
  readonly ids: Tensor
  readonly weights: Tensor
}

/** What experts are scored by; "chosen-softmax": the logits choose, their softmax over the chosen weighs. */
export const ROUTER_SCORES = {
  softmax: KT_SCORE_SOFTMAX,
  sigmoid: KT_SCORE_SIGMOID,
  "chosen-softmax": KT_SCORE_CHOSEN_SOFTMAX,
} as const
export type RouterScore = keyof typeof ROUTER_SCORES

/** What a group of experts is judged by. */
export const GROUP_SCORES = { max: KT_GROUP_MAX, "top2-sum": KT_GROUP_TOP2_SUM } as const
export type GroupScore = keyof typeof GROUP_SCORES

export interface RouterOptions {
  readonly topK: number
  readonly score: RouterScore
  /** Weights are divided by their sum. */
  readonly normalize: boolean
  /** [experts] F32, added to the scores for the choice only. */
  readonly bias?: Tensor | null
  /** Groups of neighbouring experts; experts come from the best `topkGroups` of them. */
  readonly groups?: number
  readonly topkGroups?: number
  readonly groupScore?: GroupScore
  /** Multiplies the weights. */
  readonly scale?: number
}

const { size: ROUTER_BYTES, fields: ROUTER } = layouts.kt_router_params

/** Checks the options and writes them to the backend's parameter block. */
function putRouterParams(op: string, backend: Backend, experts: number, o: RouterOptions): void {
  const { topK, bias = null, groups = 1, topkGroups = groups } = o
  if (!(Number.isInteger(groups) && groups >= 1 && experts % groups === 0))
    throw new KtError(`${op}: ${experts} experts in ${groups} groups`)
  if (!(Number.isInteger(topkGroups) && topkGroups >= 1 && topkGroups <= groups))
    throw new KtError(`${op}: topkGroups is ${topkGroups}, there are ${groups} groups`)
  const available = (experts / groups) * topkGroups
  if (!(Number.isInteger(topK) && topK >= 1 && topK <= available))
    throw new KtError(`${op}: topK is ${topK}, there are ${available} experts`)
  if (bias !== null) expectShape(op, "bias", bias, [experts])
  const { params } = backend
  params.setUint32(ROUTER.struct_size, ROUTER_BYTES, true)
  params.setUint32(ROUTER.abi_version, KT_ABI_MAJOR * 65536 + KT_ABI_MINOR, true)
  params.setUint32(ROUTER.score, ROUTER_SCORES[o.score], true)
  params.setUint32(ROUTER.norm, o.normalize ? 1 : 0, true)
  params.setInt32(ROUTER.num_groups, groups, true)
  params.setInt32(ROUTER.topk_groups, topkGroups, true)
  params.setUint32(ROUTER.group_score, GROUP_SCORES[o.groupScore ?? "max"], true)
  params.setFloat32(ROUTER.scale, o.scale ?? 1, true)
}

/**
 * The k best experts of each token (ties: the lower id first) and their weights. logits [tokens, experts] F32; `into`:
 * where they go.
 */
export function routeExperts(logits: Tensor, options: RouterOptions, into?: Routing): Routing {
  const { topK, bias = null } = options
  const backend = backendOf("routeExperts", logits, bias)
  putRouterParams("routeExperts", backend, logits.dim(-1), options)
  const ids = into?.ids ?? Tensor.kept(backend, I32, [logits.dim(0), topK])
  const weights = into?.weights ?? empty(logits, [logits.dim(0), topK])
  backend.check(
    backend.library.kt_moe_router(
      backend.ctx,
      logits.desc,
      descOf(bias),
      backend.paramsAddress,
      ids.desc,
      weights.desc,
    ),
    "routeExperts",
  )
  return { ids, weights }
}

export interface NormRouterOperands {
  /** [tokens, hidden] F32 */
  readonly x: Tensor
  /** [hidden] F32 */
  readonly normWeight: Tensor
  readonly eps: number
  readonly normOffset: number
  /** [experts, hidden] of any weight type */
  readonly router: Tensor
  /** [experts] F32, of the logits */
  readonly logitBias?: Tensor | null
}

/** normed = rmsNorm(x), and routeExperts(linear(normed, router, logitBias), options, into), in one launch. */
export function normRouter(
  o: NormRouterOperands,
  options: RouterOptions,
  into?: Routing,
): Routing & { readonly normed: Tensor } {
  const { x, normWeight, router, logitBias = null } = o
  const { topK, bias = null } = options
  const backend = backendOf("normRouter", x, normWeight, router, logitBias, bias)
  const [tokens, hidden, experts] = [x.dim(0), x.dim(1), router.dim(0)]
  expectShape("normRouter", "normWeight", normWeight, [hidden])
  expectShape("normRouter", "router", router, [experts, hidden])
  if (logitBias !== null) expectShape("normRouter", "logitBias", logitBias, [experts])
  putRouterParams("normRouter", backend, experts, options)
  const normed = empty(x, x.shape)
  const ids = into?.ids ?? Tensor.kept(backend, I32, [tokens, topK])
  const weights = into?.weights ?? empty(x, [tokens, topK])
  backend.check(
    backend.library.kt_norm_router(
      backend.ctx,
      x.desc,
      normWeight.desc,
      o.eps,
      o.normOffset,
      router.desc,
      descOf(logitBias),
      descOf(bias),
      backend.paramsAddress,
      normed.desc,
      ids.desc,
      weights.desc,
    ),
    "normRouter",
  )
  return { normed, ids, weights }
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
  /** The sum is added to `out`. */
  readonly add?: boolean
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
  const scaled = o.scaleInput === true ? KT_EXPERTS_SCALE_INPUT : 0
  const added = o.add === true ? KT_EXPERTS_ADD : 0
  params.setUint32(fields.flags, scaled | added, true)
  backend.check(
    backend.library.kt_fused_experts(backend.ctx, backend.paramsAddress),
    "fusedExperts",
  )
  return out
}
