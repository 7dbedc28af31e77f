import { describe, expect, test } from "bun:test"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"

import fc from "fast-check"

import { ConfigError, FormatError } from "../../src/errors.ts"
import { configFromGguf } from "../../src/models/config-gguf.ts"
import { createModel } from "../../src/models/registry.ts"
import { partsFromGguf } from "../../src/tokenizer/from-gguf.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import { openSafetensors } from "../../src/weights/safetensors.ts"
import { memoryFiles } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"
import { GGUF_GOLDENS, HF_GOLDENS } from "./goldens.ts"

/** What reading one damaged file may take. The files have some hundred kB; a count that is believed takes far more. */
const MAX_GROWTH = 256 * 1024 * 1024
/** The same damage every time. */
const SEED = 20_250_711
const RUNS = 40

/** Bytes that a header of `size` bytes has at random places: single ones, and whole counts of 8. */
function damages(size: number): fc.Arbitrary<readonly (readonly [number, number])[]> {
  const one = fc.tuple(fc.nat(size - 1), fc.integer({ min: 0, max: 255 })).map((flip) => [flip])
  const count = fc
    .tuple(fc.nat(size - 9), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }))
    .map(([at, value]) =>
      Array.from(
        { length: 8 },
        (_, i) => [at + i, Number((value >> BigInt(8 * i)) & 255n)] as const,
      ),
    )
  return fc.oneof(
    fc.array(one, { minLength: 1, maxLength: 4 }).map((flips) => flips.flat()),
    count,
  )
}

async function survives(
  bytes: Uint8Array,
  header: number,
  read: (damaged: Uint8Array) => Promise<void>,
): Promise<void> {
  await read(bytes) // undamaged it is read
  const before = process.memoryUsage().rss
  let refused = 0
  await fc.assert(
    fc.asyncProperty(damages(header), async (changes) => {
      const damaged = Uint8Array.from(bytes) // a Buffer's slice() is a view
      for (const [at, value] of changes) damaged[at] = value
      try {
        await read(damaged)
      } catch (error) {
        if (!(error instanceof FormatError || error instanceof ConfigError)) throw error
        refused++
      }
    }),
    { numRuns: RUNS, seed: SEED },
  )
  await read(bytes) // each run has damaged a copy of its own
  expect(refused).toBeGreaterThan(0)
  expect(process.memoryUsage().rss - before).toBeLessThan(MAX_GROWTH)
}

describe("damaged headers give a model or one of the project's errors, in bounded memory", () => {
  const single = GGUF_GOLDENS.filter(([file]) => !file.includes("-of-"))

  test.each([...single])("%s", async (file) => {
    const bytes = readFileSync(golden("gguf", `${file}.gguf`))
    const whole = openGguf("m.gguf", memoryFiles({ "m.gguf": bytes }))
    const stored = [...whole.names()].reduce((sum, name) => sum + whole.bytes(name).length, 0)
    const header = bytes.length - stored
    expect(header).toBeGreaterThan(1000)
    await survives(bytes, header, async (damaged) => {
      const gguf = openGguf("m.gguf", memoryFiles({ "m.gguf": damaged }))
      for (const name of gguf.names()) gguf.bytes(name)
      await createModel(configFromGguf(gguf))
      partsFromGguf(gguf.metadata, gguf.path)
    })
  })

  const folders = HF_GOLDENS.flatMap((name) => {
    const file = ["model.safetensors", "model-00001-of-00002.safetensors"]
      .map((part) => join(golden("hf", name), part))
      .find((path) => existsSync(path))
    return file === undefined ? [] : [[name, file] as const]
  })

  test("every golden folder has weights", () => {
    expect(folders.map(([name]) => name)).toEqual([...HF_GOLDENS])
  })

  test.each(folders)("%s", async (_name, file) => {
    const bytes = readFileSync(file)
    const header = 8 + Number(bytes.readBigUInt64LE(0))
    await survives(bytes, header, async (damaged) => {
      const read = openSafetensors("m.safetensors", memoryFiles({ "m.safetensors": damaged }))
      for (const tensor of read.names()) read.bytes(tensor)
    })
  })
})
