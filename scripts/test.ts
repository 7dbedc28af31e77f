/**
 * `bun run test [part of a name…]`: set-up where needed, then every check and test. The last line is
 * "N passed, N failed" or "N passed, N failed, N skipped".
 */
import { allChecks, type Outcome } from "./build/checks.ts"
import { runStep } from "./setup/progress.ts"
import { ROOT, runScript, setUp } from "./setup/setup.ts"

const MAX_SHOWN_SKIPS = 5

/** Ends a step whose outcomes say what failed. */
class Failed extends Error {}

await runScript(async () => {
  await setUp({ model: true, zig: true })
  const only = process.argv.slice(2)
  const checks = allChecks(ROOT, process.env["KT_ZIG"] ?? "zig").filter(
    ({ name }) => only.length === 0 || only.some((part) => name.includes(part)),
  )
  const outcomes: Outcome[] = []
  for (const check of checks) outcomes.push(...(await show(check)))
  return summary(outcomes)
})

async function show(check: ReturnType<typeof allChecks>[number]): Promise<Outcome[]> {
  let outcomes: Outcome[] = []
  const result = runStep(check.name, async (report) => {
    report("running")
    outcomes = await check.run()
    if (outcomes.some((outcome) => outcome.failed > 0)) throw new Failed()
    return { skipped: false, detail: counts(outcomes) }
  })
  await result.catch((error: unknown) => {
    if (!(error instanceof Failed)) throw error
  })
  for (const { name, failed, output } of outcomes) {
    if (failed > 0)
      process.stderr.write(`---- ${name}: ${failed} failed\n${output.trimEnd()}\n----\n`)
  }
  for (const { skips } of outcomes) {
    for (const skip of skips.slice(0, MAX_SHOWN_SKIPS))
      process.stderr.write(`     skipped: ${skip}\n`)
    if (skips.length > MAX_SHOWN_SKIPS)
      process.stderr.write(`     skipped: ${skips.length - MAX_SHOWN_SKIPS} more\n`)
  }
  return outcomes
}

function counts(outcomes: readonly Outcome[]): string {
  const sum = (key: "passed" | "failed" | "skipped"): number =>
    outcomes.reduce((total, outcome) => total + outcome[key], 0)
  const skipped = sum("skipped")
  return `${sum("passed")} passed, ${sum("failed")} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`
}

function summary(outcomes: readonly Outcome[]): number {
  const failed = outcomes.filter((outcome) => outcome.failed > 0)
  process.stderr.write("\n")
  for (const { name } of failed) process.stderr.write(`FAILED ${name}\n`)
  process.stdout.write(`${counts(outcomes)}\n`)
  return failed.length > 0 || outcomes.length === 0 ? 1 : 0
}
