import type { EngineConfig } from "../../config.ts"
import { COMMON_FLAGS, SAMPLING_FLAGS } from "./common.ts"
import { dashed, engineOptions, flagOf } from "./parse.ts"
import type { Command, Flag } from "./spec.ts"

/** Lines of descriptions where the terminal does not say its width. */
const WIDTH = 110
const LEAST_WIDTH = 60
/** Names longer than this have their description on the next line. */
const MAX_NAME = 34

/** One line of a list: a name and what it means. */
type Row = readonly [name: string, says: string]

/** Engine options that are about memory; the others are about computing. */
const MEMORY: ReadonlySet<keyof EngineConfig> = new Set<keyof EngineConfig>([
  ...(["contextLength", "kvCacheTokens", "kvDtype", "memoryBytes", "vramBytes"] as const),
  ...(["pageSize", "prefixCache", "cacheRamMib", "cacheDiskMib", "cacheDir"] as const),
])

/** The help of a command: what it does, how it is called, its flags by what they are about, and examples to copy. */
export async function helpText(
  command: Command,
  columns = process.stdout.columns,
): Promise<string> {
  const width = Math.max(LEAST_WIDTH, Math.min(columns || WIDTH, 2 * WIDTH))
  const name = command.name === "" ? "kt" : `kt ${command.name}`
  const sections: [title: string, rows: Row[]][] = [
    ["ARGUMENTS", (command.positionals ?? []).map((each): Row => [each.name, each.help])],
    ["COMMANDS", await commandRows(command)],
    ...flagSections(command),
  ]
  const blocks = [command.summary, `${bold("USAGE")} ${usage(name, command)}`]
  if (command.details !== undefined) blocks.push(reflowed(command.details.trim(), width))
  for (const [title, rows] of sections) if (rows.length > 0) blocks.push(listed(title, rows, width))
  const aliases = aliasRows(command)
  if (aliases.length > 0) blocks.push(listed("OTHER NAMES, which work too", aliases, width))
  const examples = command.examples.map(({ command: line, says }) => `  # ${says}\n  ${line}`)
  if (examples.length > 0) blocks.push(`${bold("EXAMPLES")}\n\n${examples.join("\n\n")}`)
  if (command.subCommands !== undefined)
    blocks.push(`${name} COMMAND --help tells more about a command.`)
  return `${blocks.join("\n\n")}\n`
}

function usage(name: string, { positionals = [], subCommands, flags }: Command): string {
  const words = positionals.map(({ name: word, required, many }) => {
    const shown = many === true ? `${word}…` : word
    return required === true ? shown : `[${shown}]`
  })
  const ownFlags = Object.keys(flags).length > 0 ? ["[FLAGS]"] : []
  const called = [name, ...words, ...ownFlags].join(" ")
  if (subCommands === undefined) return called
  const isOnlyParent = positionals.length === 0
  return isOnlyParent ? `${name} COMMAND` : `${called}\n      ${name} COMMAND`
}

async function commandRows({ subCommands = {} }: Command): Promise<Row[]> {
  return Promise.all(
    Object.entries(subCommands).map(async ([name, load]): Promise<Row> => [
      name,
      (await load()).summary,
    ]),
  )
}

function flagSections(command: Command): [title: string, rows: Row[]][] {
  const own = Object.entries(command.flags)
  const isSampling = ([name]: readonly [string, Flag]): boolean => name in SAMPLING_FLAGS
  const engine = engineOptions(command)
  const engineRows = (wanted: boolean): Row[] =>
    engine
      .filter(({ key }) => MEMORY.has(key) === wanted)
      .map((option): Row => flagRow(option.flag, flagOf(option), option.default))
  const rows = (flags: [string, Flag][]): Row[] =>
    flags.map(([name, flag]): Row =>
      flagRow(name, flag, "default" in flag ? flag.default : undefined),
    )
  return [
    ["FLAGS", rows(own.filter((each) => !isSampling(each)))],
    ["SAMPLING", rows(own.filter(isSampling))],
    ["MODEL AND ENGINE", engineRows(false)],
    ["CONTEXT AND MEMORY", engineRows(true)],
    ["GENERAL", rows(Object.entries(COMMON_FLAGS))],
  ]
}

function flagRow(name: string, flag: Flag, value: unknown): Row {
  const short = flag.short === undefined ? "" : `-${flag.short}, `
  if (flag.type === "boolean")
    return [flag.default === true ? `--${name}, --no-${name}` : `${short}--${name}`, flag.help]
  const hint =
    flag.type === "enum"
      ? flag.values.join("|")
      : (flag.hint ?? (flag.type === "integer" || flag.type === "number" ? "n" : "value"))
  const many = flag.type === "list" && !flag.help.includes("repeatable") ? " (repeatable)" : ""
  const isTold = flag.help.includes("default") || ["", "default"].includes(String(value))
  const shown = value === undefined || isTold ? "" : ` (default ${String(value)})`
  return [`${short}--${name} <${hint}>`, `${flag.help}${many}${shown}`]
}

function aliasRows(command: Command): Row[] {
  const named: [string, readonly string[]][] = [
    ...engineOptions(command).map((o): [string, readonly string[]] => [o.flag, o.aliases]),
    ...Object.entries(command.flags).map(([name, flag]): [string, readonly string[]] => [
      name,
      flag.aliases ?? [],
    ]),
  ]
  return named
    .filter(([, aliases]) => aliases.length > 0)
    .map(([name, aliases]): Row => [`--${name}`, aliases.map(dashed).join(" ")])
}

/** A title and rows in two columns, descriptions wrapped within theirs. */
function listed(title: string, rows: readonly Row[], width: number): string {
  const short = rows.map(([name]) => name.length).filter((length) => length <= MAX_NAME)
  const column = 2 + Math.max(0, ...short) + 2
  const lines = rows.flatMap(([name, says]) => {
    const wrapped = wrap(says, width - column)
    const isLong = name.length > MAX_NAME
    const head = isLong ? [`  ${name}`] : [`  ${name}`.padEnd(column) + (wrapped.shift() ?? "")]
    return [...head, ...wrapped.map((line) => " ".repeat(column) + line)]
  })
  return `${bold(title)}\n\n${lines.join("\n")}`
}

/** Paragraphs in lines of the width; lines that are indented stay as they are. */
function reflowed(text: string, width: number): string {
  const lines: string[] = []
  let paragraph: string[] = []
  const flush = (): void => {
    if (paragraph.length > 0) lines.push(...wrap(paragraph.join(" "), width))
    paragraph = []
  }
  for (const line of text.split("\n")) {
    if (line !== "" && !line.startsWith(" ")) {
      paragraph.push(line)
      continue
    }
    flush()
    lines.push(line)
  }
  flush()
  return lines.join("\n")
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ""
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line)
      line = word
    } else line = line === "" ? word : `${line} ${word}`
  }
  return [...lines, line]
}

function bold(text: string): string {
  return `\u001b[1m${text}\u001b[22m`
}
