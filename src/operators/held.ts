import { copy, quantize } from "../ops/index.ts"
import { BF16, type DTypeInfo, F16, F32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"

const FLOATS: ReadonlySet<DTypeInfo> = new Set([F32, F16, BF16])
/** Values that are F32 at a time. */
const CHUNK = 1 << 22

/**
 * A float weight [..., out, in] in another type, in memory of its own; null where it is of that type already or none of
 * F32, F16 and BF16, and where its rows are no whole blocks.
 */
export function held(weight: Tensor, dtype: DTypeInfo): Tensor | null {
  const columns = weight.shape.at(-1) as number
  if (!FLOATS.has(weight.dtype) || weight.dtype === dtype || columns % dtype.blockSize !== 0)
    return null
  const out = Tensor.allocate(weight.backend, dtype, weight.shape)
  const matrices = weight.ndim === 3 ? (weight.shape[0] as number) : 1
  const rows = weight.shape.at(-2) as number
  const most = Math.min(rows, Math.max(1, Math.floor(CHUNK / columns)))
  using floats = Tensor.allocate(weight.backend, F32, [most, columns])
  for (let m = 0; m < matrices; m++) {
    const [from, to] = weight.ndim === 3 ? [weight.select(m), out.select(m)] : [weight, out]
    for (let row = 0; row < rows; row += most) {
      const count = Math.min(most, rows - row)
      const values = floats.narrow(0, 0, count)
      copy(from.narrow(0, row, count), values)
      if (dtype.blockSize === 1) copy(values, to.narrow(0, row, count))
      else quantize(values, null, to.narrow(0, row, count))
    }
  }
  return out
}
