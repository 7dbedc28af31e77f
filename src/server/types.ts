import type { Registry } from "prom-client"

import type { ChatFormat } from "../tokenizer/chat-formats.ts"
import type { FimTokens } from "../tokenizer/fim.ts"
import type { EngineClient, ExtraSampling } from "../worker/protocol.ts"
import type { KnownModel, LoadedModel } from "./models/library.ts"
import type { ModelLog, ModelsOptions } from "./models/manager.ts"
import type { KeptDatabase } from "./openai/kept-database.ts"

/** A message as chat templates see it: text content, tool calls with parsed arguments. */
export interface TemplateMessage {
  readonly role: string
  readonly content: string | null
  readonly name?: string
  readonly tool_calls?: readonly TemplateToolCall[]
  readonly tool_call_id?: string
  readonly reasoning_content?: string
}

export interface TemplateToolCall {
  readonly id?: string
  readonly type: "function"
  readonly function: { readonly name: string; readonly arguments: unknown }
}

export interface RenderOptions {
  readonly tools?: readonly unknown[]
  readonly addGenerationPrompt?: boolean
  /** Extra variables for the template, such as `enable_thinking`. */
  readonly vars?: Readonly<Record<string, unknown>>
}

/** What the server needs of a tokenizer. */
export interface ServerTokenizer {
  readonly vocabSize: number
  readonly bosId: number | undefined
  /** Tokens that end a generation. */
  readonly eogIds: Iterable<number>
  encode(
    text: string,
    options?: { readonly addSpecial?: boolean; readonly parseSpecial?: boolean },
  ): Int32Array
  /**
   * A rendered chat template: control tokens are recognised; the start token is added where it is
   * missing.
   */
  encodePrompt(text: string): Int32Array
  /** What models that compare texts get of two of them. */
  encodePair(first: string, second: string): { ids: Int32Array; secondFrom: number }
  /** A text's ids cut to `limit`, ended as texts are. */
  truncate(ids: Int32Array, limit: number): Int32Array
  tokenId(text: string): number | undefined
  /** Of rerankers that generate their verdict: a text with {query} and {document}. */
  readonly rerankTemplate?: string | undefined
  /** Texts begin with a space that is not the user's. */
  readonly stripsLeadingSpace: boolean
  /** The bytes a token stands for; not always whole UTF-8 characters. */
  tokenBytes(id: number): Uint8Array
  isSpecial(id: number): boolean
  /** How the model is shown a hole that it is to fill; undefined where it cannot. */
  readonly fim?: FimTokens | undefined
  /** How the model marks reasoning and tool calls, as its template shows. */
  readonly chatFormat?: ChatFormat
  /** Throws when the model has no template or the template refuses the messages. */
  renderChat(messages: readonly TemplateMessage[], options?: RenderOptions): string
}

/** What the model is called and shown as. */
export interface ModelMetadata {
  /** The id clients use; "default" is accepted too. */
  readonly name: string
  /** Unix seconds. */
  readonly created: number
  readonly sizeBytes: number
  /** Hex digest of the weights (SHA-256), without a prefix. */
  readonly digest: string
  readonly details: {
    /** "gguf" or "safetensors". */
    readonly format: string
    readonly family: string
    /** As people write it: "135M". */
    readonly parameterSize: string
    /** As people write it: "Q4_1". */
    readonly quantization: string
  }
  /** Jinja source of the chat template, shown by Ollama's /api/show. */
  readonly chatTemplate?: string
  /** Metadata shown by Ollama's /api/show as `model_info`. */
  readonly info?: Readonly<Record<string, unknown>>
}

/** Sampling used where a request says nothing. */
export interface SamplingDefaults extends Omit<ExtraSampling, "dryBreakers"> {
  /** Undefined: llama.cpp's. */
  readonly drySequenceBreakers?: readonly string[]
  readonly temperature: number
  readonly topK: number
  readonly topP: number
  readonly minP: number
  readonly repetitionPenalty: number
  readonly presencePenalty: number
  readonly frequencyPenalty: number
  /** Undefined: up to the end of the context. */
  readonly maxTokens?: number
  /** Undefined and -1: each answer is drawn anew. */
  readonly seed?: number
}

export const DEFAULT_SAMPLING: SamplingDefaults = {
  temperature: 0.8,
  topK: 40,
  topP: 0.95,
  minP: 0.05,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
}

export interface ServerConfig {
  /** Empty: no key is asked for. */
  readonly apiKeys: readonly string[]
  /** Sequences that may wait beyond those that run. */
  readonly maxQueue: number
  /** Origins of web pages that may call the server besides its own; "*" for all, "localhost" for those of this machine. */
  readonly corsOrigins: readonly string[]
  /** Largest request body in bytes. */
  readonly bodyLimit: number
  readonly defaults: SamplingDefaults
  /** Start every chat answer with the model's mark of reasoning, "<think>\n" where it has none. */
  readonly forceThink: boolean
  /** "auto": reasoning goes into a field of its own; "none": it stays in the content, as the model marks it. */
  readonly reasoningFormat: "auto" | "none"
  /** Variables of chat templates where a request says nothing. */
  readonly templateVars: Readonly<Record<string, unknown>>
  /** Reasoning ends after so many tokens where a request says nothing; Infinity for when the model ends it. */
  readonly thinkingBudget: number
  /** Where clients may save slots; undefined for nowhere. */
  readonly slotFolder: string | undefined
  /** Bytes of all saved slots. */
  readonly slotLimitBytes: number
  /** Longest time for one request; 0 for none. */
  readonly requestTimeoutMs: number
  /**
   * Silence on a stream after which a comment is sent, so that proxies keep it open; 0 for never.
   */
  readonly heartbeatMs: number
}

/** 32 MiB holds a prompt of several million tokens as text or as ids. */
export const DEFAULT_BODY_LIMIT = 32 * 1024 * 1024

export const DEFAULT_SERVER_CONFIG: ServerConfig = {
  apiKeys: [],
  maxQueue: 256,
  corsOrigins: [],
  bodyLimit: DEFAULT_BODY_LIMIT,
  defaults: DEFAULT_SAMPLING,
  forceThink: false,
  reasoningFormat: "auto",
  templateVars: {},
  thinkingBudget: Number.POSITIVE_INFINITY,
  slotFolder: undefined,
  slotLimitBytes: 16 * 2 ** 30,
  requestTimeoutMs: 0,
  heartbeatMs: 15_000,
}

/** One model that is loaded, or a library of them. */
export type ServerDeps = SharedDeps & (OneModel | ManyModels)

interface OneModel {
  readonly client: EngineClient
  readonly tokenizer: ServerTokenizer
  readonly model: ModelMetadata
  readonly models?: undefined
}

interface ManyModels {
  readonly models: ModelsOptions & {
    /** Loaded already; it stays, and is what requests mean that name none. */
    readonly first?: { readonly model: KnownModel; readonly loaded: LoadedModel }
  }
}

interface SharedDeps {
  /** Missing fields take DEFAULT_SERVER_CONFIG's. */
  readonly config?: Partial<ServerConfig>
  /** Where responses and conversations are kept; undefined keeps them in memory. */
  readonly kept?: KeptDatabase
  /** prom-client registry to add to; undefined makes one. */
  readonly registry?: Registry
  /** Told of every failure that is the server's own (status 500), for the log. */
  readonly onFailure?: (error: unknown, requestId: string) => void
  /** Told of models that come and go. */
  readonly onLog?: ModelLog
}
