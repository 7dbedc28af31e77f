import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { runCommand } from "../../scripts/setup/process.ts"
import { findZig } from "../../scripts/setup/zig.ts"
import { KT_ABI_HASH, symbols } from "../../src/native/abi.generated.ts"
import { Backend, deviceProblem, openDevice, queryDevices } from "../../src/native/backend.ts"
import { backendNames, probeLibrary, requireLibrary } from "../../src/native/library.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { ROOT } from "../setup.ts"
import { dynamicExports } from "./elf.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-devices-"))
afterAll(() => rmSync(folder, { recursive: true }))

test("the CPU is one device, whose memory is copied like any other's", () => {
  const [cpu, ...others] = queryDevices(requireLibrary("cpu"))
  expect(others).toEqual([])
  expect(cpu?.name).toBe("cpu:0")
  expect(cpu?.memoryFreeBytes).toBeGreaterThan(0)
  using backend = new Backend({ threads: 1 })
  const tensor = Tensor.allocate(backend, F32, [4])
  backend.copy(tensor.data, Float32Array.of(1, 2, 3, 4), 16)
  const out = new Float32Array(4)
  backend.copy(out, tensor.data, 16)
  expect([...out]).toEqual([1, 2, 3, 4])
  tensor[Symbol.dispose]()
})

test("a device that is not there is refused with the reason", () => {
  expect(deviceProblem("cpu")).toBeUndefined()
  expect(deviceProblem("cpu:1")).toBe("there are 1 cpu devices")
  expect(deviceProblem("gpu0")).toContain("is no device")
  expect(deviceProblem("nothing:0")).toContain("libkt_nothing.so was not found")
  expect(() => openDevice("nothing")).toThrow("device nothing: libkt_nothing.so was not found")
})

test("a backend is a library: one built out of the tree is found, probed and asked for its devices", async () => {
  const { path: zig = "zig" } = await findZig(ROOT)
  const lacking = Object.keys(symbols).filter(
    (name) => !/^kt_(abi_|last|backend|device_)/.test(name),
  )
  const source = join(folder, "toy.c")
  writeFileSync(
    source,
    `#include <string.h>
#include "kt.h"
uint32_t kt_abi_version(void) { return (KT_ABI_MAJOR << 16) | KT_ABI_MINOR; }
uint64_t kt_abi_hash(void) { return UINT64_C(${KT_ABI_HASH}); }
const char *kt_last_error(void) { return "the toy computes nothing"; }
const char *kt_backend_name(void) { return "toy"; }
kt_status_t kt_device_count(uint32_t *count) { *count = 2; return KT_OK; }
kt_status_t kt_device_query(uint32_t index, kt_device_info_t *out) {
  out->memory_bytes = 1000 + index; out->memory_free_bytes = 500; strcpy(out->name, "Toy"); return KT_OK; }
#pragma clang diagnostic ignored "-Wincompatible-library-redeclaration"
`,
  )
  const others = join(folder, "others.c")
  writeFileSync(others, lacking.map((name) => `int ${name}(void) { return -2; }\n`).join(""))
  const { code, output } = await runCommand(
    [zig, "cc", "-shared", "-fPIC", `-I${join(ROOT, "kernels", "include")}`, "-o"].concat(
      join(folder, "libkt_toy.so"),
      source,
      others,
    ),
    { cwd: folder },
  )
  if (code !== 0) throw new Error(output)
  const before = process.env["KT_LIB_DIR"]
  process.env["KT_LIB_DIR"] = folder
  try {
    expect(backendNames()).toContain("toy")
    const probe = probeLibrary("toy")
    expect(probe.available).toBe(true)
    if (!probe.available) return
    const [, second] = queryDevices(probe.library)
    expect(second).toMatchObject({ name: "toy:1", model: "Toy", memoryBytes: 1001 })
    expect(() => new Backend({}, probe.library)).toThrow("the toy computes nothing")
  } finally {
    if (before === undefined) delete process.env["KT_LIB_DIR"]
    else process.env["KT_LIB_DIR"] = before
  }
})

const cuda = probeLibrary("cuda")
const absent = cuda.available ? undefined : `${cuda.reason}; KT_CUDA=1 bun run setup builds it`

if (absent !== undefined) describe.skip(`the CUDA library [${absent}]`, () => {})
else
  describe("the CUDA library", () => {
    const library = requireLibrary("cuda")

    test("loads everywhere, exports the functions of kt.h and nothing else", () => {
      expect(library.kt_backend_name()).toBe("cuda")
      expect(library.kt_abi_hash()).toBe(KT_ABI_HASH)
      const exported = dynamicExports(readFileSync(library.path))
      expect(exported).toEqual(Object.keys(symbols).sort())
    })

    test("host memory is there without a driver", () => {
      const out = new BigInt64Array(new ArrayBuffer(8))
      expect(library.kt_slab_create(4096, 0, out)).toBe(0)
      library.kt_slab_destroy(Number(out[0]), 4096)
    })

    const problem = deviceProblem("cuda:0")
    test.skipIf(problem === undefined)("without a GPU the reason is said", () => {
      expect(problem).toMatch(/driver|device/)
      expect(() => new Backend({}, library)).toThrow(/driver|device/)
    })

    test.skipIf(problem !== undefined)("too much memory is refused with sizes", () => {
      using backend = new Backend({}, library)
      expect(() => backend.allocate(2 ** 50)).toThrow(
        /cannot allocate 1125899906842624 bytes on the device: \d+ of \d+ are free/,
      )
    })
  })
