import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, empty, expectShape } from "./dispatch.ts"

/**
 * x / sqrt(mean(x²) + eps) · weight · silu(gate), over the innermost dimension. x, gate [..., n] F32 of one shape, any of the outer
 * dimensions strided, weight [n]; out may be x.
 */
export function gatedRmsNorm(
  x: Tensor,
  gate: Tensor,
  weight: Tensor,
  eps: number,
  out = empty(x, x.shape),
): Tensor {
  const backend = backendOf("gatedRmsNorm", x, gate, weight, out)
  expectShape("gatedRmsNorm", "weight", weight, [x.dim(-1)])
  expectShape("gatedRmsNorm", "gate", gate, x.shape)
  backend.check(
    backend.library.kt_gated_rms_norm(backend.ctx, x.desc, gate.desc, weight.desc, eps, out.desc),
    "gatedRmsNorm",
  )
  return out
}

/** x · sigmoid(gate); x [..., n] F32, gate of the same shape or [..., 1], outer dimensions may be strided; out may be x. */
export function sigmoidMul(x: Tensor, gate: Tensor, out = empty(x, x.shape)): Tensor {
  const backend = backendOf("sigmoidMul", x, gate, out)
  const shape = gate.dim(-1) === 1 ? x.shape.with(-1, 1) : x.shape
  expectShape("sigmoidMul", "gate", gate, shape)
  backend.check(
    backend.library.kt_sigmoid_mul(backend.ctx, x.desc, gate.desc, out.desc),
    "sigmoidMul",
  )
  return out
}
