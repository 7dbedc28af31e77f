import { KtError, NativeError } from "../errors.ts"
import { KT_ERR_UNSUPPORTED } from "../native/abi.generated.ts"
import { outSlot } from "../native/memory.ts"
import { Tensor } from "../tensor/tensor.ts"
import { backendOf, descOf, empty, expectShape } from "./dispatch.ts"

/**
 * out = x · wᵀ (+ bias). x [tokens, in] f32, w [out, in] of any weight type, bias [out] f32.
 * With a quantised w and precision "fast", x is rounded to int8 in blocks of 32.
 */
export function linear(
  x: Tensor,
  w: Tensor,
  bias: Tensor | null = null,
  out = empty(x, [x.dim(0), w.dim(0)]),
): Tensor {
  const backend = backendOf("linear", x, w, bias, out)
  expectShape("linear", "w", w, [w.dim(0), x.dim(1)])
  backend.check(
    backend.library.kt_linear(backend.ctx, x.desc, w.desc, descOf(bias), out.desc),
    "linear",
  )
  return out
}

/** linear(rmsNorm(x), w): the last norm and the head. */
export function normLinear(
  x: Tensor,
  normWeight: Tensor,
  eps: number,
  offset: number,
  w: Tensor,
  out = empty(x, [x.dim(0), w.dim(0)]),
): Tensor {
  const backend = backendOf("normLinear", x, normWeight, w, out)
  expectShape("normLinear", "w", w, [w.dim(0), x.dim(1)])
  backend.check(
    backend.library.kt_norm_linear(
      backend.ctx,
      x.desc,
      normWeight.desc,
      eps,
      offset,
      w.desc,
      out.desc,
    ),
    "normLinear",
  )
  return out
}

/** residual += linear(x, w, bias), or residual += rmsNorm(linear(x, w, bias)) with a post norm. In place; residual [tokens, out]. */
export function linearResidual(
  x: Tensor,
  w: Tensor,
  bias: Tensor | null,
  residual: Tensor,
  post: { norm: Tensor; eps: number; offset: number } | null = null,
): Tensor {
  const backend = backendOf("linearResidual", x, w, bias, residual, post?.norm ?? null)
  expectShape("linearResidual", "residual", residual, [x.dim(0), w.dim(0)])
  const status = backend.library.kt_linear_residual(
    backend.ctx,
    x.desc,
    w.desc,
    descOf(bias),
    descOf(post?.norm),
    post?.eps ?? 0,
    post?.offset ?? 0,
    residual.desc,
  )
  backend.check(status, "linearResidual")
  return residual
}

/** Bytes of the weight in the layout of packWeight, or null where its type has none. */
export function packedBytes(w: Tensor): number | null {
  const { backend } = w
  const bytes = outSlot()
  const status = backend.library.kt_packed_bytes(backend.ctx, w.desc, bytes)
  if (status === KT_ERR_UNSUPPORTED) return null
  if (status !== 0) throw new NativeError("packedBytes", status, backend.library.kt_last_error())
  return Number(bytes[0])
}

/**
 * The weight in the kernels' own row-interleaved layout (a copy that lives as long as the backend, on a device as long as it is not disposed of), or null where its type has none.
 * w [out, in] or [experts, out, in]. Packed weights are read with precision "fast" only.
 */
export function packWeight(w: Tensor): Tensor | null {
  const { backend } = w
  if (w.packed) throw new KtError("packWeight: already packed")
  const bytes = packedBytes(w)
  if (bytes === null) return null
  const out = backend.isHost
    ? new Tensor(backend, w.dtype, w.shape, backend.weights.alloc(bytes), {
        packed: true,
        persistent: true,
      })
    : Tensor.allocate(backend, w.dtype, w.shape, { packed: true, bytes })
  backend.check(backend.library.kt_pack_weight(backend.ctx, w.desc, out.desc), "packWeight")
  return out
}
