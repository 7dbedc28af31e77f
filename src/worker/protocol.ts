/**
 * What crosses between the server (main thread) and the engine Worker: plain objects, token ids only.
 * The engine knows nothing of text; stop strings, templates and detokenising are the server's.
 */

/** Samplers whose order a request may choose, by llama.cpp's names. */
export const SAMPLER_NAMES = [
  "penalties",
  "dry",
  "top_n_sigma",
  "temperature",
  "top_k",
  "typ_p",
  "top_p",
  "min_p",
  "xtc",
] as const

export type SamplerName = (typeof SAMPLER_NAMES)[number]

/** Samplers that are off where a request does not name them; names and meanings are llama.cpp's. */
export interface ExtraSampling {
  /** Locally typical sampling (arXiv:2202.00666); 1 is off. */
  readonly typicalP?: number
  /** Only tokens within so many standard deviations of the greatest logit (arXiv:2411.07641); 0 is off. */
  readonly topNSigma?: number
  /** How often all but the last of the tokens above the threshold are excluded; 0 is off. */
  readonly xtcProbability?: number
  /** Default 0.1; above 0.5 is off. */
  readonly xtcThreshold?: number
  /** The temperature moves by as much to both sides with the distribution's entropy (arXiv:2309.02772); 0 is off. */
  readonly dynatempRange?: number
  /** Default 1. */
  readonly dynatempExponent?: number
  /** Of the penalty for repeated sequences, multiplier * base ** (length - allowed length); 0 is off. */
  readonly dryMultiplier?: number
  /** Default 1.75. */
  readonly dryBase?: number
  /** Repetitions of as many tokens are not penalised; default 2. */
  readonly dryAllowedLength?: number
  /** Tokens that are searched for repetitions; -1 for all, 0 is off, default 64. */
  readonly dryPenaltyLastN?: number
  /** Tokens, or tokens and those that follow them, that a repetition does not go across. */
  readonly dryBreakers?: readonly (readonly number[])[]
  /** The version of mirostat (arXiv:2007.14966); 0 is off. With it only penalties, dry and temperature act besides. */
  readonly mirostat?: number
  /** Surprise aimed at, in bits; default 5. */
  readonly mirostatTau?: number
  /** Learning rate; default 0.1. */
  readonly mirostatEta?: number
  /** Last tokens of prompt and output that penalties look at; -1 (the default) for all. */
  readonly penaltyLastN?: number
  /** The samplers that act, in order; the default is that of SAMPLER_NAMES. */
  readonly samplers?: readonly SamplerName[]
}

export interface SamplingParams extends ExtraSampling {
  /** 0 is greedy. */
  readonly temperature: number
  /** 0 is off. */
  readonly topK: number
  /** 1 is off. */
  readonly topP: number
  /** 0 is off. */
  readonly minP: number
  /** 1 is off; divides (multiplies) positive (negative) logits of tokens seen in prompt or output. */
  readonly repetitionPenalty: number
  /** Subtracted once from the logits of tokens seen in the output. */
  readonly presencePenalty: number
  /** Subtracted once per occurrence from the logits of tokens seen in the output. */
  readonly frequencyPenalty: number
  /** Undefined draws a random one. */
  readonly seed?: number
  /** Added to the logits of these tokens. */
  readonly logitBias?: readonly (readonly [token: number, bias: number])[]
}

export interface GenerateParams extends SamplingParams {
  readonly maxTokens: number
  /** Token ids that end the sequence (they are delivered as the last event). */
  readonly stopTokens: readonly number[]
  /** Ignore `stopTokens` (benchmarks). */
  readonly ignoreEos?: boolean
  /** How many top log-probabilities each token event carries; undefined for none, 0 for only the chosen token's. */
  readonly logprobs?: number
  /** The same of the prompt's tokens, which come with the first event; such prompts are computed whole. */
  readonly promptLogprobs?: number
  /** Steps that compute a part of the prompt are told of too. */
  readonly tellsProgress?: boolean
  /** What the output must match: xgrammar's structural tag as JSON text. */
  readonly grammar?: string
  /** The beginning of what must match, where the prompt ends with it. */
  readonly grammarWritten?: string
  /** A bound on the answer's reasoning. */
  readonly thinking?: ThinkingParams
}

/** Reasoning that ends after so many tokens, if the model has not ended it. */
export interface ThinkingParams {
  readonly budget: number
  /** The marks around reasoning, as text. */
  readonly open: string
  readonly close: string
  /** The prompt has begun it. */
  readonly isOpen: boolean
  /** Tokens that are forced then: the closing mark, and what comes with it. */
  readonly closing: readonly number[]
}

/** Tokens as text, in shared memory: their bytes one after the other, and where each ends. */
export interface TokenTable {
  readonly bytes: Uint8Array
  /** Tokens that no text is made of end where they begin. */
  readonly ends: Uint32Array
}

/** How one text becomes a vector, or a score. */
export interface PoolParams {
  /** "none": the states of all tokens, one after the other; "rank": the score of a text, or of a pair of them. */
  readonly pooling: "mean" | "cls" | "last" | "none" | "rank"
  /** Vectors get the length 1. Not of scores. */
  readonly normalize: boolean
  /** Only the first values of each vector, before they are normalised. */
  readonly dimensions?: number
  /** Where the second text of a pair begins. */
  readonly secondFrom?: number
  /** For models without a classification head: the tokens whose logits say that texts match, and that they do not. */
  readonly verdict?: readonly [yes: number, no: number]
}

/** What a text became. */
export interface Pooled {
  /** One vector, or those of all tokens; one score with "rank". */
  readonly values: Float32Array
  readonly promptTokens: number
  readonly cachedTokens: number
  readonly queueMs: number
  /** Computing the text. */
  readonly prefillMs: number
}

/** What a model is made for that is not made to generate (or not only). */
export interface PoolingInfo {
  readonly pooling: "mean" | "cls" | "last" | "rank"
  /** A text's vector has so many values. */
  readonly dimensions: number
  /** Its head ranks texts. */
  readonly hasClassifier: boolean
  readonly generates: boolean
}

export type FinishReason = "stop" | "length" | "abort" | "error"

export interface PromptLogprob {
  readonly logprob: number
  readonly top: readonly (readonly [token: number, logprob: number])[]
}

export interface TokenEvent {
  readonly id: number
  readonly token: number
  /** Natural log-probability under the model's own distribution (before temperature and penalties). */
  readonly logprob?: number
  readonly topLogprobs?: readonly (readonly [token: number, logprob: number])[]
  /** On the first event, where asked for: of the prompt's tokens from the second on. */
  readonly promptLogprobs?: readonly PromptLogprob[]
  readonly finish?: FinishReason
  /** With finish "error": why. */
  readonly error?: string
  /** With finish "error": the request is at fault, nothing was computed. */
  readonly isRefused?: boolean
  /** Of a text that was to be pooled, with its only event. */
  readonly pooled?: Float32Array
  /** On the last event of a sequence that had any: tokens guessed by speculative decoding, and those that were right. */
  readonly drafted?: number
  readonly accepted?: number
  /** Where asked for, in place of a token (-1): before a prompt's first step and after each. */
  readonly progress?: PromptProgress
  /** On the first event of a sequence. */
  readonly first?: {
    readonly promptTokens: number
    /** Prompt tokens taken from the prefix cache. */
    readonly cachedTokens: number
    readonly queueMs: number
    readonly prefillMs: number
  }
}

/** How far a prompt is computed. */
export interface PromptProgress {
  readonly total: number
  /** Taken from the prefix cache. */
  readonly cached: number
  /** Known now, what the cache had included. */
  readonly processed: number
  /** Since its first step began. */
  readonly ms: number
}

/** What the engine loaded. */
export interface EngineInfo {
  readonly modelPath: string
  readonly architecture: string
  readonly parameters: number
  readonly weightBytes: number
  readonly quantization: string
  readonly vocabSize: number
  readonly contextLength: number
  /** The model's own limit, before `--ctx`. */
  readonly trainedContextLength: number
  readonly maxBatchSize: number
  readonly kvCacheTokens: number
  readonly kvCacheBytes: number
  /** All that a draft model takes; 0 without one. */
  readonly draftBytes: number
  /** Host memory that prefixes may take beside the KV cache. */
  readonly cacheRamBytes: number
  readonly threads: number
  readonly numaNodes: number
  readonly isa: string
  readonly device: string
  readonly precision: "fast" | "f32"
  readonly loadMs: number
  /** Absent: the model is made to generate. */
  readonly pooling?: PoolingInfo
}

/** Sums over steps. */
export interface PhaseWork {
  readonly steps: number
  readonly sequences: number
  readonly tokens: number
  /** Positions that each sequence had before its step. */
  readonly positions: number
}

export interface EngineStats {
  readonly waiting: number
  readonly running: number
  readonly kvPagesTotal: number
  readonly kvPagesFree: number
  readonly prefixCachePages: number
  /** Bytes of known prefixes by tier, and what host memory and disk may hold. */
  readonly cacheDeviceBytes: number
  readonly cacheHostBytes: number
  readonly cacheHostLimitBytes: number
  readonly cacheDiskBytes: number
  readonly cacheDiskLimitBytes: number
  /** Tokens brought back from a tier. */
  readonly cacheHostTokensTotal: number
  readonly cacheDiskTokensTotal: number
  /** Blocks written; not written because too many waited; damaged or gone when they were read. */
  readonly cacheDiskWritesTotal: number
  readonly cacheDiskDropsTotal: number
  readonly cacheDiskFailuresTotal: number
  readonly promptTokensTotal: number
  readonly cachedTokensTotal: number
  readonly generatedTokensTotal: number
  readonly stepsTotal: number
  readonly preemptionsTotal: number
  /** Seconds spent in steps with a part of a prompt, and in the others. */
  readonly prefillSecondsTotal: number
  readonly decodeSecondsTotal: number
  /** What those steps computed. */
  readonly prefillWork: PhaseWork
  readonly decodeWork: PhaseWork
  readonly residentBytes: number
  /** Tokens guessed by speculative decoding, and those of them that were right. */
  readonly draftedTokensTotal: number
  readonly acceptedTokensTotal: number
  readonly stepTimes: StepTimes
}

/** Where the time of recorded steps went. */
export interface StepTimes {
  readonly steps: number
  /** A device computed. */
  readonly gpuSeconds: number
  /** The CPU's ops: experts beside a device. */
  readonly cpuSeconds: number
  /** One waited for the other and neither computed; of times at which both do, as much is taken off. */
  readonly syncSeconds: number
  /** Inputs, sampling and results. */
  readonly hostSeconds: number
}

/** A module that has weights, and where they are. */
export interface ModuleUse {
  readonly path: string
  /** Its class, an operator's where a rule has replaced it. */
  readonly operator: string
  readonly device: string
  /** What placed or replaced it, or what it is a part of: "mine.yaml:12: rule 3"; "" where no rule did. */
  readonly rule: string
  /** In the kernels' own layout. */
  readonly isPacked: boolean
  /** Bytes by type. */
  readonly types: readonly (readonly [dtype: string, bytes: number])[]
}

export interface ExpertUse {
  readonly path: string
  /** By expert. */
  readonly counts: readonly number[]
}

/** What an engine is made of, and how its experts are used. */
export interface EngineDetails {
  readonly modules: readonly ModuleUse[]
  readonly experts: readonly ExpertUse[]
}

/** What is done with the prefix of some tokens: the full pages of it that are known. */
export type PrefixAction =
  /** Some of its blocks, from a number on, as records that import takes. */
  | {
      readonly type: "export"
      readonly ids: Int32Array
      /** Tokens of the prompt: some models rotate those behind it otherwise. */
      readonly promptLength: number
      readonly from: number
    }
  /** Whole records, those of one prefix one after the other. */
  | { readonly type: "import"; readonly records: Uint8Array; readonly isFirst: boolean }
  /** Its blocks from a number on are forgotten. */
  | {
      readonly type: "forget"
      readonly ids: Int32Array
      readonly promptLength: number
      readonly from: number
    }

export interface PrefixAnswer {
  /** How many it was done with. */
  readonly blocks: number
  /** Tokens of a block, bytes of its record. */
  readonly pageSize: number
  readonly recordBytes: number
  /** Of an export; `isLast` tells that there are no more. */
  readonly records?: Uint8Array
  readonly isLast?: boolean
  /** Of an import: whose they were, until there was no room. */
  readonly tokens?: Int32Array
  readonly isFull?: boolean
  /** Why nothing more was taken. */
  readonly problem?: string
}

/** Everything the Worker needs to build an engine: a plain-object EngineConfig (config.ts). */
export type LoadOptions = Readonly<Record<string, unknown>>

export type ToWorker =
  | {
      readonly type: "load"
      readonly options: LoadOptions
      /** Of `Turns`, where other engines share the cores. */
      readonly turns?: SharedArrayBuffer
    }
  | {
      readonly type: "add"
      readonly id: number
      readonly ids: Int32Array
      readonly params: GenerateParams
    }
  | {
      readonly type: "pool"
      readonly id: number
      readonly ids: Int32Array
      readonly params: PoolParams
    }
  | { readonly type: "abort"; readonly id: number }
  | { readonly type: "vocabulary"; readonly table: TokenTable }
  | { readonly type: "stats" | "details"; readonly nonce: number }
  | { readonly type: "prefix"; readonly nonce: number; readonly action: PrefixAction }
  | { readonly type: "clear-cache" }
  | { readonly type: "shutdown" }

export type FromWorker =
  | {
      readonly type: "loading"
      readonly stage: string
      readonly done: number
      readonly total: number
    }
  | { readonly type: "log"; readonly level: "info" | "warning"; readonly message: string }
  | { readonly type: "ready"; readonly info: EngineInfo }
  | {
      readonly type: "failed"
      readonly message: string
      readonly hint?: string
      /** It does not fit into memory. */
      readonly isMemory?: boolean
    }
  | { readonly type: "step"; readonly events: readonly TokenEvent[] }
  | { readonly type: "stats"; readonly nonce: number; readonly answer: EngineStats }
  | { readonly type: "details"; readonly nonce: number; readonly answer: EngineDetails }
  | { readonly type: "prefix"; readonly nonce: number; readonly answer: PrefixAnswer }
  | { readonly type: "refused"; readonly nonce: number; readonly message: string }
  | { readonly type: "closed" }

/** The engine as the server sees it; `worker/client.ts` implements it over a Worker, tests by hand. */
export interface EngineClient {
  readonly info: EngineInfo
  /** Resolves when the engine has ended by itself, with the reason; never after close(). */
  readonly failed: Promise<Error>
  /**
   * One sequence, as lists of the events that came together (none is empty). Ends after the event with `finish`.
   * Leaving the loop early (or `signal`) aborts the sequence. Throws KtError when the prompt is empty or does not fit the context.
   */
  generate(
    ids: Int32Array,
    params: GenerateParams,
    signal?: AbortSignal,
  ): AsyncIterable<readonly TokenEvent[]>
  /** One text's vector or score. Throws ConfigError where the text is empty or too long, or a parameter does not fit the model. */
  pool(ids: Int32Array, params: PoolParams, signal?: AbortSignal): Promise<Pooled>
  /** What grammars and marks of reasoning are read with, once; sequences that need it wait for it. */
  setVocabulary(table: Promise<TokenTable>): void
  stats(): Promise<EngineStats>
  details(): Promise<EngineDetails>
  /** Known prefixes, to be kept elsewhere and brought back. Throws KtError where this engine cannot. */
  prefix(action: PrefixAction): Promise<PrefixAnswer>
  /** Forgets every known prefix on all tiers; sequences that run go on. */
  clearCache(): void
  /** Finishes nothing: aborts what runs, frees the engine, ends the Worker. */
  close(): Promise<void>
}
