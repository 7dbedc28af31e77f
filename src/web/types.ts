/** What the page keeps and shows. Everything here is plain data, so it can be stored and exported as it is. */

export type Role = "user" | "assistant" | "tool"

/** A file whose text goes with a message. */
export interface TextFile {
  name: string
  text: string
}

/** A tool that the model asks to be called; the arguments are JSON text as the model wrote it. */
export interface ToolCall {
  id: string
  name: string
  arguments: string
}

/** What else was said from a message on: whole tails, the shown one left out. `at` is its place among them all. */
export interface Versions {
  at: number
  others: Message[][]
}

/** Why an answer did not arrive; `kind` decides what the page offers to do about it. */
export interface Failure {
  kind: "auth" | "busy" | "connection" | "request" | "server"
  message: string
  /** Seconds that the server asks to wait, from retry-after. */
  retryAfter?: number
}

/** What one answer cost. Times in ms; token counts as the server reports them. */
export interface Stats {
  /** From sending the request to the first token seen. */
  firstTokenMs: number
  /** From the first token to the last. */
  generationMs: number
  promptTokens: number
  /** Prompt tokens that came from the prefix cache. */
  cachedTokens: number
  answerTokens: number
  tokensPerSecond: number
}

export interface Message {
  id: string
  role: Role
  content: string
  /** Reasoning that the server sent apart from the content. */
  reasoning?: string
  createdAt: number
  /** Of the user's messages. */
  files?: TextFile[]
  /** Of answers. */
  calls?: ToolCall[]
  /** Of a tool's result: the call that it answers. */
  callId?: string
  versions?: Versions
  /** Answers only. `stopped` means that the text ends early because someone asked for it. */
  state?: "streaming" | "done" | "stopped" | "length" | "failed"
  failure?: Failure
  stats?: Stats
  model?: string
}

/** In the order in which the server applies them by itself. */
export const SAMPLERS = [
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

export type SamplerName = (typeof SAMPLERS)[number]

export const THINKING = ["", "off", "on", "low", "medium", "high"] as const

export type Thinking = (typeof THINKING)[number]

/** Sampling settings; `null` and empty texts leave the choice to the server. */
export interface Settings {
  system: string
  /** JSON of the tools that the model may call, in OpenAI's form. */
  tools: string
  /** JSON schema that answers match. */
  schema: string
  /** Whether and how hard the model thinks; "" leaves it to its template. */
  thinking: Thinking
  /** Tokens after which it ends; -1 leaves that to the model. */
  thinking_budget_tokens: number | null
  /** The samplers that act, in order; `null` is the server's own order. */
  samplers: SamplerName[] | null
  /** Strings across which DRY sees no repetition; `null` is the server's own list. */
  dry_sequence_breakers: string[] | null
  temperature: number | null
  top_p: number | null
  top_k: number | null
  min_p: number | null
  repetition_penalty: number | null
  max_tokens: number | null
  seed: number | null
  presence_penalty: number | null
  frequency_penalty: number | null
  repeat_last_n: number | null
  typical_p: number | null
  top_n_sigma: number | null
  xtc_probability: number | null
  xtc_threshold: number | null
  dynatemp_range: number | null
  dynatemp_exponent: number | null
  dry_multiplier: number | null
  dry_base: number | null
  dry_allowed_length: number | null
  dry_penalty_last_n: number | null
  mirostat: number | null
  mirostat_tau: number | null
  mirostat_eta: number | null
}

export interface Conversation {
  id: string
  title: string
  createdAt: number
  updatedAt: number
  settings: Settings
  /** The one chosen for it; without one the chosen for new chats answers. */
  model?: string
  messages: Message[]
}

export interface Model {
  id: string
  /** Tokens the model can hold, `undefined` where the server does not say. */
  contextLength: number | undefined
  /** `undefined` where the server does not say. */
  isLoaded: boolean | undefined
}

export const EMPTY_SETTINGS: Settings = {
  system: "",
  tools: "",
  schema: "",
  thinking: "",
  thinking_budget_tokens: null,
  samplers: null,
  dry_sequence_breakers: null,
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  repetition_penalty: null,
  max_tokens: null,
  seed: null,
  presence_penalty: null,
  frequency_penalty: null,
  repeat_last_n: null,
  typical_p: null,
  top_n_sigma: null,
  xtc_probability: null,
  xtc_threshold: null,
  dynatemp_range: null,
  dynatemp_exponent: null,
  dry_multiplier: null,
  dry_base: null,
  dry_allowed_length: null,
  dry_penalty_last_n: null,
  mirostat: null,
  mirostat_tau: null,
  mirostat_eta: null,
}

/** A new random id. Not crypto.randomUUID, which pages served over plain HTTP on a LAN do not have. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12))
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
}
