import { afterAll, describe, expect, test } from "bun:test"
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { FormatError } from "../../src/errors.ts"
import { I8 } from "../../src/tensor/dtype.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import { openWeights } from "../../src/weights/open.ts"
import { ggufBytes, u16, writeGguf } from "../fixtures/gguf.ts"
import { readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-mapped-"))
afterAll(() => rmSync(folder, { recursive: true }))

describe("the native mapping gives what reading the file gives", () => {
  const ggufs = readdirSync(golden("gguf")).filter(
    (f) => f.endsWith(".gguf") && !f.includes("-00002-"),
  )
  const paths = [
    ...ggufs.map((f) => golden("gguf", f)),
    ...readdirSync(golden("hf")).map((f) => golden("hf", f)),
  ]

  test.each(paths.map((path) => path.slice(golden().length + 1)))("%s", (name) => {
    const mapped = openWeights(golden(name))
    const read = openWeights(golden(name), readWhole)
    expect([...mapped.names()]).toEqual([...read.names()])
    for (const tensor of mapped.names()) {
      const entry = mapped.get(tensor)
      expect(entry).toEqual({ ...read.get(tensor), address: entry?.address } as NonNullable<
        typeof entry
      >)
      expect(entry?.address).toBeGreaterThan(4096)
      expect(mapped.bytes(tensor)).toEqual(read.bytes(tensor))
    }
    mapped.close()
    expect([...mapped.names()]).toEqual([])
    mapped.close()
  })
})

test("tensors beyond 4 GiB keep their place", () => {
  const path = join(folder, "large.gguf")
  const length = 4 * 1024 ** 3 + 96
  const small = { name: "b", dtype: I8, shape: [64], data: new Uint8Array(64).fill(7) }
  // The table of a file whose first tensor is larger than 4 GiB; the data is a hole, but for the
  // last tensor.
  const header = ggufBytes({ "general.architecture": "llama" }, [
    { name: "a", dtype: I8, shape: [length], data: new Uint8Array(0) },
    small,
  ])
  const start = header.length - 64
  const fd = openSync(path, "w")
  ftruncateSync(fd, start + length + 64)
  writeSync(fd, header, 0, start, 0)
  writeSync(fd, small.data, 0, 64, start + length)
  closeSync(fd)
  const gguf = openGguf(path)
  expect(gguf.totalBytes).toBe(length + 64)
  expect((gguf.get("b")?.address ?? 0) - (gguf.get("a")?.address ?? 0)).toBe(length)
  expect(gguf.bytes("b")).toEqual(small.data)
  gguf.close()
})

test("files that cannot be mapped are one FormatError", () => {
  const empty = join(folder, "empty.gguf")
  writeFileSync(empty, "")
  expect(() => openGguf(empty)).toThrow(FormatError)
  expect(() => openGguf(join(folder, "none.gguf"))).toThrow(FormatError)
  const first = join(folder, "m-00001-of-00002.gguf")
  writeGguf(first, { "general.architecture": "llama", "split.count": u16(2), "split.no": u16(0) })
  expect(() => openGguf(first)).toThrow("m-00002-of-00002.gguf: shard 2 of 2 cannot be opened: ")
})
