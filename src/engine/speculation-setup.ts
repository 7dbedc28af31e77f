import { type EngineConfig, engineConfig } from "../config.ts"
import { ConfigError } from "../errors.ts"
import { kvBytesPerPage, KVPool } from "../kvcache/pool.ts"
import type { Backend } from "../native/backend.ts"
import { loadWeights } from "../weights/load.ts"
import { samplingBackend } from "./backends.ts"
import { buildModel, type BuiltModel } from "./build.ts"
import { DraftModel } from "./draft-model.ts"
import type { EngineHooks } from "./engine.ts"
import { kvLayers, kvType, stateLayers } from "./kv-layers.ts"
import type { DraftRequest } from "./memory-plan.ts"
import { ModelRunner, type RunnerLimits } from "./model-runner.ts"
import { workspaceBytes } from "./plan.ts"
import type { Repacking } from "./repack.ts"
import { NgramDrafter, Speculation } from "./speculation.ts"

interface Setup {
  readonly backend: Backend
  /** Where files are read. */
  readonly host: Backend
  /** Holds the draft model. */
  readonly resources: DisposableStack
  readonly limits: RunnerLimits & { readonly pages: number; readonly pageSize: number }
  /** Of draftFor(). */
  readonly draft: Draft | undefined
  /** As the model's own weights, where those are rearranged. */
  readonly pack: Repacking["pack"] | undefined
  readonly hooks: EngineHooks
}

/** A smaller model, not loaded yet. */
export interface Draft {
  readonly name: string
  readonly own: EngineConfig
  readonly built: BuiltModel
}

/** Whether tokens can be guessed ahead; a line in the log says why not. */
function canSpeculate(
  { draft, spec }: EngineConfig,
  target: BuiltModel,
  hooks: EngineHooks,
): boolean {
  if (spec === "off" && draft === undefined) return false
  const hasStates = stateLayers(target.config).length > 0
  if (!hasStates && target.config.encoder === undefined) return true
  const flag = draft === undefined ? `--spec ${spec}` : "--draft"
  const why = hasStates
    ? "this model keeps a state per sequence, which cannot be taken back"
    : "this model generates nothing"
  hooks.onLog?.("warning", `${flag} is off: ${why}`)
  return false
}

/**
 * The draft model that is asked for, before memory is planned; undefined where there is none.
 *
 * @throws ConfigError naming what its vocabulary differs in
 */
export async function draftFor(
  config: EngineConfig,
  target: BuiltModel,
  resources: DisposableStack,
  hooks: EngineHooks,
): Promise<Draft | undefined> {
  const { draft: name, precision, fuse } = config
  if (name === undefined || !canSpeculate(config, target, hooks)) return undefined
  const own = engineConfig({ model: name, precision, fuse })
  const built = await buildModel(own)
  resources.defer(() => built.weights.close())
  const difference = vocabularyDifference(target, built)
  if (difference !== undefined)
    throw new ConfigError(`--draft ${name}: its vocabulary is another: ${difference}`)
  if (stateLayers(built.config).length > 0)
    throw new ConfigError(`--draft ${name}: a model with a state per sequence`)
  return { name, own, built }
}

/** What a draft model takes, for steps of the target's size. */
export function draftRequest(config: EngineConfig, { own, built }: Draft): DraftRequest {
  const layers = kvLayers(built.config)
  return {
    weightBytes: built.weights.totalBytes,
    bytesPerPage: kvBytesPerPage(layers, config.pageSize, kvType(own, layers)),
    workspaceBytes: workspaceBytes(config, built.config),
  }
}

/** Undefined where none is asked for or can be. */
export function speculationFor(
  config: EngineConfig,
  target: BuiltModel,
  setup: Setup,
): Speculation | undefined {
  const { specLookup, specDraft } = config
  if (setup.draft !== undefined) return new Speculation(loadDraft(config, setup.draft, setup))
  if (config.draft !== undefined || !canSpeculate(config, target, setup.hooks)) return undefined
  return new Speculation(new NgramDrafter(specLookup, specDraft))
}

function loadDraft(
  config: EngineConfig,
  { name, own, built }: Draft,
  { backend, host, resources, limits, pack, hooks }: Setup,
): DraftModel {
  resources.use(
    loadWeights(built.model, built.weights, {
      backend,
      host,
      ...(pack === undefined ? {} : { pack }),
    }),
  )
  const layers = kvLayers(built.config)
  const { pages, pageSize, maxBatchTokens } = limits
  const pool = resources.use(
    new KVPool(backend, layers, { pages, pageSize, dtype: kvType(own, layers) }),
  )
  const sampling = samplingBackend(host, backend)
  const runner = resources.use(new ModelRunner(backend, built.model, pool, limits, { sampling }))
  hooks.onLog?.("info", `${name} guesses tokens ahead`)
  return resources.use(
    new DraftModel(runner, { pages, pageSize, maxBatchTokens, most: config.specDraft }),
  )
}

/** Of ids and, where both files have them, of the tokens that they stand for. */
function vocabularyDifference(target: BuiltModel, draft: BuiltModel): string | undefined {
  const [size, other] = [target.config.vocab_size, draft.config.vocab_size]
  if (size !== other) return `${other} tokens, not ${size}`
  const [tokens, others] = [tokensOf(target), tokensOf(draft)]
  if (tokens === undefined || others === undefined) return undefined
  const at = tokens.findIndex((token, id) => token !== others[id])
  if (at < 0) return undefined
  return `token ${at} is ${JSON.stringify(others[at])}, not ${JSON.stringify(tokens[at])}`
}

function tokensOf({ weights }: BuiltModel): readonly unknown[] | undefined {
  if (weights.kind !== "gguf") return undefined
  const tokens: unknown = weights.metadata.get("tokenizer.ggml.tokens")
  return Array.isArray(tokens) ? tokens : undefined
}
