import {
  configure,
  getLogger,
  jsonLinesFormatter,
  type Logger,
  type LogRecord,
} from "@logtape/logtape"

export type LogLevel = "debug" | "info" | "warning" | "error"

/** How lines are written: for people, or as one JSON object each. */
export type LogFormat = "text" | "json"

/** Everything that is logged goes to stderr: stdout is for results. */
export async function configureLogging(level: LogLevel, format: LogFormat = "text"): Promise<void> {
  const formatted = format === "json" ? jsonLinesFormatter : formatRecord
  await configure({
    reset: true,
    sinks: { stderr: (record) => void process.stderr.write(formatted(record)) },
    loggers: [
      { category: ["kt"], lowestLevel: level, sinks: ["stderr"] },
      { category: ["logtape", "meta"], lowestLevel: "error", sinks: ["stderr"] },
    ],
  })
}

export function logger(part: string): Logger {
  return getLogger(["kt", part])
}

/** `12:03:04 warning engine: text`; the level is left out where it is the usual one. */
function formatRecord(record: LogRecord): string {
  const time = new Date(record.timestamp).toTimeString().slice(0, 8)
  const level = record.level === "info" ? "" : `${record.level} `
  const part = record.category.slice(1).join(".")
  const text = record.message.map((piece) => String(piece)).join("")
  return `${time} ${level}${part}: ${text}\n`
}
