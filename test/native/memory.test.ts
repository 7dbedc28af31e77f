import { describe, expect, test } from "bun:test"

import { KT_ABI_HASH, layouts } from "../../src/native/abi.generated.ts"
import { Backend, queryCpu } from "../../src/native/backend.ts"
import { openLibrary, requireLibrary } from "../../src/native/library.ts"
import { MappedFile } from "../../src/native/mapped-file.ts"
import { Arena, outSlot, Slab } from "../../src/native/memory.ts"
import { rmsNorm } from "../../src/ops/rms-norm.ts"
import { Tensor } from "../../src/tensor/tensor.ts"

const library = requireLibrary("cpu")

describe("handshake", () => {
  test("the library answers the committed hash and the descriptor is 88 bytes", () => {
    expect(library.kt_abi_hash()).toBe(KT_ABI_HASH)
    expect(layouts.kt_tensor.size).toBe(88)
  })

  test("a file that is no library is refused with its path", () => {
    const probe = openLibrary("/etc/hostname")
    expect(probe.available).toBe(false)
    if (!probe.available) expect(probe.reason).toContain("/etc/hostname")
  })
})

describe("slabs and arenas", () => {
  test("views are bounded and dead after dispose", () => {
    const slab = new Slab(library, 100)
    expect(() => slab.view(90, 20)).toThrow("outside")
    slab[Symbol.dispose]()
    expect(() => slab.view()).toThrow("after dispose")
    expect(() => new Slab(library, -1)).toThrow("slab of -1 bytes")
  })

  test("an arena grows within a step and is one slab after it", () => {
    const arena = new Arena((bytes) => new Slab(library, bytes), 1024)
    const first = arena.alloc(1000)
    expect(arena.alloc(5000)).not.toBe(first)
    arena.reset()
    const start = arena.alloc(1000)
    expect(arena.alloc(5000)).toBe(start + 1024)
    arena[Symbol.dispose]()
  })

  test("what was allocated since a mark is taken back, over slabs too", () => {
    const arena = new Arena((bytes) => new Slab(library, bytes), 1024)
    arena.alloc(100)
    const mark = arena.mark()
    const first = arena.alloc(64)
    const large = arena.alloc(5000)
    arena.release(mark)
    expect(arena.alloc(64)).toBe(first)
    // the slab that the step grew by is used again, not one more added
    expect(arena.alloc(5000)).toBe(large)
    arena.reset()
    // and it is one slab after the step
    const start = arena.alloc(1024)
    expect(arena.alloc(5000)).toBe(start + 1024)
    arena[Symbol.dispose]()
  })

  test("out-slots do not go stale in hot code", () => {
    const out = outSlot()
    let stale = 0
    for (let i = 0; i < 100_000; i++) {
      const status = library.kt_slab_create(i % 2 === 0 ? 64 : 0, 0, out)
      const address = Number(out[0])
      if ((status === 0) !== (address !== 0)) stale++
      if (address !== 0) library.kt_slab_destroy(address, 64)
    }
    expect(stale).toBe(0)
  })

  test("memory beyond 4 GiB is addressed by plain numbers", () => {
    const bytes = 5 * 2 ** 30
    const slab = new Slab(library, bytes)
    new Uint8Array(slab.view(bytes - 8, 8)).set([1, 2, 3])
    expect([...new Uint8Array(slab.view(bytes - 8, 3))]).toEqual([1, 2, 3])
    expect(() => slab.view()).toThrow("exceeds")
    slab[Symbol.dispose]()
  })
})

describe("mapped files", () => {
  test("windows are bounded; a missing file is named", () => {
    const file = MappedFile.open(import.meta.path)
    expect(new TextDecoder().decode(file.read(0, 6))).toBe("import")
    expect(() => file.read(file.size - 1, 2)).toThrow("outside")
    file[Symbol.dispose]()
    expect(() => file.read(0, 1)).toThrow("after close")
    expect(() => MappedFile.open("/no/such/file")).toThrow("/no/such/file: no such file")
  })
})

describe("contexts", () => {
  test("levels that are unknown or absent are refused with a sentence", () => {
    expect(() => new Backend({ isa: "mmx" })).toThrow("unknown ISA level")
    const absent = ["neon", "amx", "avx512bf16"].find(
      (isa) => !queryCpu().isas.includes(isa),
    ) as string
    expect(() => new Backend({ isa: absent })).toThrow(`does not run the ${absent} kernels`)
  })

  test("tensors of different backends do not mix, and a disposed backend says so", () => {
    const a = new Backend({ threads: 1 })
    const b = new Backend({ threads: 1 })
    const x = Tensor.from(a, new Float32Array(4), [1, 4])
    expect(() => rmsNorm(x, Tensor.from(b, new Float32Array(4)), 1e-5)).toThrow("operand 1 on cpu")
    b[Symbol.dispose]()
    expect(() => b.ctx).toThrow("after dispose")
    a[Symbol.dispose]()
  })
})
