/** Flags that every command has. */
export const COMMON_FLAGS = {
  verbose: { type: "boolean", short: "v", help: "log more, and failures with their stack" },
  quiet: { type: "boolean", help: "log errors only" },
  help: { type: "boolean", short: "h", help: "show this help" },
} as const

/** Of commands that report. */
export const JSON_FLAG = {
  json: { type: "boolean", help: "print one JSON value instead of text" },
} as const

export const SYSTEM_FLAG = {
  system: {
    type: "string",
    short: "s",
    aliases: ["-sys", "system-prompt"],
    hint: "text",
    help: "system prompt",
  },
} as const

/** How answers are drawn; commands that generate share them. */
export const SAMPLING_FLAGS = {
  temperature: {
    type: "number",
    aliases: ["temp"],
    min: 0,
    max: 100,
    help: "how freely tokens are drawn; 0 always takes the likeliest",
  },
  "top-k": {
    type: "integer",
    min: 0,
    max: 2_147_483_647,
    aliases: ["top_k"],
    help: "only the K likeliest; 0 = all",
  },
  "top-p": {
    type: "number",
    min: 0,
    max: 1,
    aliases: ["top_p"],
    help: "only the likeliest that hold this much probability; 1 = all",
  },
  "min-p": {
    type: "number",
    min: 0,
    max: 1,
    help: "only those with at least this share of the likeliest's probability",
  },
  "repetition-penalty": {
    type: "number",
    min: 0.01,
    max: 100,
    aliases: ["repetition_penalty", "repeat-penalty"],
    help: "above 1 makes tokens that have come less likely",
  },
  "presence-penalty": {
    type: "number",
    min: -2,
    max: 2,
    aliases: ["presence_penalty"],
    help: "subtracted once from tokens of the answer",
  },
  "frequency-penalty": {
    type: "number",
    min: -2,
    max: 2,
    aliases: ["frequency_penalty"],
    help: "subtracted per occurrence from tokens of the answer",
  },
  "repeat-last-n": {
    type: "integer",
    min: -1,
    help: "tokens that penalties look at; -1 = the whole text",
  },
  "typical-p": {
    type: "number",
    min: 0,
    max: 1,
    aliases: ["typical", "typical_p"],
    help: "only tokens about as surprising as the text usually is, to this much probability; 1 = all",
  },
  "top-n-sigma": {
    type: "number",
    aliases: ["top-nsigma"],
    min: -1,
    help: "only tokens within N standard deviations of the likeliest; 0 = all",
  },
  "xtc-probability": {
    type: "number",
    min: 0,
    max: 1,
    help: "how often the likeliest tokens are excluded",
  },
  "xtc-threshold": {
    type: "number",
    min: 0,
    max: 1,
    help: "tokens above this probability are excluded, all but the least likely of them; default 0.1",
  },
  "dynatemp-range": {
    type: "number",
    min: 0,
    max: 100,
    help: "how far the temperature moves either way with how sure the model is; 0 = off",
  },
  "dynatemp-exp": { type: "number", min: 0, max: 100, help: "exponent of --dynatemp-range" },
  "dry-multiplier": {
    type: "number",
    min: 0,
    max: 100,
    help: "penalty for repeated sequences of tokens; 0 = off",
  },
  "dry-base": {
    type: "number",
    min: 0,
    max: 100,
    help: "growth of that penalty with each repeated token; default 1.75",
  },
  "dry-allowed-length": {
    type: "integer",
    min: 0,
    help: "repetitions up to so many tokens are free; default 2",
  },
  "dry-penalty-last-n": {
    type: "integer",
    min: -1,
    help: "tokens searched for repetitions; -1 = all, default 64",
  },
  "dry-sequence-breaker": {
    type: "list",
    hint: "text",
    help: 'text that repetitions do not go across (repeatable); default line break, ":", quote and "*"',
  },
  mirostat: {
    type: "integer",
    min: 0,
    max: 2,
    help: "version 1 or 2 keeps the surprise even; 0 = off",
  },
  "mirostat-tau": {
    type: "number",
    min: 0,
    max: 100,
    aliases: ["mirostat-ent"],
    help: "surprise aimed at, in bits; default 5",
  },
  "mirostat-eta": {
    type: "number",
    min: 0,
    max: 100,
    aliases: ["mirostat-lr"],
    help: "its learning rate; default 0.1",
  },
  samplers: {
    type: "string",
    hint: "order",
    aliases: ["sampler-seq", "sampling-seq"],
    help: "samplers that act, in order: names with ; between, or llama.cpp's letters",
  },
} as const
