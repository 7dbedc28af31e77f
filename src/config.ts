import { ConfigError } from "./errors.ts"

/**
 * What an engine is built from. One table makes flags, environment names, defaults, help and validation, so that
 * `kt serve`, `kt bench`, a config file and the library agree on every name and bound.
 */
export interface EngineConfig {
  /** A GGUF file, a Hugging Face folder, or a name known to `kt list`. */
  readonly model: string
  /** Folder with config.json and tokenizer, when `model` holds weights only. */
  readonly modelPath: string | undefined
  /** YAML rule file, or the name of one of rules/; undefined: placed by what is free on GPUs, `rules/default-cpu.yaml` without any. */
  readonly rules: string | undefined
  /** TypeScript files that register operators of the user's own. */
  readonly operators: readonly string[]
  /** "cpu", or a device of another backend (`cuda`, `cuda:1`) that computes the whole model; undefined: what the rules say. */
  readonly device: string | undefined
  /** Compute threads, the engine's own included; 0 = physical cores the process may use. */
  readonly threads: number
  /**
   * NUMA nodes that work and weights are divided among: "auto" those of the machine, "off" none, a number that many, which
   * also divides where the machine has fewer.
   */
  readonly numa: string
  /** "f32": float activations and KV cache (verification); "fast": int8-quantised activations, f16 KV. */
  readonly precision: "fast" | "f32"
  /** Longest sequence in tokens; 0 = the model's own, cut to what memory holds. */
  readonly contextLength: number
  /** Tokens the KV cache holds over all sequences; 0 = contextLength, or what memory holds if that is less. */
  readonly kvCacheTokens: number
  readonly kvDtype: "auto" | "f16" | "f32" | "q8_0" | "bf16" | "f8"
  /** What the engine, or all of a server's, may take of memory in bytes; 0 = what is free. */
  readonly memoryBytes: number
  /** What of each GPU's memory a model may take in bytes, where it is placed automatically; 0 = what is free. */
  readonly vramBytes: number
  /** Tokens per KV page: the unit of prefix reuse. */
  readonly pageSize: number
  /** Sequences that run at once. */
  readonly maxBatchSize: number
  /** New tokens per step (decodes and prefill chunks together). */
  readonly maxBatchTokens: number
  /** Requests that may wait before new ones are refused. */
  readonly maxQueue: number
  readonly prefixCache: boolean
  /** MiB of host memory for KV pages beyond the device's; -1 = a part of what is free. */
  readonly cacheRamMib: number
  /** MiB of `cacheDir` for KV pages of all models. */
  readonly cacheDiskMib: number
  /** Folder of the prefix cache that outlives the process; undefined: none. */
  readonly cacheDir: string | undefined
  /** Experts that each token goes to, fewer than the model's own number; 0 = the model's. */
  readonly expertsPerToken: number
  /** Tokens of a stream that come faster than this go to its reader together (the first and the last at once). */
  readonly streamIntervalMs: number
  /** How tokens are guessed ahead, for steps that check several at once. */
  readonly spec: "off" | "ngram"
  /** A smaller model of the same vocabulary that guesses tokens ahead. */
  readonly draft: string | undefined
  /** Tokens that must have come before, in this order, for a guess by n-gram. */
  readonly specLookup: number
  /** Tokens of one guess. */
  readonly specDraft: number
  /** Fused operators; false selects the plain modules (the oracle). */
  readonly fuse: boolean
  /** Rearrange weights into the kernels' own layout at load. */
  readonly repack: boolean
  /** Long prompts take experts of the CPU to the GPU, layer by layer, where rules or the automatic placement have it so. */
  readonly streamExperts: boolean
  /** Counts of `kt experts record`, by which the automatic placement chooses experts for the GPU. */
  readonly expertStats: string | undefined
  /** Steps that generate are recorded once a batch size and launched as one graph. */
  readonly stepGraph: boolean
}

export interface ConfigOption {
  readonly key: keyof EngineConfig
  readonly flag: string
  /** Other programs' flags for the same thing; those of one dash have it. */
  readonly aliases: readonly string[]
  readonly type: "string" | "integer" | "boolean" | "list" | "enum"
  readonly values?: readonly string[]
  readonly min?: number
  readonly max?: number
  readonly default: string | number | boolean | readonly string[] | undefined
  readonly env?: string
  /** Stands for the value in `--help`. */
  readonly hint?: string
  readonly help: string
}

/** Order is the order in `--help`. */
// prettier-ignore
export const CONFIG_OPTIONS: readonly ConfigOption[] = [
  { key: "model", flag: "model", aliases: ["-m", "gguf_path"], type: "string", default: "default", env: "KT_MODEL", hint: "model",
    help: "GGUF file, Hugging Face folder, or a name from `kt list`" },
  { key: "modelPath", flag: "model-path", aliases: ["model_path", "model_dir"], type: "string", default: undefined, hint: "folder",
    help: "folder with config.json and tokenizer when the model holds weights only" },
  { key: "rules", flag: "rules", aliases: ["optimize_config_path", "optimize_rule_path"], type: "string", default: undefined, env: "KT_RULES", hint: "file",
    help: "YAML rule file that places and replaces modules; by default what fits goes to the GPUs that are there" },
  { key: "operators", flag: "operators", aliases: [], type: "list", default: [],
    help: "TypeScript file that registers operators of your own (repeatable)" },
  { key: "device", flag: "device", aliases: [], type: "string", default: undefined, env: "KT_DEVICE", hint: "name",
    help: "cpu, cuda or cuda:N: computes the whole model; by default what the rules say" },
  { key: "threads", flag: "threads", aliases: ["-t", "cpu_infer"], type: "integer", min: 0, max: 1024, default: 0, env: "KT_THREADS",
    help: "compute threads; 0 = physical cores" },
  { key: "numa", flag: "numa", aliases: [], type: "enum", values: ["auto", "off", "1", "2", "3", "4", "5", "6", "7", "8"], default: "auto",
    help: "divide work and weights among NUMA nodes: auto = the machine's, off, or how many" },
  { key: "precision", flag: "precision", aliases: [], type: "enum", values: ["fast", "f32"], default: "fast", env: "KT_PRECISION",
    help: "fast: int8 activations, f16 KV; f32: float activations and KV, for verification" },
  { key: "contextLength", flag: "ctx", aliases: ["-c", "ctx-size", "max-model-len"], type: "integer", min: 0, max: 16_777_216, default: 0,
    help: "longest sequence in tokens; 0 = the model's own, cut to what memory holds" },
  { key: "kvCacheTokens", flag: "cache-tokens", aliases: ["cache_lens"], type: "integer", min: 0, max: 1_073_741_824, default: 0,
    help: "tokens the KV cache holds over all sequences; 0 = automatic" },
  { key: "kvDtype", flag: "kv-dtype", aliases: ["-ctk", "-ctv", "cache-type-k", "cache-type-v", "kv-cache-dtype"], type: "enum", values: ["auto", "f16", "f32", "q8_0", "bf16", "f8"], default: "auto",
    help: "KV cache type; auto = f16, or f32 with --precision f32; q8_0 takes about half of f16; bf16 and f8 (E4M3 with a scale every 128 values): GPUs alone" },
  { key: "memoryBytes", flag: "model-memory", aliases: [], type: "integer", min: 0, default: 0,
    help: "bytes that weights, KV caches and workspace of all loaded models may take; 0 = what is free" },
  { key: "vramBytes", flag: "gpu-memory", aliases: [], type: "integer", min: 0, default: 0,
    help: "bytes of each GPU's memory that a model without --rules is placed on; 0 = what is free" },
  { key: "pageSize", flag: "page-size", aliases: ["page_size", "block-size"], type: "integer", min: 8, max: 1024, default: 64,
    help: "tokens per KV page (multiple of 8)" },
  { key: "maxBatchSize", flag: "max-batch-size", aliases: ["-np", "parallel", "max_batch_size", "max-num-seqs"], type: "integer", min: 1, max: 1024, default: 8,
    help: "sequences that run at once" },
  { key: "maxBatchTokens", flag: "chunk-size", aliases: ["-b", "batch-size", "chunk_size", "max-num-batched-tokens"], type: "integer", min: 0, max: 65_536, default: 0,
    help: "new tokens per step, prefill chunks and decodes together; 0 = 512, or up to 4096 where prompts take the CPU's experts to a GPU" },
  { key: "maxQueue", flag: "max-queue", aliases: [], type: "integer", min: 0, max: 65_536, default: 256,
    help: "requests that may wait before new ones get 429" },
  { key: "prefixCache", flag: "prefix-cache", aliases: ["cache-prompt", "enable-prefix-caching"], type: "boolean", default: true,
    help: "reuse KV pages of common prompt prefixes" },
  { key: "cacheRamMib", flag: "cache-ram", aliases: ["-cram"], type: "integer", min: -1, max: 1_073_741_824, default: -1, env: "KT_CACHE_RAM",
    help: "MiB of host memory for KV pages that leave the pool; -1 = a quarter of what is free, 8192 at most; 0 = none" },
  { key: "cacheDiskMib", flag: "cache-disk", aliases: [], type: "integer", min: 0, max: 1_073_741_824, default: 16_384, env: "KT_CACHE_DISK",
    help: "MiB of --cache-dir for KV pages" },
  { key: "cacheDir", flag: "cache-dir", aliases: [], type: "string", default: undefined, env: "KT_CACHE_DIR", hint: "folder",
    help: "folder for KV pages that outlive the server, shared by servers and models; without it none are written" },
  { key: "expertsPerToken", flag: "experts-per-token", aliases: [], type: "integer", min: 0, max: 65_536, default: 0,
    help: "experts each token goes to, fewer than the model's own number (faster, less exact); 0 = the model's" },
  { key: "streamIntervalMs", flag: "stream-interval", aliases: [], type: "integer", min: 0, max: 1000, default: 25,
    help: "ms; tokens that come faster go to the client together, first and last at once; 0 = each by itself" },
  { key: "spec", flag: "spec", aliases: [], type: "enum", values: ["off", "ngram"], default: "off",
    help: "speculative decoding; ngram: guess what followed the last tokens before, and check it in one step" },
  { key: "draft", flag: "draft", aliases: ["-md", "model-draft", "spec-draft-model"], type: "string", default: undefined, hint: "file",
    help: "a smaller model of the same vocabulary, whose guesses the model checks several at once" },
  { key: "specLookup", flag: "spec-lookup", aliases: [], type: "integer", min: 2, max: 16, default: 3,
    help: "tokens that an n-gram guess looks up" },
  { key: "specDraft", flag: "spec-draft", aliases: ["draft-max", "spec-draft-n-max"], type: "integer", min: 1, max: 7, default: 7,
    help: "tokens of one guess at most" },
  { key: "fuse", flag: "fuse", aliases: [], type: "boolean", default: true,
    help: "fused operators; --no-fuse runs the plain modules" },
  { key: "repack", flag: "repack", aliases: [], type: "boolean", default: true,
    help: "rearrange weights for the CPU's vector width at load" },
  { key: "streamExperts", flag: "stream-experts", aliases: [], type: "boolean", default: true,
    help: "compute long prompts with the CPU's experts on the GPU, brought there layer by layer" },
  { key: "expertStats", flag: "expert-stats", aliases: [], type: "string", default: undefined,
    help: "counts of `kt experts record`: without --rules the experts that are used most are on the GPU" },
  { key: "stepGraph", flag: "step-graph", aliases: ["cuda-graph", "use_cuda_graph"], type: "boolean", default: true,
    help: "launch steps that generate as one graph each; --no-step-graph calls op by op" },
]

/** Fills defaults, checks types and bounds; unknown keys and bad values are ConfigErrors. The result is frozen. */
export function engineConfig(
  values: Readonly<Partial<Record<keyof EngineConfig, unknown>>>,
): EngineConfig {
  const known = new Set<string>(CONFIG_OPTIONS.map((o) => o.key))
  for (const key of Object.keys(values))
    if (!known.has(key)) throw new ConfigError(`unknown option "${key}"`)
  const out: Record<string, unknown> = {}
  for (const option of CONFIG_OPTIONS) {
    const value = values[option.key]
    out[option.key] = value === undefined ? option.default : checked(option, value)
  }
  const config = out as unknown as EngineConfig
  if (config.draft !== undefined && config.spec !== "off")
    throw new ConfigError(`--spec ${config.spec} and --draft ${config.draft}: one of them guesses`)
  if (config.pageSize % 8 !== 0)
    throw new ConfigError(`--page-size ${config.pageSize}: must be a multiple of 8`)
  return Object.freeze(config)
}

/** A flag's or environment variable's text as the option's type. */
export function parseOption(option: ConfigOption, text: string): unknown {
  if (option.type === "integer") {
    const value = text.trim() === "" ? Number.NaN : Number(text)
    return checked(option, Number.isNaN(value) ? text : value)
  }
  if (option.type === "list") return text.split(",").filter((s) => s !== "")
  if (option.type !== "boolean") return checked(option, text)
  if (/^(true|1|yes|on)$/i.test(text)) return true
  if (/^(false|0|no|off)$/i.test(text)) return false
  throw new ConfigError(`--${option.flag} ${text}: expected true or false`)
}

function checked(option: ConfigOption, value: unknown): unknown {
  const fail = (expected: string): never => {
    throw new ConfigError(`--${option.flag} ${String(value)}: expected ${expected}`)
  }
  switch (option.type) {
    case "integer": {
      const { min = 0, max = Number.MAX_SAFE_INTEGER } = option
      if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > max)
        fail(`an integer in ${min}..${max}`)
      return value
    }
    case "boolean":
      return typeof value === "boolean" ? value : fail("true or false")
    case "enum":
      return option.values?.includes(String(value))
        ? value
        : fail(`one of ${option.values?.join(", ")}`)
    case "list":
      return Array.isArray(value) && value.every((v) => typeof v === "string")
        ? value
        : fail("a list of file names")
    case "string":
      return typeof value === "string" && value !== "" ? value : fail("a non-empty string")
  }
}
