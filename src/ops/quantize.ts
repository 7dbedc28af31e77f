import { KtError } from "../errors.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, descOf, expectShape } from "./dispatch.ts"

/**
 * out = src in out's type: rows of F32 as blocks whose squared error is small, each column's weighed by `importance`.
 *
 * @param src [rows, n] F32
 * @param importance [n] F32 of at least 0, or null: all columns count alike
 * @param out [rows, n] of any weight type but Q8_K
 * @throws NativeError where n is no multiple of the block, or a value is not finite
 */
export function quantize(src: Tensor, importance: Tensor | null, out: Tensor): Tensor {
  const backend = backendOf("quantize", src, importance, out)
  if (src.ndim !== 2)
    throw new KtError(`quantize: src has shape [${src.shape.join(", ")}], expected two dimensions`)
  expectShape("quantize", "out", out, src.shape)
  backend.check(
    backend.library.kt_quantize(backend.ctx, src.desc, descOf(importance), out.desc),
    "quantize",
  )
  return out
}
