/** Shows what the set-up does: one live line on a terminal, plain lines elsewhere. Bun's built-ins only. */

/** Text after a step's name while it runs, such as "43 of 98 MB". */
export type Report = (detail: string) => void

/** What a step found: nothing to do, or what it did. */
export interface StepResult {
  readonly skipped: boolean
  readonly detail: string
}

export interface ProgressOutput {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
}

const LIVE_MS = 120
/** Lines in a log are for people who wait: rare enough to stay readable. */
const PLAIN_MS = 10_000
const SPINNER = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"]

/** Runs one named step and shows its progress, elapsed time and outcome. */
export async function runStep(
  name: string,
  work: (report: Report) => Promise<StepResult>,
  output: ProgressOutput = process.stderr,
): Promise<StepResult> {
  const start = performance.now()
  const live = output.isTTY === true
  let detail = ""
  let frame = 0
  const line = (mark: string, end: string): string => {
    const text = `${mark} ${name}${detail === "" ? "" : `  ${detail}`}  ${seconds(performance.now() - start)}`
    const width = (output.columns ?? 80) - 1
    return live && end === "" ? `\r\x1b[2K${text.slice(0, width)}` : `${text}\n`
  }
  const draw = (): void => {
    output.write(line(live ? (SPINNER[frame++ % SPINNER.length] ?? "") : "..", live ? "" : "\n"))
  }
  const timer = setInterval(draw, live ? LIVE_MS : PLAIN_MS)
  try {
    const result = await work((text) => {
      const first = detail === ""
      detail = text
      if (first) draw()
    })
    const clear = live ? "\r\x1b[2K" : ""
    const took = result.skipped ? "" : `  (${seconds(performance.now() - start)})`
    output.write(`${clear}ok ${name}: ${result.detail}${took}\n`)
    return result
  } catch (error) {
    output.write(`${live ? "\r\x1b[2K" : ""}FAILED ${name}\n`)
    throw error
  } finally {
    clearInterval(timer)
  }
}

/** "0.3 s", "12 s", "2 min 5 s". */
export function seconds(ms: number): string {
  const s = ms / 1000
  if (s < 10) return `${s.toFixed(1)} s`
  return s < 60 ? `${Math.round(s)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`
}

/** Decimal megabytes, as download sizes are given. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`
}
