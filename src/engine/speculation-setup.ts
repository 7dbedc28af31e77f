import { type EngineConfig, engineConfig } from "../config.ts"
import { ConfigError } from "../errors.ts"
import { KVPool } from "../kvcache/pool.ts"
import type { Backend } from "../native/backend.ts"
import { loadWeights } from "../weights/load.ts"
import { buildModel, type BuiltModel } from "./build.ts"
import { DraftModel } from "./draft-model.ts"
import type { EngineHooks } from "./engine.ts"
import { kvLayers, kvType, stateLayers } from "./kv-layers.ts"
import { ModelRunner, type RunnerLimits } from "./model-runner.ts"
import type { Repacking } from "./repack.ts"
import { NgramDrafter, Speculation } from "./speculation.ts"

interface Setup {
  readonly backend: Backend
  /** Where files are read. */
  readonly host: Backend
  /** Holds the draft model. */
  readonly resources: DisposableStack
  readonly limits: RunnerLimits & { readonly pages: number; readonly pageSize: number }
  readonly hasStates: boolean
  /** As the model's own weights, where those are rearranged. */
  readonly pack: Repacking["pack"] | undefined
  readonly hooks: EngineHooks
}

/**
 * Undefined where none is asked for, and, with a line in the log, where there can be none.
 *
 * @throws ConfigError naming what the draft model's vocabulary differs in
 */
export async function speculationFor(
  config: EngineConfig,
  target: BuiltModel,
  setup: Setup,
): Promise<Speculation | undefined> {
  const { draft, spec, specLookup, specDraft } = config
  if (spec === "off" && draft === undefined) return undefined
  if (setup.hasStates || target.config.encoder !== undefined) {
    const flag = draft === undefined ? `--spec ${spec}` : "--draft"
    const why = setup.hasStates
      ? "this model keeps a state per sequence, which cannot be taken back"
      : "this model generates nothing"
    setup.hooks.onLog?.("warning", `${flag} is off: ${why}`)
    return undefined
  }
  if (draft === undefined) return new Speculation(new NgramDrafter(specLookup, specDraft))
  return new Speculation(await draftModel({ ...config, draft }, target, setup))
}

async function draftModel(
  config: EngineConfig & { readonly draft: string },
  target: BuiltModel,
  { backend, host, resources, limits, pack, hooks }: Setup,
): Promise<DraftModel> {
  const own = engineConfig({ model: config.draft, precision: config.precision, fuse: config.fuse })
  const built = await buildModel(own)
  resources.defer(() => built.weights.close())
  const difference = vocabularyDifference(target, built)
  if (difference !== undefined)
    throw new ConfigError(`--draft ${config.draft}: its vocabulary is another: ${difference}`)
  if (stateLayers(built.config).length > 0)
    throw new ConfigError(`--draft ${config.draft}: a model with a state per sequence`)
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
  const runner = resources.use(new ModelRunner(backend, built.model, pool, limits))
  hooks.onLog?.("info", `${config.draft} guesses tokens ahead`)
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
