import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, descOf, empty, expectShape } from "./dispatch.ts"

/**
 * out = (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias, over the innermost dimension.
 * x [..., n], weight [n], bias [n] or null for zeros; out may be x.
 */
export function layerNorm(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  eps: number,
  out = empty(x, x.shape),
): Tensor {
  const backend = backendOf("layerNorm", x, weight, bias, out)
  expectShape("layerNorm", "weight", weight, [x.dim(-1)])
  if (bias !== null) expectShape("layerNorm", "bias", bias, [x.dim(-1)])
  expectShape("layerNorm", "out", out, x.shape)
  backend.check(
    backend.library.kt_layer_norm(backend.ctx, x.desc, weight.desc, descOf(bias), eps, out.desc),
    "layerNorm",
  )
  return out
}
