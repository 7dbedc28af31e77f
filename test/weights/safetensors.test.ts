import { afterAll, describe, expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import fc from "fast-check"

import { ConfigError, FormatError } from "../../src/errors.ts"
import { BF16, F32, I32, isComputable } from "../../src/tensor/dtype.ts"
import { openWeights } from "../../src/weights/open.ts"
import {
  openSafetensors,
  type SafetensorsFile,
  writeSafetensors,
} from "../../src/weights/safetensors.ts"
import { failure } from "../fixtures/format-failure.ts"
import { writeGguf } from "../fixtures/gguf.ts"
import { memoryFiles, readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-safetensors-"))
afterAll(() => rmSync(folder, { recursive: true }))

function file(header: unknown, dataBytes: number, length?: bigint): Uint8Array {
  const text = new TextEncoder().encode(
    typeof header === "string" ? header : JSON.stringify(header),
  )
  const out = new Uint8Array(8 + text.length + dataBytes)
  new DataView(out.buffer).setBigUint64(0, length ?? BigInt(text.length), true)
  out.set(text, 8)
  return out
}

function openBytes(bytes: Uint8Array): SafetensorsFile {
  return openSafetensors("m.safetensors", memoryFiles({ "m.safetensors": bytes }))
}

describe("reference files", () => {
  test.each(readdirSync(golden("hf")))("%s", (name) => {
    const weights = openWeights(golden("hf", name), readWhole)
    const config = JSON.parse(readFileSync(golden("hf", name, "config.json"), "utf8"))
    const names = [...weights.names()]
    const embed = names.find((n) => /(embed_tokens|tok_embeddings)\.weight$/.test(n)) ?? ""
    expect(weights.kind).toBe("safetensors")
    expect(weights.get(embed)).toMatchObject({
      dtype: BF16,
      shape: [config.vocab_size, config.hidden_size],
    })
    expect(names.some((n) => n.includes(`layers.${config.num_hidden_layers - 1}.`))).toBe(true)
    const outputs = openSafetensors(golden("hf", name, "golden.safetensors"), readWhole)
    expect(outputs.get("input_ids")).toMatchObject({ dtype: I32, shape: [2, 32] })
    expect(outputs.get("logits")).toMatchObject({ dtype: F32, shape: [2, 32, 256] })
  })

  test("an index joins shards", () => {
    const weights = openSafetensors(golden("hf", "mixtral"), readWhole)
    expect(weights.files).toHaveLength(2)
    const index = JSON.parse(
      readFileSync(golden("hf", "mixtral", "model.safetensors.index.json"), "utf8"),
    )
    expect([...weights.names()].toSorted()).toEqual(Object.keys(index.weight_map).toSorted())
    expect(weights.totalBytes).toBe(index.metadata.total_size)
  })
})

describe("round trip", () => {
  test("written tensors read back", () => {
    const path = join(folder, "a.safetensors")
    const logits = Float32Array.from({ length: 6 }, (_, i) => i / 7)
    writeSafetensors(
      path,
      {
        ids: { shape: [3], data: Int32Array.of(1, -2, 3) },
        logits: { shape: [2, 3], data: logits },
        half: { shape: [2], data: Uint16Array.of(0x3f80, 0x4000), dtype: "BF16" },
        bytes: { shape: [3], data: Uint8Array.of(1, 2, 3) },
        wide: { shape: [1], data: Float64Array.of(Math.E) },
        none: { shape: [0, 4], data: new Float32Array(0) },
      },
      { kind: "test" },
    )
    const read = openSafetensors(path, readWhole)
    expect(read.metadata).toEqual({ kind: "test" })
    expect(new Float32Array(read.bytes("logits").slice().buffer)).toEqual(logits)
    expect(new Int32Array(read.bytes("ids").slice().buffer)).toEqual(Int32Array.of(1, -2, 3))
    expect(new Float64Array(read.bytes("wide").slice().buffer)).toEqual(Float64Array.of(Math.E))
    expect(read.get("half")).toMatchObject({ dtype: BF16, shape: [2], byteLength: 4 })
    expect(read.get("none")).toMatchObject({ shape: [0, 4], byteLength: 0 })
    const bytes = read.get("bytes")
    expect(bytes?.dtype.name).toBe("U8")
    expect(bytes !== undefined && isComputable(bytes.dtype)).toBe(false)
    for (const name of ["wide", "logits", "ids", "half"]) {
      const entry = read.get(name)
      expect((entry?.address ?? 1) % (entry?.dtype.blockBytes ?? 1)).toBe(0)
    }
    expect(readdirSync(folder).filter((f) => f.endsWith(".tmp"))).toEqual([])
  })

  test("a wrong shape is refused and nothing is written", () => {
    const path = join(folder, "wrong.safetensors")
    expect(() => writeSafetensors(path, { a: { shape: [3], data: new Float32Array(2) } })).toThrow(
      ConfigError,
    )
    expect(() => writeSafetensors(path, { a: { shape: [2], data: new Uint16Array(2) } })).toThrow(
      "needs a dtype",
    )
    expect(() => writeSafetensors(join(folder, "no", "x"), {})).toThrow()
    expect(readdirSync(folder)).not.toContain("wrong.safetensors")
  })
})

describe("defects", () => {
  const entry = (more: object = {}): object => ({
    dtype: "F32",
    shape: [2],
    data_offsets: [0, 8],
    ...more,
  })
  const of = (header: unknown, bytes = 8): string => failure(() => openBytes(file(header, bytes)))

  test("header", () => {
    expect(failure(() => openBytes(new Uint8Array(5)))).toBe(
      "m.safetensors: truncated: 5 bytes, a safetensors file has at least 8",
    )
    expect(failure(() => openBytes(file("{}", 0, 2n ** 60n)))).toContain(
      "header length: 1152921504606846976 is more than the limit",
    )
    expect(failure(() => openBytes(file("{}", 0, 3n)))).toContain(
      "truncated: the header ends at byte 11, the file at 10",
    )
    expect(of("{x}", 0)).toContain("header: is no valid JSON")
    expect(of("[]", 0)).toContain("header: ")
    expect(of({ __metadata__: { a: 1 } }, 0)).toContain("__metadata__.a: ")
  })

  test("entries", () => {
    expect(of({ a: entry({ dtype: "Q9" }) })).toContain('tensor "a": unknown dtype "Q9"')
    expect(of({ a: entry({ shape: [3] }) })).toContain(
      'tensor "a": data_offsets [0, 8] hold 8 bytes, but shape [3] of F32 takes 12',
    )
    expect(of({ a: entry({ shape: [-2] }) })).toContain('tensor "a".shape.0: ')
    expect(of({ a: entry({ shape: [1.5] }) })).toContain('tensor "a".shape.0: ')
    expect(of({ a: entry({ shape: [2 ** 40, 2 ** 40] }) })).toContain("overflows")
    expect(of({ a: entry({ data_offsets: [0] }) })).toContain('tensor "a".data_offsets')
    expect(of({ a: entry({ data_offsets: [8, 0] }) })).toContain("hold -8 bytes")
    expect(of({ a: 5 })).toContain('tensor "a": ')
  })

  test("places", () => {
    expect(of({ a: entry() }, 7)).toContain("truncated: the tensors end at byte")
    expect(of({ a: entry() }, 9)).toContain("1 bytes after the last tensor")
    expect(of({ a: entry(), b: entry({ data_offsets: [4, 12] }) }, 12)).toContain(
      'tensor "b": data_offsets begin at 4 and not at 8',
    )
    expect(of({ a: entry(), b: entry({ data_offsets: [12, 20] }) }, 20)).toContain("leaves a gap")
    const twice =
      '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}'
    expect(of(twice, 4)).toContain("leaves a gap")
  })

  test("index", () => {
    const at = (name: string, index: unknown): string => {
      const path = join(folder, name)
      mkdirSync(path)
      writeFileSync(
        join(path, "model.safetensors.index.json"),
        typeof index === "string" ? index : JSON.stringify(index),
      )
      writeSafetensors(join(path, "one.safetensors"), {
        a: { shape: [1], data: new Float32Array(1) },
      })
      writeSafetensors(join(path, "two.safetensors"), {
        a: { shape: [2], data: new Float32Array(2) },
        b: { shape: [1], data: new Float32Array(1) },
      })
      return path
    }
    const missing = at("i1", { weight_map: { a: "one.safetensors", b: "three.safetensors" } })
    expect(failure(() => openSafetensors(missing, readWhole))).toBe(
      `${join(missing, "three.safetensors")}: is missing, model.safetensors.index.json names it`,
    )
    const wrong = at("i2", { weight_map: { a: "one.safetensors", c: "two.safetensors" } })
    expect(failure(() => openSafetensors(wrong, readWhole))).toContain(
      'weight_map: two.safetensors holds no tensor "c"',
    )
    const outside = at("i3", { weight_map: { a: "../a.safetensors" } })
    expect(failure(() => openSafetensors(outside, readWhole))).toContain(
      '"../a.safetensors" is no plain file name',
    )
    expect(failure(() => openSafetensors(at("i4", { weight_map: {} }), readWhole))).toContain(
      "weight_map: is empty",
    )
    expect(failure(() => openSafetensors(at("i5", "{"), readWhole))).toContain(
      "index: is no valid JSON",
    )
    const good = openSafetensors(
      at("i6", { weight_map: { a: "two.safetensors", b: "two.safetensors" } }),
      readWhole,
    )
    expect(good.get("a")?.shape).toEqual([2])
    const both = openSafetensors(
      at("i7", { weight_map: { a: "one.safetensors", b: "two.safetensors" } }),
      readWhole,
    )
    expect(both.get("a")?.shape).toEqual([1])
    expect(both.get("b")?.shape).toEqual([1])
  })
})

describe("openWeights", () => {
  const make = (name: string, files: readonly string[]): string => {
    const path = join(folder, name)
    mkdirSync(path)
    for (const f of files) {
      if (f.endsWith(".gguf")) writeGguf(join(path, f), { "general.architecture": "llama" })
      else if (f.endsWith(".safetensors")) writeSafetensors(join(path, f), {})
      else writeFileSync(join(path, f), "text")
    }
    return path
  }

  test("finds what a path holds", () => {
    expect(openWeights(make("g1", ["m.gguf", "mmproj-m.gguf", "readme"]), readWhole)).toMatchObject(
      { kind: "gguf", architecture: "llama" },
    )
    expect(openWeights(make("s1", ["x.safetensors"]), readWhole).kind).toBe("safetensors")
    expect(openWeights(make("b1", ["m.gguf", "model.safetensors"]), readWhole).kind).toBe(
      "safetensors",
    )
    expect(openWeights(join(folder, "g1", "m.gguf"), readWhole).kind).toBe("gguf")
    expect(openWeights(join(folder, "s1", "x.safetensors"), readWhole).kind).toBe("safetensors")
  })

  test("says what is wrong with the others", () => {
    const opening = (path: string): string => failure(() => openWeights(path, readWhole))
    expect(opening(join(folder, "none"))).toEndWith("no such file or folder")
    expect(opening(make("e1", []))).toContain("holds no weights")
    expect(opening(make("e2", ["a.gguf", "b.gguf"]))).toContain(
      "holds 2 GGUF models: a.gguf, b.gguf",
    )
    expect(opening(make("e3", ["pytorch_model.bin"]))).toContain("holds PyTorch weights only")
    expect(opening(make("e4", ["m-00002-of-00003.gguf"]))).toContain(
      "m-00001-of-00003.gguf: the first shard is missing",
    )
    expect(opening(make("e5", ["a.safetensors", "b.safetensors"]))).toContain(
      "holds 2 safetensors files, but no model.safetensors.index.json",
    )
    expect(opening(join(make("e6", ["readme"]), "readme"))).toContain("is neither a GGUF file")
  })
})

describe("fuzz", () => {
  const valid = file(
    {
      __metadata__: { a: "b" },
      w: { dtype: "F32", shape: [2, 2], data_offsets: [0, 16] },
      v: { dtype: "U8", shape: [3], data_offsets: [16, 19] },
    },
    19,
  )

  function tolerated(bytes: Uint8Array): void {
    try {
      const read = openBytes(bytes)
      for (const name of read.names()) read.bytes(name)
    } catch (error) {
      if (!(error instanceof FormatError)) throw error
      expect(error.message).toStartWith("m.safetensors: ")
    }
  }

  test("every truncation", () => {
    for (let length = 0; length < valid.length; length++)
      expect(() => openBytes(valid.subarray(0, length))).toThrow(FormatError)
  })

  test("byte flips", () => {
    const flips = fc.array(fc.tuple(fc.nat(valid.length - 1), fc.integer({ min: 0, max: 255 })), {
      minLength: 1,
      maxLength: 4,
    })
    fc.assert(
      fc.property(flips, (changes) => {
        const bytes = valid.slice()
        for (const [at, value] of changes) bytes[at] = value
        tolerated(bytes)
      }),
      { numRuns: 3000 },
    )
  })

  test("any JSON as a header", () => {
    const entry = fc.record(
      {
        dtype: fc.constantFrom("F32", "U8", "Z"),
        shape: fc.array(fc.nat(5)),
        data_offsets: fc.array(fc.integer(), { maxLength: 3 }),
      },
      { requiredKeys: [] },
    )
    fc.assert(
      fc.property(
        fc.oneof(fc.dictionary(fc.string(), fc.oneof(entry, fc.jsonValue())), fc.jsonValue()),
        (header) => {
          tolerated(file(header, 8))
        },
      ),
      { numRuns: 2000 },
    )
  })
})
