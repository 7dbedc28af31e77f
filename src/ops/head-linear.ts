import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, empty, expectShape } from "./dispatch.ts"

/**
 * Each head's own product: out[t][h] = x[t][h] · w[h]ᵀ, or x[t][h] · w[h] if `transposed`, in f32 at every precision.
 * x [tokens, heads, in] f32, w [heads, out, in] ([heads, in, out] if transposed) of any weight type, unpacked. Views of
 * heads or of rows may be strided.
 */
export function headLinear(
  x: Tensor,
  w: Tensor,
  options: { readonly transposed?: boolean } = {},
  out: Tensor = empty(x, [x.dim(0), x.dim(1), w.dim(options.transposed ? 2 : 1)]),
): Tensor {
  const { transposed = false } = options
  const backend = backendOf("headLinear", x, w, out)
  const own = w.dim(transposed ? 2 : 1)
  const shape = transposed ? [x.dim(1), x.dim(2), own] : [x.dim(1), own, x.dim(2)]
  expectShape("headLinear", "w", w, shape)
  backend.check(
    backend.library.kt_head_linear(backend.ctx, x.desc, w.desc, transposed ? 1 : 0, out.desc),
    "headLinear",
  )
  return out
}
