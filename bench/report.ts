import { writeFileSync } from "node:fs"

import type { Bench } from "tinybench"

/** Median seconds of one run of a task. @throws Error when the task failed or never ran */
export function medianSeconds(bench: Bench, name: string): number {
  const result = bench.getTask(name)?.result
  if (result === undefined || !("latency" in result)) throw new Error(`${name} gave no result`)
  return result.latency.p50 / 1e3
}

/** Prints rows as a table and, with a file name, writes them as JSON with the machine and the versions. */
export function report(rows: readonly object[], file: string | undefined, machine: object): void {
  console.table(rows)
  if (file === undefined) return
  const commit = Bun.spawnSync(["git", "rev-parse", "--short", "HEAD"]).stdout.toString().trim()
  writeFileSync(
    file,
    `${JSON.stringify({ commit, bun: Bun.version, ...machine, rows }, null, 2)}\n`,
  )
}
