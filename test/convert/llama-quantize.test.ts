import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { defaultModelPath } from "../../src/cli/home.ts"
import { convertFolder } from "../../src/convert/convert-folder.ts"
import { fileType } from "../../src/convert/file-types.ts"
import { FloatRows } from "../../src/convert/float-rows.ts"
import { quantizeFile } from "../../src/convert/quantize-file.ts"
import { Backend } from "../../src/native/backend.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { ggufToFolder } from "./gguf-to-folder.ts"
import { llamaCpp, missingProgram } from "./llama-cpp.ts"

const reason =
  missingProgram("llama-quantize") ??
  (existsSync(defaultModelPath()) ? undefined : `${defaultModelPath()} is missing`)

/** Tensors of SmolLM2 that are compared: every kind, and a layer that mixed types treat with care. */
const COMPARED = /^(token_embd|blk\.(0|11)\.(attn_(q|k|v|output)|ffn_(gate|up|down)))\.weight$/

describe.skipIf(reason !== undefined)(
  `a real model beside llama-quantize [${reason ?? "found"}]`,
  () => {
    const folder = mkdtempSync(join(tmpdir(), "kt-quantize-"))
    const backend = new Backend({})
    const floats = join(folder, "f32.gguf")
    afterAll(() => {
      backend[Symbol.dispose]()
      rmSync(folder, { recursive: true, force: true })
    })

    beforeAll(async () => {
      const hf = join(folder, "hf")
      await ggufToFolder(defaultModelPath(), hf, backend)
      await convertFolder(hf, floats, backend, { type: "f32" })
    }, 120_000)

    /** Squared error of one tensor of a file against the floats. */
    function squaredError(source: GgufFile, file: GgufFile, name: string): number {
      using left = new FloatRows(backend)
      using right = new FloatRows(backend)
      let sum = 0
      left.forEach(source.get(name)!, (piece, first) => {
        const want = new Float32Array(piece.bytes().slice().buffer)
        right.forEach(
          file.get(name)!,
          (other) => {
            const got = new Float32Array(other.bytes().slice().buffer)
            for (let i = 0; i < want.length; i++) sum += (got[i]! - want[i]!) ** 2
          },
          { first, count: piece.dim(0) },
        )
      })
      return sum
    }

    for (const type of ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "Q4_0"]) {
      test(`${type}: each tensor's type is the same, its error at most 1.02 times as large`, () => {
        const ours = join(folder, "ours.gguf")
        const theirs = join(folder, "theirs.gguf")
        const source = openGguf(floats)
        quantizeFile(source, ours, backend, { fileType: fileType(type) })
        const { status } = llamaCpp("llama-quantize", [floats, theirs, type])
        expect(status).toBe(0)
        const [a, b] = [openGguf(ours), openGguf(theirs)]
        try {
          for (const name of source.names()) {
            expect([name, a.get(name)?.dtype.name]).toEqual([name, b.get(name)?.dtype.name])
            if (!COMPARED.test(name)) continue
            const [left, right] = [squaredError(source, a, name), squaredError(source, b, name)]
            expect(Math.sqrt(left)).toBeLessThanOrEqual(1.02 * Math.sqrt(right))
          }
        } finally {
          for (const file of [a, b, source]) file.close()
        }
      }, 120_000)
    }
  },
)
