import { KtError } from "../errors.ts"
import { type DTypeInfo, F32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, empty, expectShape } from "./dispatch.ts"

/**
 * Activation functions of gated MLPs, by their Hugging Face `hidden_act` names; swiglu_oai is gpt-oss' own, which clamps
 * both operands and adds 1 to `up`.
 */
export const ACTIVATIONS = {
  silu: 0,
  gelu_pytorch_tanh: 1,
  gelu: 2,
  relu: 3,
  swiglu_oai: 4,
} as const
export type Activation = keyof typeof ACTIVATIONS

/**
 * out = src, both of one shape, either may be a strided view. Converts between F32, F16, BF16 and I32 (toward zero,
 * saturating, NaN to 0), and from any weight type to F32; equal types are copied as they are.
 */
export function copy(src: Tensor, out: Tensor): Tensor {
  const backend = backendOf("copy", src, out)
  expectShape("copy", "out", out, src.shape)
  backend.check(backend.library.kt_copy(backend.ctx, src.desc, out.desc), "copy")
  return out
}

/** src in another plain type, contiguous. */
export function cast(src: Tensor, dtype: DTypeInfo): Tensor {
  return copy(src, empty(src, src.shape, dtype))
}

/** The values of a weight of any type in F32; src [..., n] in the file's layout (not packed). */
export function dequantize(src: Tensor, out = empty(src, src.shape)): Tensor {
  if (out.dtype !== F32) throw new KtError(`dequantize: out is ${out.dtype.name}, expected F32`)
  return copy(src, out)
}

/** out = a + b, F32 of one shape, rows may be strided; out may be a. */
export function add(a: Tensor, b: Tensor, out = empty(a, a.shape)): Tensor {
  const backend = backendOf("add", a, b, out)
  expectShape("add", "b", b, a.shape)
  expectShape("add", "out", out, a.shape)
  backend.check(backend.library.kt_add(backend.ctx, a.desc, b.desc, out.desc), "add")
  return out
}

/** out = act(gate) · up (or what the activation makes of both); [tokens, n] F32, rows may be strided; out may be gate or up. */
export function actMul(
  gate: Tensor,
  up: Tensor,
  act: Activation,
  out = empty(gate, gate.shape),
): Tensor {
  const backend = backendOf("actMul", gate, up, out)
  expectShape("actMul", "up", up, gate.shape)
  expectShape("actMul", "out", out, gate.shape)
  backend.check(
    backend.library.kt_act_mul(backend.ctx, gate.desc, up.desc, ACTIVATIONS[act], out.desc),
    "actMul",
  )
  return out
}

const TANH = 5

/** out = f(x), f being an activation that takes no second operand, or tanh; [tokens, n] F32, rows may be strided; out may be x. */
export function act(
  x: Tensor,
  name: Exclude<Activation, "swiglu_oai"> | "tanh",
  out = empty(x, x.shape),
): Tensor {
  const backend = backendOf("act", x, out)
  expectShape("act", "out", out, x.shape)
  const kind = name === "tanh" ? TANH : ACTIVATIONS[name]
  backend.check(backend.library.kt_act(backend.ctx, x.desc, kind, out.desc), "act")
  return out
}
