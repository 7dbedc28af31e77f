import { KT_ABI_MAJOR, KT_ABI_MINOR, layouts } from "../native/abi.generated.ts"
import type { Backend } from "../native/backend.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, empty, expectShape, putPointer } from "./dispatch.ts"

/**
 * A batch's tokens as segments, for layers that keep a state per sequence: segment g is tokens start[g] … start[g + 1], begins
 * with the state in slot source[g] (-1: zeros) and leaves its own in slot target[g]. A segment whose source is the target of
 * the one before it continues it; all others run independently, so no slot may be a target twice.
 */
export interface StateSegments {
  /** [segments + 1] I32 */
  readonly start: Tensor
  /** [segments] I32 */
  readonly source: Tensor
  /** [segments] I32 */
  readonly target: Tensor
}

const SEGMENTS = layouts.kt_state_segments
const DELTA = layouts.kt_delta_rule_args
const ABI_VERSION = KT_ABI_MAJOR * 65536 + KT_ABI_MINOR
/** The segments lie behind the arguments in the backend's scratch for option structs. */
const SEGMENTS_AT = 512

function putSegments(backend: Backend, segments: StateSegments): number {
  const { params } = backend
  params.setUint32(SEGMENTS_AT + SEGMENTS.fields.struct_size, SEGMENTS.size, true)
  params.setUint32(SEGMENTS_AT + SEGMENTS.fields.abi_version, ABI_VERSION, true)
  putPointer(params, SEGMENTS_AT + SEGMENTS.fields.start, segments.start.desc)
  putPointer(params, SEGMENTS_AT + SEGMENTS.fields.source, segments.source.desc)
  putPointer(params, SEGMENTS_AT + SEGMENTS.fields.target, segments.target.desc)
  return backend.paramsAddress + SEGMENTS_AT
}

/**
 * Depthwise causal convolution and SiLU. x [tokens, groups, n] F32, rows may be strided, weight [kernel, groups · n],
 * state [slots, kernel - 1, groups · n]: the inputs before a segment, oldest first. Returns [tokens, groups, n].
 */
export function causalConv1d(
  x: Tensor,
  weight: Tensor,
  segments: StateSegments,
  state: Tensor,
  out = empty(x, x.shape),
): Tensor {
  const { start, source, target } = segments
  const backend = backendOf("causalConv1d", x, weight, start, source, target, state, out)
  expectShape("causalConv1d", "weight", weight, [weight.dim(0), x.dim(1) * x.dim(2)])
  backend.check(
    backend.library.kt_causal_conv1d(
      backend.ctx,
      x.desc,
      weight.desc,
      putSegments(backend, segments),
      state.desc,
      out.desc,
    ),
    "causalConv1d",
  )
  return out
}

export interface DeltaRuleOperands {
  /** [tokens, kHeads, kDim], L2-normalised by the op */
  readonly q: Tensor
  readonly k: Tensor
  /** [tokens, kHeads, group, vDim]: value head h · group + i goes with key head h */
  readonly v: Tensor
  /** [tokens, kHeads, group]: how much is written is sigmoid(b), how much is kept exp(decay · softplus(a + dtBias)) */
  readonly b: Tensor
  readonly a: Tensor
  /** [kHeads · group], negative: -exp(A_log) */
  readonly decay: Tensor
  /** [kHeads · group] */
  readonly dtBias: Tensor
  /** Multiplies q after its norm; usually 1 / sqrt(kDim). */
  readonly scale: number
  /** Inside the square root of the L2 norms. */
  readonly eps: number
}

/**
 * Gated delta rule (Yang et al., arXiv 2412.06464) token by token: S ← S · e^g; S += k ⊗ β(v - Sᵀk); out = Sᵀq. All F32, rows may
 * be strided. state [slots, kHeads · group, kDim, vDim]. Returns [tokens, kHeads, group, vDim].
 */
export function gatedDeltaRule(
  operands: DeltaRuleOperands,
  segments: StateSegments,
  state: Tensor,
  out = empty(operands.v, operands.v.shape),
): Tensor {
  const { q, k, v, b, a, decay, dtBias } = operands
  const { start, source, target } = segments
  const backend = backendOf(
    "gatedDeltaRule",
    ...[q, k, v, b, a, decay, dtBias, start, source, target, state, out],
  )
  expectShape("gatedDeltaRule", "q", q, k.shape)
  expectShape("gatedDeltaRule", "a", a, b.shape)
  expectShape("gatedDeltaRule", "state", state, [
    state.dim(0),
    v.dim(1) * v.dim(2),
    k.dim(2),
    v.dim(3),
  ])
  const { params } = backend
  const { fields } = DELTA
  params.setUint32(fields.struct_size, DELTA.size, true)
  params.setUint32(fields.abi_version, ABI_VERSION, true)
  putPointer(params, fields.q, q.desc)
  putPointer(params, fields.k, k.desc)
  putPointer(params, fields.v, v.desc)
  putPointer(params, fields.b, b.desc)
  putPointer(params, fields.a, a.desc)
  putPointer(params, fields.decay, decay.desc)
  putPointer(params, fields.dt_bias, dtBias.desc)
  putPointer(params, fields.segments, putSegments(backend, segments))
  putPointer(params, fields.state, state.desc)
  putPointer(params, fields.out, out.desc)
  params.setFloat32(fields.scale, operands.scale, true)
  params.setFloat32(fields.eps, operands.eps, true)
  backend.check(
    backend.library.kt_gated_delta_rule(backend.ctx, backend.paramsAddress),
    "gatedDeltaRule",
  )
  return out
}
