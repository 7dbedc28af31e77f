import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, descOf, empty, expectShape } from "./dispatch.ts"

/**
 * out = x / sqrt(mean(x²) + eps) · (weight + offset), over the innermost dimension.
 * x [..., n], weight [n] or null for ones; Gemma stores weight - 1 (offset 1).
 */
export function rmsNorm(
  x: Tensor,
  weight: Tensor | null,
  eps: number,
  offset = 0,
  out = empty(x, x.shape),
): Tensor {
  const backend = backendOf("rmsNorm", x, weight, out)
  if (weight !== null) expectShape("rmsNorm", "weight", weight, [x.dim(-1)])
  backend.check(
    backend.library.kt_rms_norm(backend.ctx, x.desc, descOf(weight), eps, offset, out.desc),
    "rmsNorm",
  )
  return out
}

/** residual += x, then rmsNorm(residual). residual, x [..., n]; residual is changed in place. */
export function addRmsNorm(
  residual: Tensor,
  x: Tensor,
  weight: Tensor,
  eps: number,
  offset = 0,
  out = empty(x, x.shape),
): Tensor {
  const backend = backendOf("addRmsNorm", residual, x, weight, out)
  expectShape("addRmsNorm", "x", x, residual.shape)
  expectShape("addRmsNorm", "weight", weight, [x.dim(-1)])
  backend.check(
    backend.library.kt_add_rms_norm(
      backend.ctx,
      residual.desc,
      x.desc,
      weight.desc,
      eps,
      offset,
      out.desc,
    ),
    "addRmsNorm",
  )
  return out
}
