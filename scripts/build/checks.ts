import { readdirSync } from "node:fs"
import { join } from "node:path"

import { type CommandResult, runCommand } from "../setup/process.ts"
import { buildLibrary, hostTarget, type TargetName, TARGETS } from "./binary.ts"

/** Outcome of one part of the test command. */
export interface Outcome {
  readonly name: string
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  /** What the part printed, shown when it failed. */
  readonly output: string
  /** Names of skipped tests; they carry the reason. */
  readonly skips: readonly string[]
}

export interface Check {
  readonly name: string
  run(): Promise<Outcome[]>
}

/** Default for tests without a time limit of their own: a loaded 2-core machine is slow, a hang is still found. */
const TEST_TIMEOUT_MS = 300_000
/** No folder may hold up the rest for longer. */
const PROCESS_TIMEOUT_MS = 20 * 60_000
/** libkt_sycl, where it is built, is tested on a CPU too, whose threads do not take time from other tests while they wait. */
const SYCL_ON_CPU = { KT_SYCL_CPU: "1", OMP_WAIT_POLICY: "passive" }
const ARM_TESTS = "zig build test-aarch64"

/** Every part of the test command, cheap ones first. */
export function allChecks(root: string, zig: string): Check[] {
  const crossTargets = (Object.keys(TARGETS) as TargetName[]).filter(
    (name) => name !== hostTarget(),
  )
  return [
    single("types (bun check)", () => run(root, [process.execPath, "check"])),
    single("formatting (bun fmt --check)", () => run(root, [process.execPath, "fmt", "--check"])),
    single("formatting (zig fmt --check)", () =>
      run(root, [zig, "fmt", "--check", "build.zig", "kernels"]),
    ),
    {
      name: "zig build test",
      run: async () => [
        zigOutcome("zig build test", await run(root, [zig, "build", "test", "--summary", "all"])),
      ],
    },
    { name: ARM_TESTS, run: async () => [await armTests(root, zig)] },
    ...crossTargets.map((name) =>
      single(`library for ${name} compiles`, async () => {
        try {
          return { code: 0, output: await buildLibrary(root, name) }
        } catch (error) {
          return { code: 1, output: error instanceof Error ? error.message : String(error) }
        }
      }),
    ),
    ...testGroups(root).map((group) => ({ name: group.name, run: () => runTests(root, group) })),
  ]
}

function run(
  root: string,
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<CommandResult> {
  return runCommand(command, { cwd: root, timeoutMs: PROCESS_TIMEOUT_MS, env })
}

function single(name: string, work: () => Promise<CommandResult>): Check {
  return {
    name,
    run: async () => {
      const { code, output } = await work()
      return [
        {
          name,
          passed: code === 0 ? 1 : 0,
          failed: code === 0 ? 0 : 1,
          skipped: 0,
          output,
          skips: [],
        },
      ]
    },
  }
}

/** The kernels of 64-bit ARM run on any machine that has qemu's user mode. */
async function armTests(root: string, zig: string): Promise<Outcome> {
  if (Bun.which("qemu-aarch64"))
    return zigOutcome(
      ARM_TESTS,
      await run(root, [zig, "build", "test-aarch64", "--summary", "all"]),
    )
  const reason = `${ARM_TESTS}: qemu-aarch64 was not found (Debian: apt-get install qemu-user)`
  return { name: ARM_TESTS, passed: 0, failed: 0, skipped: 1, output: "", skips: [reason] }
}

function zigOutcome(name: string, { code, output }: CommandResult): Outcome {
  const [, passed = "1", total = "1"] = /(\d+)\/(\d+) tests passed/.exec(output) ?? []
  const skipped = Number(/(\d+) skipped/.exec(output)?.[1] ?? 0)
  const failed = Number(total) - Number(passed) - skipped
  return {
    name,
    passed: code === 0 ? Number(passed) : Math.max(0, Number(passed) - 1),
    failed: code === 0 ? 0 : Math.max(1, failed),
    skipped,
    output,
    skips: [],
  }
}

interface TestGroup {
  readonly name: string
  /** Relative to the root. */
  readonly files: readonly string[]
}

/** One group a folder of test/, and one a file that lies in test/ itself. */
export function testGroups(root: string): TestGroup[] {
  const groups: TestGroup[] = []
  for (const entry of readdirSync(join(root, "test"), { withFileTypes: true })) {
    const path = `test/${entry.name}`
    if (entry.isDirectory()) {
      const files = [...new Bun.Glob("**/*.test.{ts,tsx}").scanSync({ cwd: join(root, path) })].map(
        (file) => `${path}/${file}`,
      )
      if (files.length > 0) groups.push({ name: path, files: files.sort() })
    } else if (/\.test\.tsx?$/.test(entry.name)) groups.push({ name: path, files: [path] })
  }
  // the whole program's tests last: what is below them fails first
  return groups.sort(
    (a, b) =>
      Number(a.name === "test/e2e") - Number(b.name === "test/e2e") || a.name.localeCompare(b.name),
  )
}

/**
 * Runs a folder's tests in a process of their own. When that process dies without a summary (a crash in native code),
 * its files run one by one, so that one crash costs one file.
 */
export async function runTests(root: string, group: TestGroup): Promise<Outcome[]> {
  const command = [
    process.execPath,
    "test",
    `--timeout=${TEST_TIMEOUT_MS}`,
    ...group.files.map((file) => `./${file}`),
  ]
  const result = await run(root, command, SYCL_ON_CPU)
  const counts = parseTestOutput(result.output)
  if (counts === undefined && group.files.length > 1) {
    const outcomes: Outcome[] = []
    for (const file of group.files)
      outcomes.push(...(await runTests(root, { name: file, files: [file] })))
    if (outcomes.every((outcome) => outcome.failed === 0)) {
      outcomes.push({
        name: group.name,
        passed: 0,
        failed: 1,
        skipped: 0,
        skips: [],
        output: `died when run together (code ${result.code}), though no file fails alone:\n${result.output}`,
      })
    }
    return outcomes
  }
  const { passed, failed, skipped, skips } = counts ?? {
    passed: 0,
    failed: 1,
    skipped: 0,
    skips: [],
  }
  const lost = result.code !== 0 && failed === 0 ? 1 : failed
  return [
    {
      name: group.name,
      passed,
      failed: lost,
      skipped,
      skips,
      output: withoutPasses(result.output),
    },
  ]
}

/** Counts from the summary of `bun test`; undefined when it was never printed. */
export function parseTestOutput(
  output: string,
): { passed: number; failed: number; skipped: number; skips: string[] } | undefined {
  const count = (word: string): number =>
    Number([...output.matchAll(new RegExp(`^ *(\\d+) ${word}$`, "gm"))].at(-1)?.[1] ?? 0)
  if (!/^Ran \d+ tests? across/m.test(output)) return undefined
  const skips = [...output.matchAll(/^\(skip\) (.*)$/gm)].map(([, name = ""]) => name)
  return {
    passed: count("pass"),
    failed: count("fail") + count("errors?"),
    skipped: count("skip") + count("todo"),
    skips,
  }
}

function withoutPasses(output: string): string {
  return output
    .split("\n")
    .filter((line) => !/^\((pass|skip)\)/.test(line))
    .join("\n")
}
