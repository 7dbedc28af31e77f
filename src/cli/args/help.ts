import { type ArgsDef, type CommandDef, defineCommand, renderUsage } from "citty"

import { COMMON_FLAGS } from "./common.ts"
import { engineOptions, flagOf } from "./parse.ts"
import type { Command, Flag } from "./spec.ts"

/** The help of a command: what it does, how it is called, its flags, and examples to copy. */
export async function helpText(command: Command): Promise<string> {
  const parent = defineCommand({ meta: { name: command.name === "" ? "" : "kt" } })
  const usage = await renderUsage(toCitty(command), parent)
  const blocks = [usage.replaceAll(/ +$/gm, "").trimEnd()]
  if (command.details !== undefined) blocks.push(command.details.trim())
  const aliases = aliasLines(command)
  if (aliases.length > 0)
    blocks.push(`KTRANSFORMERS' NAMES, which work too\n\n${aliases.join("\n")}`)
  const examples = command.examples.map(({ command: line, says }) => `  # ${says}\n  ${line}`)
  if (examples.length > 0) blocks.push(`EXAMPLES\n\n${examples.join("\n\n")}`)
  return `${blocks.join("\n\n")}\n`
}

/** A command in the library's terms, for its usage text. */
function toCitty(command: Command): CommandDef {
  const args: ArgsDef = {}
  for (const { name, help, required } of command.positionals ?? [])
    args[name] = {
      type: "positional",
      description: help,
      required: required === true,
    }
  for (const [name, flag] of Object.entries({ ...command.flags })) args[name] = cittyFlag(flag)
  for (const option of engineOptions(command)) {
    const { default: value } = option
    const shown = typeof value === "string" || typeof value === "number" ? String(value) : undefined
    args[option.flag] = cittyFlag(flagOf(option), shown)
  }
  for (const [name, flag] of Object.entries(COMMON_FLAGS)) args[name] = cittyFlag(flag)
  return defineCommand({
    meta: { name: command.name || "kt", description: command.summary },
    args,
    ...(command.subCommands === undefined ? {} : { subCommands: subCommands(command) }),
  }) as CommandDef
}

function subCommands(command: Command): Record<string, CommandDef> {
  return Object.fromEntries(
    Object.entries(command.subCommands ?? {}).map(([name, load]) => [
      name,
      // only its name and summary are shown
      { meta: async () => ({ name, description: (await load()).summary }) },
    ]),
  )
}

function cittyFlag(flag: Flag, shownDefault?: string): ArgsDef[string] {
  const base = {
    description:
      flag.help +
      (flag.type === "list" && !flag.help.includes("repeatable") ? " (repeatable)" : ""),
    ...(flag.short === undefined ? {} : { alias: [flag.short] }),
  }
  if (flag.type === "boolean") {
    const isOn = flag.default === true
    return {
      ...base,
      type: "boolean",
      ...(isOn ? { default: true, negativeDescription: "turns it off" } : {}),
    }
  }
  const value = shownDefault ?? ("default" in flag ? flag.default : undefined)
  const withDefault = value === undefined ? base : { ...base, default: String(value) }
  if (flag.type === "enum") return { ...withDefault, type: "enum", options: [...flag.values] }
  const hint = flag.hint ?? (flag.type === "integer" || flag.type === "number" ? "n" : undefined)
  return { ...withDefault, type: "string", ...(hint === undefined ? {} : { valueHint: hint }) }
}

function aliasLines(command: Command): string[] {
  const named: [string, readonly string[]][] = [
    ...engineOptions(command).map((o): [string, readonly string[]] => [o.flag, o.aliases]),
    ...Object.entries(command.flags).map(([name, flag]): [string, readonly string[]] => [
      name,
      flag.aliases ?? [],
    ]),
  ]
  return named
    .filter(([, aliases]) => aliases.length > 0)
    .map(
      ([name, aliases]) =>
        `  ${aliases
          .map((a) => `--${a}`)
          .join(" ")
          .padEnd(44)} = --${name}`,
    )
}
