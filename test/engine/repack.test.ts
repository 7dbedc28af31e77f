import { expect, test } from "bun:test"

import { Repacking } from "../../src/engine/repack.ts"
import { Backend } from "../../src/native/backend.ts"
import { packedBytes } from "../../src/ops/linear.ts"
import { F32, IQ3_S, Q8_0 } from "../../src/tensor/dtype.ts"
import { byteLength, type Tensor } from "../../src/tensor/tensor.ts"
import { randomWeight } from "../ops/weights.ts"

test("weights that grow are rearranged while memory lasts, others always", () => {
  using backend = new Backend({ threads: 1 })
  const weight = (dtype: typeof Q8_0): Tensor => randomWeight(backend, dtype, [16, 256], 1)
  const grows = weight(IQ3_S)
  const growth = (packedBytes(grows) as number) - byteLength(IQ3_S, [16, 256])
  expect(growth).toBeGreaterThan(0)

  const repacking = new Repacking(growth + 1)
  expect(repacking.pack(grows)?.packed).toBe(true)
  expect(repacking.note).toBeUndefined()
  expect(repacking.pack(grows)).toBeNull()
  expect(repacking.pack(weight(Q8_0))?.packed).toBe(true)
  expect(repacking.pack(weight(F32))).toBeNull()
  expect(repacking.note).toBe(
    "1 weights are read as the file has them, slower: rearranged they need 1 MiB more than is free",
  )
})
