import type { CONFIG_OPTIONS, EngineConfig } from "../../config.ts"

interface FlagBase {
  readonly help: string
  /** One letter, used with one dash. */
  readonly short?: string
  /** Other programs' names for it, used with two dashes unless they begin with one. */
  readonly aliases?: readonly string[]
  /** Shown in place of the value. */
  readonly hint?: string
}

/** One flag of a command. */
export type Flag =
  | (FlagBase & { readonly type: "string"; readonly default?: string })
  | (FlagBase & {
      readonly type: "integer" | "number"
      readonly min?: number
      readonly max?: number
      readonly default?: number
    })
  | (FlagBase & { readonly type: "boolean"; readonly default?: boolean })
  | (FlagBase & {
      readonly type: "enum"
      readonly values: readonly string[]
      readonly default?: string
    })
  /** May be given several times. */
  | (FlagBase & { readonly type: "list" })

export type Flags = Readonly<Record<string, Flag>>

type Optional<F, T> = F extends { readonly default: unknown } ? T : T | undefined

/** What a flag's value is once it is read. */
export type FlagValue<F extends Flag> = F extends { readonly type: "boolean" }
  ? boolean
  : F extends { readonly type: "list" }
    ? readonly string[]
    : F extends { readonly type: "integer" | "number" }
      ? Optional<F, number>
      : Optional<F, string>

export type FlagValues<F extends Flags> = { readonly [K in keyof F]: FlagValue<F[K]> }

export interface Positional {
  readonly name: string
  readonly help: string
  readonly required?: boolean
  /** As many as are given; only the last may be. */
  readonly many?: boolean
}

export interface Example {
  readonly command: string
  readonly says: string
}

export type EngineKey = (typeof CONFIG_OPTIONS)[number]["key"]

/** What a command is given. */
export interface Invocation<F extends Flags> {
  readonly args: readonly string[]
  readonly flags: FlagValues<F>
  /** Names of flags that the user gave. */
  readonly given: ReadonlySet<string>
  /** Engine options that flags gave, without defaults. */
  readonly engine: Partial<Record<keyof EngineConfig, unknown>>
}

/** A flag of another program, and what it comes to. */
export interface ForeignFlag {
  /** Without effect, which a warning says: "value" has a word behind it, "switch" has none; or refused. */
  readonly kind: "value" | "switch" | "refused"
  /** Why, or what does that work here. */
  readonly says: string
}

/** A command: everything its help, its parsing and its run need. */
export interface Command<F extends Flags = Flags> {
  readonly name: string
  readonly summary: string
  /** Further paragraphs of the help. */
  readonly details?: string
  readonly positionals?: readonly Positional[]
  readonly flags: F
  /** Options of the engine that this command takes as flags. */
  readonly engine?: readonly EngineKey[]
  readonly examples: readonly Example[]
  /** Flags of other programs that are none here: by name, those of one dash with it. */
  readonly foreign?: Readonly<Record<string, ForeignFlag>>
  readonly subCommands?: Readonly<Record<string, () => Promise<Command>>>
  /** How much is logged without --verbose or --quiet. */
  readonly logLevel?: "info" | "warning"
  run(invocation: Invocation<F>): Promise<void>
}

/** Keeps the flags' types for `run`, and hides them from whoever holds several commands. */
export function defineCommand<const F extends Flags>(command: Command<F>): Command {
  return command as unknown as Command
}
