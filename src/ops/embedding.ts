import { KtError } from "../errors.ts"
import { F32, I32 } from "../tensor/dtype.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { backendOf, empty, expectDtype, expectShape } from "./dispatch.ts"

/**
 * out[t] = table[ids[t]] · scale. table [vocab, hidden] of any weight type, ids [tokens] I32, out [tokens, hidden] F32.
 * @throws NativeError naming the id when one is outside the table
 */
export function embedding(
  table: Tensor,
  ids: Tensor,
  scale = 1,
  out = empty(table, [ids.dim(0), table.dim(-1)]),
): Tensor {
  const backend = backendOf("embedding", table, ids, out)
  if (table.ndim !== 2)
    throw new KtError(`embedding: table has shape [${table.shape.join(", ")}], expected two`)
  expectDtype("embedding", "ids", ids, I32)
  expectDtype("embedding", "out", out, F32)
  expectShape("embedding", "out", out, [ids.dim(0), table.dim(1)])
  backend.check(
    backend.library.kt_embedding(backend.ctx, table.desc, ids.desc, scale, out.desc),
    "embedding",
  )
  return out
}
