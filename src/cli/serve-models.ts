import { resolve } from "node:path"

import type { EngineConfig } from "../config.ts"
import { UsageError } from "../errors.ts"
import { queryCpu } from "../native/backend.ts"
import { durationMs } from "../server/models/keep-alive.ts"
import type { ModelsOptions } from "../server/models/manager.ts"
import { type Alias, aliased } from "../server/models/names.ts"
import type { SamplingDefaults, ServerDeps } from "../server/types.ts"
import { Turns } from "../worker/turns.ts"
import type { Flags, FlagValues } from "./args/spec.ts"
import { createdFolder, modelsFolder } from "./home.ts"
import { Catalog, type CatalogOptions, loadedModel } from "./library/catalog.ts"
import { Store } from "./library/store.ts"
import { openSession, type Session } from "./session.ts"

/** Flags of a server's models. */
export const MODELS_FLAGS = {
  models: {
    type: "string",
    aliases: ["models-dir"],
    hint: "folder",
    help: "models that are loaded when a request names them; without MODEL none is at the start (default: the models folder)",
  },
  "max-models": {
    type: "integer",
    aliases: ["models-max"],
    min: 1,
    max: 64,
    default: 3,
    help: "models loaded at once; the least recently used leaves",
  },
  "keep-alive": {
    type: "string",
    hint: "time",
    default: "5m",
    help: "how long a model stays that a request brought in: 10m, 1h30m, -1 = for ever; MODEL stays in any case",
  },
  "load-timeout": {
    type: "number",
    min: 1,
    max: 86_400,
    default: 300,
    help: "seconds that a request waits for its model",
  },
  alias: {
    type: "list",
    short: "a",
    hint: "name=model",
    help: "another name for a model; * in it is any letters, as in claude*=MODEL; a name alone is MODEL's, as --model-name gives it",
  },
} as const satisfies Flags

export type ModelsFlags = FlagValues<typeof MODELS_FLAGS>

/** Where a server's models lie. */
export function servedFolder(flags: ModelsFlags): string {
  return flags.models === undefined ? modelsFolder() : resolve(flags.models)
}

/** Flags checked, before minutes of loading. @throws UsageError */
export function modelsOptions(
  flags: ModelsFlags,
  config: EngineConfig,
): Omit<ModelsOptions, "library"> {
  const keepAliveMs = durationMs(flags["keep-alive"])
  if (keepAliveMs === undefined)
    throw new UsageError(
      `--keep-alive ${flags["keep-alive"]}: expected seconds, or a time such as 10m or 1h30m`,
    )
  return {
    aliases: flags.alias.map(aliasOf),
    maxModels: flags["max-models"],
    memoryBytes: config.memoryBytes || queryCpu().memoryFreeBytes,
    keepAliveMs: keepAliveMs < 0 ? Number.POSITIVE_INFINITY : keepAliveMs,
    loadTimeoutMs: flags["load-timeout"] * 1000,
  }
}

/** @throws UsageError where the words are no name=model */
function aliasOf(text: string): Alias {
  const equals = text.indexOf("=")
  if (equals < 1 || equals === text.length - 1)
    throw new UsageError(`--alias ${text}: expected NAME=MODEL`)
  return { name: text.slice(0, equals), model: text.slice(equals + 1) }
}

export interface ServedModels {
  readonly models: NonNullable<ServerDeps["models"]>
  /** The model that is loaded at the start. */
  readonly session: Session | undefined
}

/** The models of a server; the first is loaded now, where there is one. */
export async function servedModels(
  flags: ModelsFlags,
  config: EngineConfig,
  first: CatalogOptions["first"],
  defaultsOf: (path: string) => SamplingDefaults,
): Promise<ServedModels> {
  const options = modelsOptions(flags, config)
  const turns = Turns.buffer()
  const library = new Catalog({
    folder: servedFolder(flags),
    config,
    turns,
    defaultsOf,
    store: new Store(createdFolder(), servedFolder(flags)),
    ...(first === undefined ? {} : { first }),
  })
  for (const alias of options.aliases)
    if (aliased(alias, library.list()) === undefined)
      throw new UsageError(`--alias ${alias.name}=${alias.model}: there is no such model`, {
        hint: `known are ${library
          .list()
          .map(({ name }) => name)
          .slice(0, 12)
          .join(", ")}`,
      })
  if (first === undefined) return { models: { ...options, library }, session: undefined }
  const { name, template } = first
  const own = template === undefined ? {} : { template }
  const session = await openSession(config, name, { turns, ...own })
  const model = library.first()
  const loaded = loadedModel(session, config, defaultsOf)
  return { models: { ...options, library, first: { model, loaded } }, session }
}
