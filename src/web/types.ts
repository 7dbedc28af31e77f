/** What the page keeps and shows. Everything here is plain data, so it can be stored and exported as it is. */

export type Role = "user" | "assistant"

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
  /** Answers only. `stopped` means that the text ends early because someone asked for it. */
  state?: "streaming" | "done" | "stopped" | "length" | "failed"
  failure?: Failure
  stats?: Stats
  model?: string
}

/** Sampling settings; `null` leaves the choice to the server. */
export interface Settings {
  system: string
  temperature: number | null
  top_p: number | null
  top_k: number | null
  min_p: number | null
  repetition_penalty: number | null
  max_tokens: number | null
  seed: number | null
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
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  repetition_penalty: null,
  max_tokens: null,
  seed: null,
}

/** A new random id. Not crypto.randomUUID, which pages served over plain HTTP on a LAN do not have. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12))
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
}
