import { version } from "../../package.json" with { type: "json" }
import { KtError, UsageError } from "../errors.ts"
import { helpText } from "./args/help.ts"
import { parseArguments } from "./args/parse.ts"
import type { Command } from "./args/spec.ts"
import { similar } from "./args/suggest.ts"
import { COMMANDS } from "./commands.ts"
import { configureLogging, logger } from "./log.ts"
import { printError, write } from "./output.ts"

const ROOT: Command = {
  name: "",
  summary: "Large language models on this machine: a server, a chat, and tools around them",
  flags: { version: { type: "boolean", help: "show the version" } },
  examples: [
    { command: "kt serve", says: "the web page and the APIs with the default model" },
    { command: "kt chat ./model.gguf", says: "a conversation in the terminal" },
    { command: 'kt run ./model.gguf -p "Why is the sky blue?"', says: "one answer" },
    { command: "kt pull org/repo:Q4_K_M", says: "download a model" },
  ],
  subCommands: COMMANDS,
  run: async () => {},
}

/** Runs one command line and returns the exit status: 0, 1 for a failure, 2 for a wrong command line. */
export async function runCommandLine(argv: readonly string[]): Promise<number> {
  let verbose = argv.includes("--verbose")
  try {
    const { command, rest } = await resolveCommand(argv)
    if (asksForHelp(rest) || (command === ROOT && rest.length === 0)) {
      await write(plainUnlessTerminal(await helpText(command)))
      return 0
    }
    if (command === ROOT) {
      if (rest.length !== 1 || rest[0] !== "--version") throw unknownCommand(rest[0] as string)
      await write(`${version}\n`)
      return 0
    }
    const { invocation, warnings } = parseArguments(command, rest)
    verbose = invocation.flags["verbose"] === true
    const level = command.logLevel ?? "warning"
    await configureLogging(
      verbose ? "debug" : invocation.flags["quiet"] === true ? "error" : level,
      invocation.flags["log-format"] === "json" ? "json" : "text",
    )
    for (const warning of warnings) logger("cli").warn(warning)
    await command.run(invocation)
    return Number(process.exitCode ?? 0)
  } catch (error) {
    // whoever read our output has gone, as `head` does
    if ((error as { code?: string }).code === "EPIPE") return 0
    printError(error, verbose)
    return error instanceof UsageError ? 2 : 1
  }
}

/** Follows the words that are names of commands. */
async function resolveCommand(
  argv: readonly string[],
): Promise<{ command: Command; rest: readonly string[] }> {
  let command = ROOT
  let rest = argv
  for (;;) {
    const word = rest[0]
    const next = word === undefined ? undefined : command.subCommands
    if (word === undefined || next === undefined || !Object.hasOwn(next, word)) break
    command = await next[word]!()
    rest = rest.slice(1)
  }
  const needsMore = command.subCommands !== undefined && command.positionals === undefined
  const word = rest[0]
  if (needsMore && command !== ROOT && !asksForHelp(rest)) {
    const names = Object.keys(command.subCommands ?? {}).join(", ")
    throw new UsageError(
      word === undefined
        ? `kt ${command.name} needs one of: ${names}`
        : `kt ${command.name} has no command "${word}": expected ${names}`,
    )
  }
  return { command, rest }
}

function unknownCommand(word: string): KtError {
  if (word.startsWith("-"))
    return new UsageError(`unknown flag ${word}`, { hint: "`kt --help` lists the commands" })
  const [best] = similar(word, Object.keys(COMMANDS))
  return new UsageError(`unknown command "${word}"`, {
    hint: best === undefined ? "`kt --help` lists them" : `did you mean \`kt ${best}\`?`,
  })
}

function asksForHelp(rest: readonly string[]): boolean {
  const end = rest.indexOf("--")
  const words = end < 0 ? rest : rest.slice(0, end)
  return words.includes("--help") || words.includes("-h")
}

function plainUnlessTerminal(text: string): string {
  return process.stdout.isTTY && !process.env["NO_COLOR"] ? text : Bun.stripANSI(text)
}
