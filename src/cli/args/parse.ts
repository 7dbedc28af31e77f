import { CONFIG_OPTIONS, type ConfigOption, parseOption } from "../../config.ts"
import { ConfigError, UsageError } from "../../errors.ts"
import { COMMON_FLAGS } from "./common.ts"
import type { Command, Flag, Flags, ForeignFlag, Invocation } from "./spec.ts"
import { similar } from "./suggest.ts"

/** A flag by every name it has: the command's own, the common ones, the engine's. */
interface Known {
  readonly key: string
  readonly flag: Flag
  readonly option: ConfigOption | undefined
}

export interface Parsed {
  readonly invocation: Invocation<Flags>
  /** Lines about flags that were accepted and do nothing. */
  readonly warnings: readonly string[]
}

/** Reads a command's arguments. @throws UsageError naming the argument that is wrong */
export function parseArguments(command: Command, argv: readonly string[]): Parsed {
  const names = knownNames(command)
  const values: Record<string, unknown> = {}
  const engine: Record<string, unknown> = {}
  const given = new Set<string>()
  const args: string[] = []
  const warnings: string[] = []

  const set = ({ key, flag, option }: Known, shown: string, text: string | undefined): void => {
    given.add(key)
    const value = option === undefined ? flagValue(flag, shown, text) : optionValue(option, text)
    const target = option === undefined ? values : engine
    const before = target[key]
    const repeats = flag.type === "list" && Array.isArray(before) && Array.isArray(value)
    target[key] = repeats ? [...before, ...value] : value
  }

  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] as string
    if (word === "--") {
      args.push(...argv.slice(i + 1))
      break
    }
    if (!word.startsWith("-") || word === "-" || /^-\d/.test(word)) {
      args.push(word)
      continue
    }
    const equals = word.indexOf("=")
    const shown = equals < 0 ? word : word.slice(0, equals)
    const inline = equals < 0 ? undefined : word.slice(equals + 1)
    const foreign = names.has(shown) ? undefined : foreignFlag(command, shown)
    if (foreign?.kind === "refused")
      throw new UsageError(`${shown} is not a flag here`, { hint: foreign.says })
    if (foreign !== undefined) {
      warnings.push(`${shown} has no effect: ${foreign.says}`)
      const { kind } = foreign
      if (kind === "value" && inline === undefined && takesWord(argv[i + 1])) i++
      continue
    }
    const { known, negated } = find(names, shown, command)
    if (known.flag.type === "boolean") {
      if (negated && inline !== undefined)
        throw new UsageError(`${shown} takes no value, but ${JSON.stringify(inline)} was given`)
      let text = negated ? "false" : inline
      // KTransformers writes some of its booleans with a word behind them
      if (text === undefined && shown.includes("_") && /^(true|false)$/i.test(argv[i + 1] ?? ""))
        text = argv[++i]
      set(known, shown, text ?? "true")
      continue
    }
    const text = inline ?? argv[++i]
    if (text === undefined) throw new UsageError(`${shown} needs a value`)
    set(known, shown, text)
  }
  checkPositionals(command, args)
  fillDefaults({ ...COMMON_FLAGS, ...command.flags }, values)
  const invocation = { args, flags: values as Invocation<Flags>["flags"], given, engine }
  return { invocation, warnings }
}

/** Engine options that a command shows, in the table's order. */
export function engineOptions(command: Command): ConfigOption[] {
  return CONFIG_OPTIONS.filter(({ key }) => command.engine?.includes(key))
}

/** The flag that an engine option is in help and parsing. */
export function flagOf(option: ConfigOption): Flag {
  const { help, aliases } = option
  const env = option.env === undefined ? "" : ` [${option.env}]`
  const base = { help: help + env, aliases }
  if (option.type === "enum") return { ...base, type: "enum", values: option.values ?? [] }
  if (option.type === "list") return { ...base, type: "list", hint: "file" }
  if (option.type === "boolean")
    return { ...base, type: "boolean", default: option.default === true }
  return { ...base, type: option.type, ...(option.hint === undefined ? {} : { hint: option.hint }) }
}

function knownNames(command: Command): Map<string, Known> {
  const names = new Map<string, Known>()
  const add = (name: string, known: Known): void => {
    names.set(`--${name}`, known)
    for (const alias of known.flag.aliases ?? []) names.set(dashed(alias), known)
    if (known.flag.short !== undefined) names.set(`-${known.flag.short}`, known)
  }
  for (const option of engineOptions(command))
    add(option.flag, { key: option.key, flag: flagOf(option), option })
  for (const [key, flag] of Object.entries({ ...COMMON_FLAGS, ...command.flags }))
    add(key, { key, flag, option: undefined })
  return names
}

/** An alias as it is written. */
export function dashed(alias: string): string {
  return alias.startsWith("-") ? alias : `--${alias}`
}

function find(
  names: ReadonlyMap<string, Known>,
  shown: string,
  command: Command,
): { known: Known; negated: boolean } {
  // llama.cpp reads either of _ and -
  for (const spelled of [shown, shown.replaceAll("_", "-")]) {
    const known = names.get(spelled)
    if (known !== undefined) return { known, negated: false }
    if (!spelled.startsWith("--no-")) continue
    const positive = names.get(`--${spelled.slice(5)}`)
    if (positive?.flag.type === "boolean") return { known: positive, negated: true }
  }
  const [best] = similar(shown, [...names.keys(), ...negations(names)].filter(isLong(shown)))
  throw new UsageError(`unknown flag ${shown}`, {
    hint: best === undefined ? `\`kt ${command.name} --help\` lists them` : `did you mean ${best}?`,
  })
}

function isLong(shown: string): (name: string) => boolean {
  return (name) => name.startsWith("--") === shown.startsWith("--")
}

function negations(names: ReadonlyMap<string, Known>): string[] {
  return [...names]
    .filter(([name, { flag }]) => name.startsWith("--") && flag.type === "boolean")
    .map(([name]) => `--no-${name.slice(2)}`)
}

function foreignFlag({ foreign = {} }: Command, shown: string): ForeignFlag | undefined {
  const name = shown.startsWith("--") ? shown.slice(2) : shown
  const spelled = [name, name.replaceAll("_", "-")]
  for (const one of [...spelled, ...spelled.map((word) => word.replace(/^-?no-/, ""))])
    if (Object.hasOwn(foreign, one)) return foreign[one]
  return undefined
}

function takesWord(next: string | undefined): boolean {
  return next !== undefined && !next.startsWith("-")
}

function optionValue(option: ConfigOption, text: string | undefined): unknown {
  try {
    return parseOption(option, text ?? "")
  } catch (cause) {
    if (cause instanceof ConfigError) throw new UsageError(cause.message, { cause })
    throw cause
  }
}

function flagValue(flag: Flag, shown: string, text = ""): unknown {
  const fail = (expected: string): never => {
    throw new UsageError(`${shown} ${text === "" ? '""' : text}: expected ${expected}`)
  }
  switch (flag.type) {
    case "string":
      return text
    case "list":
      return [text]
    case "enum":
      return flag.values.includes(text) ? text : fail(`one of ${flag.values.join(", ")}`)
    case "boolean":
      if (/^(true|1|yes|on)$/i.test(text)) return true
      return /^(false|0|no|off)$/i.test(text) ? false : fail("true or false")
    case "integer":
    case "number": {
      const { min = -Infinity, max = Infinity } = flag
      const value = text.trim() === "" ? Number.NaN : Number(text)
      const whole = flag.type === "number" || Number.isInteger(value)
      if (whole && value >= min && value <= max) return value
      const kind = flag.type === "integer" ? "an integer" : "a number"
      return fail(min > -Infinity || max < Infinity ? `${kind} in ${range(min, max)}` : kind)
    }
  }
}

function range(min: number, max: number): string {
  return `${min === -Infinity ? "" : min}..${max === Infinity ? "" : max}`
}

function checkPositionals(command: Command, args: readonly string[]): void {
  const positionals = command.positionals ?? []
  const missing = positionals.find(({ required }, i) => required === true && args[i] === undefined)
  const usage = `\`kt ${command.name} --help\` shows how it is used`
  if (missing !== undefined)
    throw new UsageError(`${missing.name} is missing: ${missing.help}`, { hint: usage })
  const extra = positionals.at(-1)?.many === true ? undefined : args[positionals.length]
  if (extra !== undefined) throw new UsageError(`unexpected argument "${extra}"`, { hint: usage })
}

function fillDefaults(flags: Flags, values: Record<string, unknown>): void {
  for (const [key, flag] of Object.entries(flags)) {
    if (values[key] !== undefined) continue
    if (flag.type === "list") values[key] = []
    else if (flag.type === "boolean") values[key] = flag.default ?? false
    else if (flag.default !== undefined) values[key] = flag.default
  }
}
