import { test } from "bun:test"

import { linear, linearResidual } from "../../src/ops/linear.ts"
import { BF16, F16 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import * as reference from "../reference/linear.ts"
import { describeBackends, expectClose, randomArray } from "./harness.ts"
import { dequantized, QUANTIZED, randomWeight } from "./weights.ts"

/** More tokens than tiles ever need to be faster, with tails of every kind, and more than one pass over the rows. */
const TOKENS = [64, 65, 80, 97, 300]
/** One tile, tails of a tile and of a pair of tiles. */
const ROWS = [16, 17, 33, 64]
/** Among so many values some round to the other int8 than in float64. */
const INT8_ROUNDING = 2e-4
/** Half a unit in the last of 8 significant bits, on either side. */
const BF16_ROUNDING = 3e-3
const TYPES = [...QUANTIZED, BF16, F16]

describeBackends(
  "many tokens",
  (backend) => {
    // a level with tiles may choose int8 vectors all the same, where tiles are emulated
    const tiles = backend.isa === "amx" && Number(process.env["KT_AMX_TOKENS"]) <= 64
    for (const dtype of TYPES) {
      test(dtype.name, () => {
        backend.precision = "fast"
        const float = dtype.blockSize === 1
        const tolerance = float || tiles ? BF16_ROUNDING : INT8_ROUNDING
        // less than one block of 256 columns, a ragged one, several
        for (const wanted of [32, 96, 320, 1024]) {
          const n = Math.ceil(wanted / dtype.blockSize) * dtype.blockSize
          for (const rows of n === 1024 ? [33] : ROWS) {
            const w = randomWeight(backend, dtype, [rows, n], rows + n)
            const values = dequantized(w)
            const bias = randomArray(rows, 5)
            for (const tokens of rows === 33 ? TOKENS : [TOKENS[1] as number]) {
              const x = randomArray(tokens * n, tokens + n)
              const rounded = float || tiles ? x : reference.roundToInt8(x)
              const input = Tensor.from(backend, x, [tokens, n])
              const got = linear(input, w, Tensor.from(backend, bias)).toFloat32Array()
              expectClose(got, reference.linear(rounded, values, n, bias), tolerance)
              const start = randomArray(tokens * rows, 7)
              const residual = Tensor.from(backend, start, [tokens, rows])
              linearResidual(input, w, null, residual)
              const plain = reference.linear(rounded, values, n)
              const sum = plain.map((v, i) => v + (start[i] as number))
              expectClose(residual.toFloat32Array(), sum, tolerance)
              backend.resetStep()
            }
          }
        }
      })
    }
  },
  "cpu",
)
