import { F32, I32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, empty, expectDtype, expectShape } from "./dispatch.ts"

/**
 * Cosines and sines of the rotary embedding, one row a token: [cos(p · f) · scale …, sin(p · f) · scale …].
 * positions [tokens] i32, invFreq [n], [1, n] or [tokens, n]; returns [tokens, 2n].
 */
export function ropeTable(positions: Tensor, invFreq: Tensor, scale = 1, out?: Tensor): Tensor {
  const frequencies = invFreq.ndim === 1 ? invFreq.reshape([1, invFreq.dim(0)]) : invFreq
  const table = out ?? empty(positions, [positions.dim(0), 2 * frequencies.dim(1)], F32)
  const backend = backendOf("ropeTable", positions, invFreq, table)
  expectDtype("ropeTable", "positions", positions, I32)
  backend.check(
    backend.library.kt_rope_table(backend.ctx, positions.desc, frequencies.desc, scale, table.desc),
    "ropeTable",
  )
  return table
}

/**
 * Rotates the first 2n values of every head in place. x [tokens, heads, dim], table [tokens, 2n];
 * pairs are (i, i + n), or (2i, 2i + 1) when interleaved.
 */
export function rope(x: Tensor, table: Tensor, interleaved = false): Tensor {
  const backend = backendOf("rope", x, table)
  expectShape("rope", "table", table, [x.dim(0), table.dim(1)])
  backend.check(
    backend.library.kt_rope(backend.ctx, x.desc, table.desc, interleaved ? 1 : 0),
    "rope",
  )
  return x
}
