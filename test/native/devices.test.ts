import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { runCommand } from "../../scripts/setup/process.ts"
import { findZig } from "../../scripts/setup/zig.ts"
import { KT_ABI_HASH, symbols } from "../../src/native/abi.generated.ts"
import {
  Backend,
  deviceName,
  deviceProblem,
  openDevice,
  queryDevices,
} from "../../src/native/backend.ts"
import { Graph } from "../../src/native/graph.ts"
import { backendNames, lacksOp, probeLibrary, requireLibrary } from "../../src/native/library.ts"
import { Slab } from "../../src/native/memory.ts"
import { add, measure } from "../../src/ops/index.ts"
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

test("backends go by their names in PyTorch too", () => {
  expect(["xpu", "xpu:1", "rocm:0", "cuda", "cpu:0", "toy:2"].map(deviceName)).toEqual([
    "sycl:0",
    "sycl:1",
    "hip:0",
    "cuda:0",
    "cpu",
    "toy:2",
  ])
})

test("an op that a library lacks is told from one that refuses what it is given", () => {
  expect(lacksOp(requireLibrary("cpu"), "kt_head_linear")).toBe(false)
  expect(lacksOp(requireLibrary("cpu"), "kt_sample")).toBe(false)
})

const sycl = probeLibrary("sycl")
if (!sycl.available)
  describe.skip(`the SYCL library [${sycl.reason}; \`zig build sycl\` makes it]`, () => {})
else
  describe("the SYCL library", () => {
    const { library } = sycl

    test("exports the functions of kt.h and nothing else, and says what it lacks", () => {
      expect(library.kt_backend_name()).toBe("sycl")
      expect(dynamicExports(readFileSync(library.path))).toEqual(Object.keys(symbols).sort())
      expect(lacksOp(library, "kt_paged_attention")).toBe(false)
      expect(lacksOp(library, "kt_gated_delta_rule")).toBe(true)
    })

    test("a CPU is no device unless it is asked for", async () => {
      const file = join(import.meta.dir, "..", "..", "src", "native", "backend.ts")
      const code = `import { deviceProblem } from ${JSON.stringify(file)}; process.stdout.write(String(deviceProblem("sycl:0")))`
      const problemWith = async (cpu: string): Promise<string> => {
        const command = [process.execPath, "-e", code]
        return (await runCommand(command, { cwd: folder, env: { KT_SYCL_CPU: cpu } })).output
      }
      expect(await problemWith("1")).toBe("undefined")
      expect(await problemWith("0")).toMatch(/^undefined$|no GPU answers to the SYCL runtime/)
    })

    const problem = deviceProblem("sycl:0")
    const title = problem === undefined ? "" : ` [${problem}]`
    test.skipIf(problem !== undefined)(`memory, copies, events, graphs and rates${title}`, () => {
      using backend = new Backend({}, library)
      expect(() => backend.allocate(2 ** 50)).toThrow(
        /cannot allocate 1125899906842624 bytes on the device: \d+ of \d+ are free/,
      )
      const x = Tensor.from(backend, Float32Array.of(1, 2, 3), [3], { persistent: true })
      using shared = new Slab(library, 16, { pinned: true })
      const values = new Float32Array(shared.view(0, 12))
      using start = backend.fence()
      using end = backend.fence()
      start.record()
      backend.copy(shared.address, add(x, x).data, 12)
      end.record()
      backend.synchronize()
      expect([...values]).toEqual([2, 4, 6])
      expect(start.until(end)).toBeGreaterThanOrEqual(0)
      expect(measure(backend, "read", { seconds: 0.01, bytes: 2 ** 22 })).toBeGreaterThan(1e6)
      expect(measure(backend, "fma", { seconds: 0.01 })).toBeGreaterThan(1e6)
      const { graph, result } = Graph.record(backend, () => add(x, x))
      using _graph = graph
      x.write(new Uint8Array(Float32Array.of(10, 20, 30).buffer))
      expect(graph.launch()).toBe(true)
      expect([...result.toFloat32Array()]).toEqual([20, 40, 60])
    })
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
