import { type EngineConfig, engineConfig } from "../config.ts"
import { Engine } from "../engine/engine.ts"
import { ConfigError, KtError } from "../errors.ts"
import type { ModelConfig } from "../models/config.ts"
import { asCausalLM, type CausalLM, createModel } from "../models/registry.ts"
import type { Tokenizer } from "../tokenizer/tokenizer.ts"
import type { GenerateParams } from "../worker/protocol.ts"

/** Options of `generate`, in Transformers' terms. */
export interface GenerateOptions {
  /** Default 256. */
  readonly maxNewTokens?: number
  /** Draw tokens; otherwise, and with temperature 0, the best one is taken. Default: whether a temperature is given. */
  readonly doSample?: boolean
  readonly temperature?: number
  readonly topK?: number
  readonly topP?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly seed?: number
  /** Ids that end the text; default: the model's own. */
  readonly eosTokenId?: number | readonly number[]
  /** Called with each new id as it comes. */
  readonly onToken?: (id: number) => void
}

/** What a model is loaded with; names and bounds are those of the command line's options. */
export type LoadOptions = Partial<
  Pick<
    EngineConfig,
    "threads" | "precision" | "contextLength" | "pageSize" | "maxBatchTokens" | "fuse" | "repack"
  >
> & {
  /** Bytes of weights taken over so far, of all. */
  readonly onProgress?: (done: number, total: number) => void
}

/** A model as Transformers' users know it: built from a configuration, then loaded, then generating. */
export class PretrainedModel implements Disposable {
  readonly config: ModelConfig
  /** The module tree; after loading, with its operators. */
  root: CausalLM
  /** What planning and loading had to say. */
  warnings: readonly string[] = []
  #engine: Engine | undefined
  #nextId = 0
  #turn: Promise<unknown> = Promise.resolve()

  private constructor(config: ModelConfig, root: CausalLM) {
    this.config = config
    this.root = root
  }

  static async fromConfig(config: ModelConfig): Promise<PretrainedModel> {
    return new PretrainedModel(config, await createModel(config))
  }

  /** See `optimizeAndLoadGguf`. */
  async load(
    rules: string | undefined,
    path: string,
    config: ModelConfig,
    options: LoadOptions = {},
  ): Promise<void> {
    if (this.#engine !== undefined) throw new KtError("the model is loaded already")
    const { onProgress, ...values } = options
    const settings = engineConfig({
      ...values,
      ...(rules === undefined ? {} : { rules }),
      model: path,
      // one sequence at a time, so nothing is shared
      maxBatchSize: 1,
      prefixCache: false,
    })
    const warnings: string[] = []
    this.#engine = await Engine.create(
      settings,
      {
        onProgress: (stage, done, total) => {
          if (stage === "weights") onProgress?.(done, total)
        },
        onLog: (_, message) => void warnings.push(message),
      },
      config,
    )
    this.root = asCausalLM(this.#engine.model)
    this.warnings = warnings
  }

  /** Ids of a prompt followed by those that the model adds, the one that ends the text included. */
  generate(ids: ArrayLike<number>, options: GenerateOptions = {}): Promise<Int32Array> {
    // one sequence at a time: calls that overlap take turns
    const turn = this.#turn.then(() => this.#generate(ids, options))
    this.#turn = turn.catch(() => undefined)
    return turn
  }

  async #generate(ids: ArrayLike<number>, options: GenerateOptions): Promise<Int32Array> {
    const engine = this.#engine
    if (engine === undefined) {
      throw new KtError("the model has no weights yet", { hint: "call optimizeAndLoadGguf first" })
    }
    const out = Array.from(ids)
    const id = this.#nextId++
    engine.add(id, Int32Array.from(ids), generateParams(this.config, options))
    let finished = false
    try {
      while (!finished) {
        for (const event of engine.step()) {
          if (event.id !== id) continue
          if (event.finish === "error") throw new KtError(event.error ?? "the step failed")
          finished ||= event.finish !== undefined
          if (event.token < 0) continue
          out.push(event.token)
          options.onToken?.(event.token)
        }
        // timers and input get their turn between steps
        await new Promise(setImmediate)
      }
    } finally {
      if (!finished) engine.abort(id)
    }
    return Int32Array.from(out)
  }

  [Symbol.dispose](): void {
    this.#engine?.[Symbol.dispose]()
    this.#engine = undefined
  }
}

function generateParams(config: ModelConfig, options: GenerateOptions): GenerateParams {
  const { temperature, doSample = temperature !== undefined, eosTokenId, seed } = options
  const { maxNewTokens = 256 } = options
  if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1) {
    throw new ConfigError(`maxNewTokens ${maxNewTokens}: expected a positive integer`)
  }
  return {
    maxTokens: maxNewTokens,
    stopTokens: eosTokenId === undefined ? config.eos_token_id : [eosTokenId].flat(),
    temperature: doSample ? (temperature ?? 1) : 0,
    topK: options.topK ?? 0,
    topP: options.topP ?? 1,
    minP: options.minP ?? 0,
    repetitionPenalty: options.repetitionPenalty ?? 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    ...(seed === undefined ? {} : { seed }),
  }
}

/**
 * Replaces modules of a model as a rule file says (undefined: the default for the CPU) and binds
 * the weights of a GGUF file, a folder of GGUF shards or a folder of safetensors.
 * @throws ConfigError, FormatError or MemoryError
 */
export async function optimizeAndLoadGguf(
  model: PretrainedModel,
  rules: string | undefined,
  gguf: string,
  config: ModelConfig,
  options: LoadOptions = {},
): Promise<void> {
  await model.load(rules, gguf, config, options)
}

export interface Generation {
  /** The new ids, without the prompt's. */
  readonly ids: Int32Array
  /** Their text, special tokens left out. */
  readonly text: string
  readonly promptTokens: number
  /** Until the first new token. */
  readonly prefillSeconds: number
  /** From the first new token to the last. */
  readonly decodeSeconds: number
}

/** Runs a prompt and decodes what follows. */
export async function prefillAndGenerate(
  model: PretrainedModel,
  tokenizer: Tokenizer,
  ids: ArrayLike<number>,
  options: GenerateOptions = {},
): Promise<Generation> {
  const start = performance.now()
  let first: number | undefined
  const all = await model.generate(ids, {
    eosTokenId: [...new Set([...model.config.eos_token_id, ...tokenizer.eogIds])],
    ...options,
    onToken: (id) => {
      first ??= performance.now()
      options.onToken?.(id)
    },
  })
  const end = performance.now()
  const fresh = all.subarray(ids.length)
  return {
    ids: fresh,
    text: tokenizer.decode(fresh, { skipSpecial: true }),
    promptTokens: ids.length,
    prefillSeconds: ((first ?? end) - start) / 1000,
    decodeSeconds: (end - (first ?? end)) / 1000,
  }
}
