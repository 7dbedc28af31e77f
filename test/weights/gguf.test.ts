import { describe, expect, test } from "bun:test"
import { readdirSync } from "node:fs"

import fc from "fast-check"

import { FormatError } from "../../src/errors.ts"
import { BF16, dtypeById, F16, F32, isComputable, Q4_0, Q8_0 } from "../../src/tensor/dtype.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { failure } from "../fixtures/format-failure.ts"
import {
  array,
  f32,
  f32Tensor,
  type FixtureTensor,
  type FixtureValue,
  ggufBytes,
  type GgufOptions,
  u16,
} from "../fixtures/gguf.ts"
import { memoryFiles, readWhole } from "../fixtures/sources.ts"
import { golden } from "../setup.ts"

const META = { "general.architecture": "llama", "llama.block_count": 2 }

function openBytes(bytes: Uint8Array, path = "model.gguf"): GgufFile {
  return openGguf(path, memoryFiles({ [path]: bytes }))
}

function build(
  metadata: Readonly<Record<string, FixtureValue>> = META,
  tensors: readonly FixtureTensor[] = [],
  options: GgufOptions = {},
): GgufFile {
  return openBytes(ggufBytes(metadata, tensors, options))
}

describe("reference files", () => {
  const files = readdirSync(golden("gguf")).filter(
    (f) => f.endsWith(".gguf") && !f.includes("-00002-"),
  )

  test.each(files)("%s", (file) => {
    const gguf = openGguf(golden("gguf", file), readWhole)
    const { architecture } = gguf
    const layers = Number(gguf.metadata.get(`${architecture}.block_count`))
    const hidden = Number(gguf.metadata.get(`${architecture}.embedding_length`))
    expect(gguf.version).toBe(3)
    const embed = gguf.get("token_embd.weight")
    const tokens = gguf.metadata.get("tokenizer.ggml.tokens") as readonly string[]
    expect(embed?.shape).toEqual([tokens.length, hidden])
    expect(gguf.get(`blk.${layers - 1}.attn_norm.weight`)?.shape).toEqual([hidden])
    expect(gguf.get(`blk.${layers}.attn_norm.weight`)).toBeUndefined()
    let total = 0
    for (const name of gguf.names()) {
      const entry = gguf.get(name)
      total += entry?.byteLength ?? 0
      expect(gguf.bytes(name).length).toBe(entry?.byteLength as number)
    }
    expect(total).toBe(gguf.totalBytes)
    const norm = gguf.bytes("output_norm.weight").slice()
    expect(new Float32Array(norm.buffer).every(Number.isFinite)).toBe(true)
  })

  test("all 27 block types parse, computable or not", () => {
    const gguf = openGguf(golden("gguf", "qwen3moe-mixed.gguf"), readWhole)
    const types = new Set([...gguf.names()].map((name) => gguf.get(name)?.dtype.name))
    types.delete("F32")
    expect(types.size).toBe(27)
    for (const name of gguf.names()) {
      const { dtype } = gguf.get(name)!
      expect([dtype.name, isComputable(dtype)]).toEqual([dtype.name, dtype.name !== "Q8_1"])
    }
  })

  test("block sizes agree with the reference table", async () => {
    const { openSafetensors } = await import("../../src/weights/safetensors.ts")
    for (const file of readdirSync(golden("quant")).filter((f) => f.endsWith(".safetensors"))) {
      const { metadata } = openSafetensors(golden("quant", file), readWhole)
      const dtype = dtypeById(Number(metadata["ggml_type"]))
      expect([dtype?.blockSize, dtype?.blockBytes]).toEqual([
        Number(metadata["block"]),
        Number(metadata["block_bytes"]),
      ])
    }
  })

  test("shards join", () => {
    const gguf = openGguf(golden("gguf", "qwen3moe-split-q8_0-00001-of-00002.gguf"), readWhole)
    expect(gguf.files).toHaveLength(2)
    expect([...gguf.names()]).toHaveLength(27)
    expect(gguf.get("blk.1.ffn_up_exps.weight")?.shape).toEqual([5, 32, 64])
    expect(gguf.get("blk.1.ffn_up_exps.weight")?.file).toEndWith("-00002-of-00002.gguf")
  })

  test("opening a later shard names the first", () => {
    const path = golden("gguf", "qwen3moe-split-q8_0-00002-of-00002.gguf")
    try {
      openGguf(path, readWhole)
      throw new Error("expected a FormatError")
    } catch (error) {
      expect((error as FormatError).message).toContain("split.no: 1, this is shard 2 of 2")
      expect((error as FormatError).hint).toContain("-00001-of-00002.gguf")
    }
  })
})

describe("round trip", () => {
  test("every value type", () => {
    const gguf = build({
      ...META,
      u8: { type: "u8", value: 200 },
      i8: { type: "i8", value: -5 },
      u16: u16(65535),
      i16: { type: "i16", value: -3 },
      u32: 4294967295,
      i32: -7,
      f32: f32(0.5),
      bool: true,
      string: "naïve ▁ \ufeffx",
      u64: 2n ** 63n,
      i64: -9n,
      f64: { type: "f64", value: Math.PI },
      strings: ["a", "", "ä"],
      bools: array("bool", [true, false]),
      bytes: array("u8", [1, 2]),
      ints: array("i32", [-1, 2]),
      floats: array("f32", [0.5]),
      longs: array("u64", [1n, 2n ** 60n]),
      empty: array("string", []),
    })
    const { metadata } = gguf
    expect(metadata.get("u8")).toBe(200)
    expect(metadata.get("i8")).toBe(-5)
    expect(metadata.get("u16")).toBe(65535)
    expect(metadata.get("i16")).toBe(-3)
    expect(metadata.get("u32")).toBe(4294967295)
    expect(metadata.get("i32")).toBe(-7)
    expect(metadata.get("f32")).toBe(0.5)
    expect(metadata.get("bool")).toBe(true)
    expect(metadata.get("string")).toBe("naïve ▁ \ufeffx")
    expect(metadata.get("u64")).toBe(2n ** 63n)
    expect(metadata.get("i64")).toBe(-9n)
    expect(metadata.get("f64")).toBe(Math.PI)
    expect(metadata.get("strings")).toEqual(["a", "", "ä"])
    expect(metadata.get("bools")).toEqual([true, false])
    expect(metadata.get("bytes")).toEqual(new Uint8Array([1, 2]))
    expect(metadata.get("ints")).toEqual(new Int32Array([-1, 2]))
    expect(metadata.get("floats")).toEqual(new Float32Array([0.5]))
    expect(metadata.get("longs")).toEqual(new BigUint64Array([1n, 2n ** 60n]))
    expect(metadata.get("empty")).toEqual([])
  })

  test.each([2, 3])("version %d, shapes in PyTorch order, data where it was put", (version) => {
    const values = [1, 2, 3, 4, 5, 6]
    const tensors = [
      { name: "a", dtype: Q4_0, shape: [3, 64] },
      f32Tensor("b", [2, 3], values),
      { name: "c", dtype: F16, shape: [5] },
    ]
    const gguf = build(META, tensors, { version })
    expect(gguf.version).toBe(version)
    expect(gguf.get("a")).toMatchObject({
      shape: [3, 64],
      byteLength: 108,
      dtype: Q4_0,
      file: "model.gguf",
    })
    expect([...new Float32Array(gguf.bytes("b").slice().buffer)]).toEqual(values)
    expect(gguf.totalBytes).toBe(108 + 24 + 10)
    expect(gguf.get("b")?.address).toBe((gguf.get("a")?.address ?? 0) + 128)
  })

  test("another alignment", () => {
    const tensors = [f32Tensor("a", [1], [7]), f32Tensor("b", [1], [8])]
    const gguf = build({ ...META, "general.alignment": 256 }, tensors, { alignment: 256 })
    expect((gguf.get("b")?.address ?? 0) % 256).toBe(0)
    expect([...new Float32Array(gguf.bytes("b").slice().buffer)]).toEqual([8])
  })

  test("values longer than the reading window", () => {
    const text = "x".repeat(700_000)
    const numbers = Array.from({ length: 300_000 }, (_, i) => i)
    const gguf = build({ ...META, text, numbers, after: 5 })
    expect(gguf.metadata.get("text")).toBe(text)
    expect((gguf.metadata.get("numbers") as Int32Array)[299_999]).toBe(299_999)
    expect(gguf.metadata.get("after")).toBe(5)
  })

  test("large vocabularies are read fast and nothing behind the header is", () => {
    const tokens = Array.from({ length: 50_000 }, (_, i) => `▁token${i}`)
    const merges = Array.from({ length: 50_000 }, (_, i) => `tok en${i}`)
    const bytes = ggufBytes({ ...META, tokens, merges }, [
      { name: "big", dtype: F32, shape: [4_000_000] },
    ])
    let furthest = 0
    const open = memoryFiles({ m: bytes })
    const start = performance.now()
    const gguf = openGguf("m", (path) => {
      const source = open(path)
      const read = (offset: number, length: number): Uint8Array => {
        furthest = Math.max(furthest, offset + length)
        return source.read(offset, length)
      }
      return { ...source, read }
    })
    const elapsed = performance.now() - start
    expect((gguf.metadata.get("merges") as string[])[49_999]).toBe("tok en49999")
    expect(elapsed).toBeLessThan(150)
    expect(furthest).toBeLessThan(bytes.length - 4_000_000)
  })

  test("closing disposes of every shard", () => {
    const open = memoryFiles({ m: ggufBytes(META) })
    let closed = 0
    const gguf = openGguf("m", (path) => ({ ...open(path), [Symbol.dispose]: () => void closed++ }))
    expect(closed).toBe(0)
    gguf.close()
    expect(closed).toBe(1)
    expect(() =>
      openGguf("m", (path) => ({ ...open(path), size: 10, [Symbol.dispose]: () => void closed++ })),
    ).toThrow()
    expect(closed).toBe(2)
  })
})

describe("defects", () => {
  /** The valid file with some bytes replaced. */
  function patched(
    at: number,
    bytes: readonly number[],
    file = ggufBytes(META, [f32Tensor("w", [4], [1, 2, 3, 4])]),
  ): Uint8Array {
    const out = file.slice()
    out.set(bytes, at)
    return out
  }
  const u64 = (n: bigint): number[] => [...new Uint8Array(new BigUint64Array([n]).buffer)]

  test("magic, byte order, version", () => {
    expect(failure(() => openBytes(patched(0, [0x50])))).toContain("magic: 0x46554750")
    expect(failure(() => openBytes(patched(4, [0, 0, 0, 3])))).toContain("big-endian")
    expect(failure(() => openBytes(patched(4, [1])))).toContain("version: 1")
    expect(failure(() => openBytes(patched(4, [9])))).toContain("version: 9")
    expect(failure(() => openBytes(new Uint8Array(0)))).toBe(
      "model.gguf: truncated: 0 bytes, a GGUF file has at least 24",
    )
  })

  test("counts", () => {
    expect(failure(() => openBytes(patched(8, u64(2n ** 64n - 1n))))).toBe(
      "model.gguf: tensor count: 18446744073709551615 is more than the limit of 262144",
    )
    expect(failure(() => openBytes(patched(16, u64(65_537n))))).toContain("metadata count: 65537")
    expect(failure(() => openBytes(patched(24, u64(65_536n))))).toContain(
      "metadata key 1 of 2 length: 65536",
    )
  })

  test("strings and arrays longer than the file or the limit", () => {
    const file = ggufBytes({ "general.architecture": "llama", k: array("u8", [1]) })
    const stringLength = 24 + 8 + "general.architecture".length + 4
    expect(failure(() => openBytes(patched(stringLength, u64(100_000n), file)))).toContain(
      "truncated: general.architecture needs 100000 bytes",
    )
    expect(failure(() => openBytes(patched(stringLength, u64(2n ** 40n), file)))).toContain(
      "general.architecture: 1099511627776",
    )
    const arrayLength = file.length - 9
    expect(failure(() => openBytes(patched(arrayLength, u64(1000n), file)))).toContain(
      'truncated: "k" has 1000 elements',
    )
    expect(failure(() => openBytes(patched(arrayLength, u64(2n ** 50n), file)))).toContain(
      'length of "k": 1125899906842624',
    )
    expect(failure(() => openBytes(patched(arrayLength - 4, [9], file)))).toContain(
      '"k": nested arrays',
    )
    expect(failure(() => openBytes(patched(arrayLength - 4, [77], file)))).toContain(
      '"k": unknown element type 77',
    )
    expect(failure(() => openBytes(patched(arrayLength - 8, [13], file)))).toContain(
      '"k": unknown value type 13',
    )
  })

  test("booleans other than 0 and 1", () => {
    const file = ggufBytes({ ...META, flag: true })
    expect(failure(() => openBytes(patched(file.length - 1, [2], file)))).toContain(
      '"flag": 2 is no boolean',
    )
  })

  test("duplicates", () => {
    const file = ggufBytes({ "general.architecture": "llama", aa: 1, ab: 2 })
    const text = Buffer.from(file)
    text.write("aa", text.indexOf("ab"))
    expect(failure(() => openBytes(text))).toContain('metadata key "aa": occurs twice')
    const twice = [f32Tensor("w", [1], [1]), f32Tensor("w", [1], [1])]
    expect(failure(() => build(META, twice))).toContain('tensor "w": stored twice in this file')
  })

  test("tensor table", () => {
    const w = (more: Partial<FixtureTensor>): FixtureTensor => ({
      name: "w",
      dtype: F32,
      shape: [4],
      ...more,
    })
    const unknown = { id: 99, name: "?", blockSize: 1, blockBytes: 4 }
    expect(failure(() => build(META, [w({ dtype: unknown })]))).toBe(
      'model.gguf: tensor "w": unknown type 99',
    )
    const removed = { id: 31, name: "?", blockSize: 1, blockBytes: 4 }
    expect(failure(() => build(META, [w({ dtype: removed })]))).toContain(
      "type Q4_0_4_4 (31) was removed",
    )
    expect(
      failure(() => build(META, [w({ dtype: Q8_0, shape: [2, 48], data: new Uint8Array(102) })])),
    ).toContain("rows of 48 values are no multiple of the 32 in a Q8_0 block")
    expect(failure(() => build(META, [w({ shape: [1, 1, 1, 1, 1] })]))).toContain(
      "5 dimensions, expected 1 to 4",
    )
    expect(failure(() => build(META, [w({ shape: [], data: new Uint8Array(4) })]))).toContain(
      "0 dimensions",
    )
    expect(failure(() => build(META, [w({ shape: [0, 4] })]))).toContain("dimension 1 is 0")
    const huge = w({ shape: [2 ** 31, 2 ** 31], data: new Uint8Array(4) })
    expect(failure(() => build(META, [huge]))).toContain(
      "dimensions 2147483648 x 2147483648 overflow",
    )
    const bytes = w({ shape: [2 ** 51], data: new Uint8Array(4) })
    expect(failure(() => build(META, [bytes]))).toContain("overflow")
    expect(failure(() => build(META, [w({ shape: [40], data: new Uint8Array(16) })]))).toContain(
      "reach beyond the file's end",
    )
    expect(failure(() => build(META, [w({ name: "n".repeat(300) })]))).toContain(
      "name of tensor 1 of 1 length: 300",
    )
  })

  test("offsets", () => {
    const file = ggufBytes(
      META,
      [f32Tensor("w", [8], []), f32Tensor("v", [8], [])].map((t) => ({
        ...t,
        data: new Uint8Array(32),
      })),
    )
    const second = Buffer.from(file).indexOf("v", 100) + 1 + 4 + 8 + 4
    expect(failure(() => openBytes(patched(second, u64(33n), file)))).toContain(
      'tensor "v": offset 33 is no multiple of the alignment 32',
    )
    expect(failure(() => openBytes(patched(second, u64(0n), file)))).toContain('inside tensor "w"')
    expect(failure(() => openBytes(patched(second, u64(64n), file)))).toContain(
      "reach beyond the file's end",
    )
    expect(failure(() => openBytes(patched(second, u64(2n ** 63n), file)))).toContain(
      'offset of tensor "v"',
    )
  })

  test("alignment and architecture", () => {
    for (const alignment of [0, 3, 2 ** 22]) {
      expect(failure(() => build({ ...META, "general.alignment": alignment }))).toContain(
        `general.alignment: ${alignment}`,
      )
    }
    expect(failure(() => build({ ...META, "general.alignment": "x" }))).toContain(
      'general.alignment: "x"',
    )
    expect(failure(() => build({}))).toContain("general.architecture: missing")
    expect(failure(() => build({ "general.architecture": 3 }))).toContain("general.architecture: 3")
    expect(failure(() => openBytes(patched(32, [0xff])))).toContain(
      "metadata key 1 of 2: is not valid UTF-8",
    )
  })

  test("shards", () => {
    const split = (no: number, count: number, tensors: number): Record<string, FixtureValue> => ({
      ...META,
      "split.no": u16(no),
      "split.count": u16(count),
      "split.tensors.count": { type: "i32", value: tensors },
    })
    const a = (n = 2): Uint8Array => ggufBytes(split(0, 2, n), [f32Tensor("a", [1], [1])])
    const b = (no: number, count: number, name = "b"): Uint8Array =>
      ggufBytes(split(no, count, 2), [f32Tensor(name, [1], [2])])
    const first = "d/m-00001-of-00002.gguf"
    const second = "d/m-00002-of-00002.gguf"
    const openBoth = (one: Uint8Array, two: Uint8Array): GgufFile =>
      openGguf(first, memoryFiles({ [first]: one, [second]: two }))
    expect([...openBoth(a(), b(1, 2)).names()]).toEqual(["a", "b"])
    expect(failure(() => openGguf(first, memoryFiles({ [first]: a() })))).toBe(
      `${second}: shard 2 of 2 cannot be opened: no such file`,
    )
    expect(failure(() => openBoth(a(), b(1, 3)))).toBe(
      `${second}: split.count: 3, but ${first} says 2`,
    )
    expect(failure(() => openBoth(a(), b(0, 2)))).toBe(`${second}: split.no: 0, expected 1`)
    expect(failure(() => openBoth(a(3), b(1, 2)))).toContain(
      "split.tensors.count: 3, but the 2 shards hold 2 tensors",
    )
    expect(failure(() => openBoth(a(), b(1, 2, "a")))).toBe(
      `${second}: tensor "a": stored also in ${first}`,
    )
    expect(failure(() => openBytes(a(), "other.gguf"))).toContain(
      'name must end in "-00001-of-00002.gguf"',
    )
    expect(failure(() => build(split(0, 60_000, 2)))).toContain(
      "split.count: 60000 is more than the limit of 1024",
    )
    expect(failure(() => build({ ...META, "split.count": "two" }))).toContain(
      'split.count: "two", expected a count',
    )
  })
})

describe("fuzz", () => {
  const valid = ggufBytes(
    {
      ...META,
      list: ["one", "two"],
      bools: array("bool", [true]),
      ids: array("i32", [1, 2, 3]),
      eps: f32(1e-5),
      big: 5n,
    },
    [
      f32Tensor("w", [2, 4], [1, 2, 3, 4, 5, 6, 7, 8]),
      { name: "q", dtype: Q8_0, shape: [2, 32] },
      { name: "b", dtype: BF16, shape: [3] },
    ],
  )

  /** Either it parses or it is a FormatError that names the file. */
  function tolerated(bytes: Uint8Array): void {
    try {
      const gguf = openBytes(bytes)
      for (const name of gguf.names()) gguf.bytes(name)
    } catch (error) {
      if (!(error instanceof FormatError)) throw error
      expect(error.message).toStartWith("model.gguf: ")
    }
  }

  test("every truncation", () => {
    for (let length = 0; length < valid.length; length++) {
      expect(() => openBytes(valid.subarray(0, length))).toThrow(FormatError)
    }
  })

  test("byte flips", () => {
    const flips = fc.array(fc.tuple(fc.nat(valid.length - 1), fc.integer({ min: 0, max: 255 })), {
      minLength: 1,
      maxLength: 6,
    })
    fc.assert(
      fc.property(flips, (changes) => {
        const bytes = valid.slice()
        for (const [at, value] of changes) bytes[at] = value
        tolerated(bytes)
      }),
      { numRuns: 5000 },
    )
  })

  test("counts and lengths of any size", () => {
    fc.assert(
      fc.property(
        fc.nat(valid.length - 9),
        fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        (at, value) => {
          const bytes = valid.slice()
          new DataView(bytes.buffer).setBigUint64(at, value, true)
          tolerated(bytes)
        },
      ),
      { numRuns: 3000 },
    )
  })

  test("noise after a valid start", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), fc.nat(60), (noise, keep) => {
        tolerated(Buffer.concat([valid.subarray(0, keep), noise]))
      }),
      { numRuns: 2000 },
    )
  })
})
