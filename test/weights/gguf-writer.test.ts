import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { F16, F32, Q4_K, Q8_0 } from "../../src/tensor/dtype.ts"
import { fieldsOf, type GgufField, GgufWriter } from "../../src/weights/gguf-writer.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import { SafetensorsWriter } from "../../src/weights/safetensors-writer.ts"
import { openSafetensors } from "../../src/weights/safetensors.ts"
import { readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-gguf-writer-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const FIELDS = new Map<string, GgufField>([
  ["general.architecture", { type: "string", value: "llama" }],
  ["a.u8", { type: "u8", value: 200 }],
  ["a.i8", { type: "i8", value: -3 }],
  ["a.u16", { type: "u16", value: 65_535 }],
  ["a.i16", { type: "i16", value: -5 }],
  ["a.u32", { type: "u32", value: 4_294_967_295 }],
  ["a.i32", { type: "i32", value: -7 }],
  ["a.f32", { type: "f32", value: 3 }],
  ["a.f64", { type: "f64", value: Math.PI }],
  ["a.u64", { type: "u64", value: 2n ** 64n - 1n }],
  ["a.i64", { type: "i64", value: -(2n ** 63n) }],
  ["a.bool", { type: "bool", value: true }],
  ["a.text", { type: "string", value: "héllo\u{1f600}" }],
  ["a.strings", { type: "string", value: ["", "x", "▁"] }],
  ["a.bools", { type: "bool", value: [true, false] }],
  ["a.ints", { type: "i32", value: Int32Array.of(1, -2) }],
  ["a.floats", { type: "f32", value: Float32Array.of(0.5, -2) }],
])

const TENSORS = [
  { name: "one", dtype: F32, shape: [3] },
  { name: "two", dtype: Q8_0, shape: [2, 3, 32] },
  { name: "three", dtype: F16, shape: [5, 7] },
]

function bytesOf(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + seed * 7) % 251)
}

const BYTES = [bytesOf(12, 1), bytesOf(6 * 34, 2), bytesOf(70, 3)]

function writeAll(writer: GgufWriter): void {
  TENSORS.forEach(({ name }, i) => {
    const bytes = BYTES[i] as Uint8Array
    for (let at = 0; at < bytes.length; at += 10) writer.write(name, bytes.subarray(at, at + 10))
  })
  writer.finish()
}

describe("GGUF writer", () => {
  test("every value type, and tensors written in pieces, are read back", () => {
    const path = join(folder, "all.gguf")
    using writer = new GgufWriter(path, FIELDS, TENSORS)
    expect(readdirSync(folder).some((name) => name === "all.gguf")).toBe(false)
    writeAll(writer)
    const gguf = openGguf(path, readWhole)
    expect(fieldsOf(gguf.metadata, gguf.metadataTypes)).toEqual(FIELDS)
    expect([...gguf.names()]).toEqual(["one", "two", "three"])
    TENSORS.forEach(({ name, dtype, shape }, i) => {
      expect(gguf.get(name)).toMatchObject({ dtype, shape })
      expect(gguf.bytes(name)).toEqual(BYTES[i] as Uint8Array)
    })
    expect(readdirSync(folder)).toEqual(["all.gguf"])
  })

  test("an alignment of its own is said and kept", () => {
    const path = join(folder, "aligned.gguf")
    using writer = new GgufWriter(path, FIELDS, TENSORS, { alignment: 256 })
    writeAll(writer)
    const gguf = openGguf(path, readWhole)
    expect(gguf.metadata.get("general.alignment")).toBe(256)
    expect(gguf.bytes("three")).toEqual(BYTES[2] as Uint8Array)
  })

  test("more bytes than fit into one file go into the next", () => {
    using writer = new GgufWriter(join(folder, "parts.gguf"), FIELDS, TENSORS, {
      splitMaxBytes: 260,
    })
    expect(writer.paths.map((path) => path.slice(folder.length + 1))).toEqual([
      "parts-00001-of-00002.gguf",
      "parts-00002-of-00002.gguf",
    ])
    writeAll(writer)
    const gguf = openGguf(writer.paths[0] as string, readWhole)
    expect(gguf.files).toHaveLength(2)
    expect(gguf.metadata.get("split.tensors.count")).toBe(3)
    TENSORS.forEach(({ name }, i) => expect(gguf.bytes(name)).toEqual(BYTES[i] as Uint8Array))
  })

  test("a file of another program is written again as it was", () => {
    const source = openGguf(golden("gguf/llama-rope-q4_k_m.gguf"), readWhole)
    const path = join(folder, "again.gguf")
    const plans = [...source.names()].map((name) => {
      const { dtype, shape } = source.get(name)!
      return { name, dtype, shape }
    })
    using writer = new GgufWriter(path, fieldsOf(source.metadata, source.metadataTypes), plans)
    for (const { name } of plans) writer.write(name, source.bytes(name))
    writer.finish()
    const copy = openGguf(path, readWhole)
    expect(copy.metadata).toEqual(source.metadata)
    expect(copy.metadataTypes).toEqual(source.metadataTypes)
    for (const { name } of plans) expect(copy.bytes(name)).toEqual(source.bytes(name))
  })

  test("what is wrong is refused, and an unfinished file leaves nothing behind", () => {
    const path = join(folder, "bad.gguf")
    const make = (shape: number[]): GgufWriter =>
      new GgufWriter(path, FIELDS, [{ name: "w", dtype: Q4_K, shape }])
    expect(() => make([2, 100])).toThrow(/"w": rows of 100 values/)
    expect(() => make([1, 1, 1, 1, 256])).toThrow(/5 dimensions/)
    expect(() => new GgufWriter(join(folder, "no", "x.gguf"), FIELDS, [])).toThrow(
      /cannot be written/,
    )
    {
      using writer = make([1, 256])
      expect(() => writer.write("v", new Uint8Array(4))).toThrow(/where "w" is next/)
      expect(() => writer.write("w", new Uint8Array(145))).toThrow(/145 bytes, planned were 144/)
      expect(() => writer.finish()).toThrow(/"w" is not written to its end/)
    }
    expect(readdirSync(folder).filter((name) => name.includes("bad"))).toEqual([])
  })
})

describe("safetensors writer", () => {
  test("tensors come in pieces and in the writer's order", () => {
    const path = join(folder, "x.safetensors")
    using writer = new SafetensorsWriter(
      path,
      [
        { name: "h", dtype: "BF16", shape: [3] },
        { name: "none", dtype: "F32", shape: [0] },
        { name: "f", dtype: "F32", shape: [2, 2] },
      ],
      { by: "test" },
    )
    expect(writer.tensors.map(({ name }) => name)).toEqual(["none", "f", "h"])
    const f = bytesOf(16, 4)
    const h = bytesOf(6, 5)
    expect(() => writer.write("h", h)).toThrow(/"h" is written where "f" is next/)
    writer.write("f", f.subarray(0, 5))
    expect(() => writer.finish()).toThrow(/"f" is not written to its end/)
    writer.write("f", f.subarray(5))
    expect(() => writer.write("f", f)).toThrow(/more bytes/)
    writer.write("h", h)
    writer.finish()
    const file = openSafetensors(path, readWhole)
    expect(file.metadata).toEqual({ by: "test" })
    expect(file.bytes("f")).toEqual(f)
    expect(file.bytes("h")).toEqual(h)
    expect(file.get("none")?.shape).toEqual([0])
  })
})
