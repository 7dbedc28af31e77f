import { KtError } from "../errors.ts"

/** Writes to stdout and waits until it is taken, so that pipes get everything before the process ends. */
export async function write(text: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    process.stdout.write(text, (error) => (error ? reject(error) : resolve()))
  })
}

export async function writeJson(value: unknown): Promise<void> {
  await write(`${JSON.stringify(value)}\n`)
}

/** One sentence and, where there is one, what would fix it. A failure that is not the user's shows its stack if asked. */
export function printError(error: unknown, verbose: boolean): void {
  const message = error instanceof Error ? error.message : String(error)
  const lines = [`kt: ${message}`]
  if (error instanceof KtError && error.hint !== undefined) lines.push(`    ${error.hint}`)
  if (verbose && error instanceof Error) lines.push(error.stack ?? "")
  process.stderr.write(`${lines.join("\n")}\n`)
}

/** Columns padded to their widest cell; numbers to the right. */
export function table(
  head: readonly string[],
  rows: readonly (readonly (string | number)[])[],
): string {
  const all = [head, ...rows.map((row) => row.map(String))]
  const widths = head.map((_, i) => Math.max(...all.map((row) => (row[i] ?? "").length)))
  const right = head.map((_, i) =>
    rows.every((row) => /^[-+\d.,% x×]*$/.test(String(row[i] ?? ""))),
  )
  return all
    .map((row) =>
      row
        .map((cell, i) => (right[i] ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)))
        .join("  ")
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join("")
}

export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"]
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${units[unit]}`
}

/** 135M, 1.5B */
export function formatCount(count: number): string {
  if (count >= 1e9) return `${(count / 1e9).toFixed(count < 1e10 ? 1 : 0)}B`
  if (count >= 1e6) return `${(count / 1e6).toFixed(0)}M`
  return count >= 1e3 ? `${(count / 1e3).toFixed(0)}K` : String(count)
}
