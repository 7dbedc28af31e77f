import { afterAll, beforeAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { runCommand } from "../../scripts/setup/process.ts"
import { findZig, ZIG_VERSION } from "../../scripts/setup/zig.ts"
import { KT_ABI_HASH, symbols } from "../../src/native/abi.generated.ts"
import { openLibrary, requireLibrary } from "../../src/native/library.ts"
import { ROOT } from "../setup.ts"
import { dynamicExports } from "./elf.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-abi-"))
afterAll(() => rmSync(folder, { recursive: true }))

const header = readFileSync(join(ROOT, "kernels", "include", "kt.h"), "utf8")
const declared = [...header.matchAll(/^KT_API [^(]*?\b(kt_\w+)\(/gm)]
  .map(([, name = ""]) => name)
  .sort()

let zig = ""
beforeAll(async () => {
  const { path, others } = await findZig(ROOT)
  if (path === undefined)
    throw new Error(`Zig ${ZIG_VERSION} is missing (${others.join(", ")}): bun run setup`)
  zig = path
})

async function build(...args: string[]): Promise<void> {
  const { code, output } = await runCommand([zig, ...args], { cwd: ROOT })
  if (code !== 0) throw new Error(`zig ${args.join(" ")}:\n${output}`)
}

test("the committed table is what kt.h generates", async () => {
  await build("build", "abi-text", "--prefix", folder)
  const fresh = readFileSync(join(folder, "abi.generated.ts"), "utf8")
  expect(readFileSync(join(ROOT, "src", "native", "abi.generated.ts"), "utf8")).toBe(fresh)
})

test("the table has every function of kt.h and no other", () => {
  expect(declared.length).toBeGreaterThan(10)
  expect(Object.keys(symbols).sort()).toEqual(declared)
})

test.skipIf(process.platform !== "linux")(
  "the library exports the functions of kt.h and nothing else",
  () => {
    expect(dynamicExports(readFileSync(requireLibrary("cpu").path))).toEqual(declared)
  },
)

test("a library of another header is refused before any other call", async () => {
  const source = join(folder, "other.c")
  const library = join(folder, "other.so")
  writeFileSync(
    source,
    `#include <stdint.h>\nuint32_t kt_abi_version(void) { return 1; }\nuint64_t kt_abi_hash(void) { return UINT64_C(0x1234); }\n`,
  )
  await build("cc", "-shared", "-o", library, source)
  const probe = openLibrary(library)
  expect(probe.available).toBe(false)
  if (probe.available) return
  expect(probe.reason).toContain(library)
  expect(probe.reason).toContain("ABI hash 1234")
  expect(probe.reason).toContain(KT_ABI_HASH.toString(16))
  expect(probe.reason).toContain("zig build")
})

test("a library with the right hash and a missing function is refused by name", async () => {
  const source = join(folder, "partial.c")
  const library = join(folder, "partial.so")
  writeFileSync(
    source,
    `#include <stdint.h>\nuint32_t kt_abi_version(void) { return 1; }\nuint64_t kt_abi_hash(void) { return UINT64_C(${KT_ABI_HASH}); }\n`,
  )
  await build("cc", "-shared", "-o", library, source)
  const probe = openLibrary(library)
  expect(probe.available ? "" : probe.reason).toMatch(/kt_\w+/)
})

test("what is no library is an answer, not a crash", () => {
  const file = join(folder, "text.so")
  writeFileSync(file, "no library")
  expect(openLibrary(file)).toMatchObject({
    available: false,
    reason: expect.stringContaining(file),
  })
})
