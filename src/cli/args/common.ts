/** Flags that every command has. */
export const COMMON_FLAGS = {
  verbose: { type: "boolean", help: "log more, and failures with their stack" },
  quiet: { type: "boolean", help: "log errors only" },
  help: { type: "boolean", short: "h", help: "show this help" },
} as const

/** Of commands that report. */
export const JSON_FLAG = {
  json: { type: "boolean", help: "print one JSON value instead of text" },
} as const

/** How answers are drawn; commands that generate share them. */
export const SAMPLING_FLAGS = {
  temperature: { type: "number", min: 0, max: 100, help: "0 always takes the likeliest token" },
  "top-k": { type: "integer", min: 0, aliases: ["top_k"], help: "only the K likeliest; 0 = all" },
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
    aliases: ["repetition_penalty"],
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
} as const
