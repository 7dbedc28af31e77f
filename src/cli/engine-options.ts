import { CONFIG_OPTIONS, type EngineConfig, engineConfig, parseOption } from "../config.ts"
import { ConfigError, UsageError } from "../errors.ts"
import { locateWeights } from "../weights/open.ts"
import type { EngineKey, Invocation } from "./args/spec.ts"
import { resolveNamed } from "./created-model.ts"
import { type ConfigFile, readConfigFile } from "./kt-config.ts"
import { logger } from "./log.ts"

/** Options that decide what is computed: commands that compute logits take these. */
export const COMPUTE_KEYS: readonly EngineKey[] = [
  "model",
  "modelPath",
  "rules",
  "operators",
  "device",
  "threads",
  "numa",
  "precision",
  "kvDtype",
  "pageSize",
  "maxBatchTokens",
  "expertsPerToken",
  "spec",
  "draft",
  "specLookup",
  "specDraft",
  "fuse",
  "repack",
  "stepGraph",
  "streamExperts",
  "expertStats",
]

/** Options of an engine that answers one conversation. */
export const SINGLE_KEYS: readonly EngineKey[] = [
  ...COMPUTE_KEYS,
  "contextLength",
  "kvCacheTokens",
  "prefixCache",
  "cacheRamMib",
  "cacheDiskMib",
  "cacheDir",
]

export const ALL_KEYS: readonly EngineKey[] = CONFIG_OPTIONS.map(({ key }) => key)

export const MODEL_POSITIONAL = {
  name: "MODEL",
  help: "a GGUF file, a Hugging Face folder, or a name from `kt list` (default: the default model)",
} as const

export const CONFIG_FLAG = {
  config: { type: "string", hint: "file", help: "KTransformers' config.yaml; flags win over it" },
} as const

/** The configuration file of `--config`, its warnings said. */
export function configFile(invocation: Invocation<typeof CONFIG_FLAG>): ConfigFile {
  const file = invocation.flags.config
  if (file === undefined) return { engine: {}, flags: {}, warnings: [] }
  const config = readConfigFile(file)
  for (const warning of config.warnings) logger("config").warn(warning)
  return config
}

/**
 * What the engine is built from, with the model as a path: a flag wins over the positional's absence, the environment,
 * the configuration file and the default, in this order. `given` are values that the command fixes itself.
 */
export function engineOptions(
  invocation: Invocation<Record<never, never>>,
  file: ConfigFile = { engine: {}, flags: {}, warnings: [] },
  given: Partial<Record<keyof EngineConfig, unknown>> = {},
  resolve: (model: string) => string = resolveNamed,
): EngineConfig {
  const [positional] = invocation.args
  if (positional !== undefined && invocation.engine.model !== undefined)
    throw new UsageError(
      `the model is given twice: ${positional} and --model ${String(invocation.engine.model)}`,
    )
  const values: Partial<Record<keyof EngineConfig, unknown>> = {
    ...file.engine,
    ...fromEnvironment(),
    ...invocation.engine,
    ...(positional === undefined ? {} : { model: positional }),
    ...given,
  }
  // KTransformers names a Hugging Face folder alone where it holds the weights too
  const { modelPath } = values
  if (values.model === undefined && typeof modelPath === "string" && holdsWeights(modelPath))
    values.model = modelPath
  const config = engineConfig(values)
  return engineConfig({ ...config, model: resolve(config.model) })
}

/** MODEL as it was written, wherever that was; undefined for the default one. */
export function givenModel(
  invocation: Invocation<Record<never, never>>,
  file: ConfigFile = { engine: {}, flags: {}, warnings: [] },
): string | undefined {
  const { model } = { ...file.engine, ...fromEnvironment(), ...invocation.engine }
  return invocation.args[0] ?? (typeof model === "string" ? model : undefined)
}

/** Whether a model is named anywhere; without that it is the default one. */
export function namesModel(
  invocation: Invocation<Record<never, never>>,
  file: ConfigFile,
): boolean {
  const { model, modelPath } = { ...file.engine, ...fromEnvironment(), ...invocation.engine }
  return invocation.args.length > 0 || model !== undefined || modelPath !== undefined
}

function fromEnvironment(): Partial<Record<keyof EngineConfig, unknown>> {
  const values: Partial<Record<keyof EngineConfig, unknown>> = {}
  for (const option of CONFIG_OPTIONS) {
    const text = option.env === undefined ? undefined : process.env[option.env]
    if (text === undefined || text === "") continue
    try {
      values[option.key] = parseOption(option, text)
    } catch (cause) {
      const detail = cause instanceof ConfigError ? cause.message : String(cause)
      throw new ConfigError(`environment variable ${option.env}: ${detail}`, { cause })
    }
  }
  return values
}

function holdsWeights(folder: string): boolean {
  try {
    locateWeights(folder)
    return true
  } catch {
    return false
  }
}
