import { ConfigError, MemoryError } from "../errors.ts"

export interface MemoryRequest {
  /** As messages name it. */
  readonly device?: string
  /** `--ctx`; 0 = the model's own limit, cut to what memory holds. */
  readonly contextLength: number
  /** `--cache-tokens`; 0 = one context. */
  readonly kvCacheTokens: number
  readonly pageSize: number
  /** What the model can do, extensions by its rope scaling included. */
  readonly modelLength: number
  /** K and V of one page in all layers; 0 = the device has none of them. */
  readonly bytesPerPage: number
  /** States of sequences, in layers that keep one; 0 = there are none. */
  readonly stateBytes: number
  readonly weightBytes: number
  /** Activations and logits of the largest step. */
  readonly workspaceBytes: number
  readonly freeBytes: number
  /** A smaller model that guesses ahead; it has as many pages. */
  readonly draft?: DraftRequest | undefined
}

export interface DraftRequest {
  readonly weightBytes: number
  readonly bytesPerPage: number
  readonly workspaceBytes: number
}

export interface MemoryPlan {
  readonly contextLength: number
  readonly kvCacheTokens: number
  readonly pages: number
  readonly kvBytes: number
  /** All that the draft model takes. */
  readonly draftBytes: number
  /** What is left of the free memory beside all of this. */
  readonly spareBytes: number
}

/** Left to the rest of the process: runtime, tokenizer, server. */
export const RESERVE_BYTES = 192 * 2 ** 20

/** With `--ctx 0`, memory for less than this is an error rather than an engine that answers nothing. */
const MIN_AUTO_TOKENS = 256

/**
 * What the KV cache gets, before anything is allocated.
 *
 * @throws ConfigError when the context exceeds the model's, MemoryError when what was asked for does not fit
 */
export function planMemory(request: MemoryRequest): MemoryPlan {
  const { contextLength, kvCacheTokens, pageSize, modelLength, bytesPerPage, draft } = request
  if (contextLength > modelLength)
    throw new ConfigError(`--ctx ${contextLength}: the model's context is ${modelLength} tokens`)
  if (kvCacheTokens > 0 && kvCacheTokens < contextLength)
    throw new ConfigError(
      `--cache-tokens ${kvCacheTokens}: less than one context (--ctx ${contextLength})`,
    )
  const draftFixed = draft === undefined ? 0 : draft.weightBytes + draft.workspaceBytes
  const draftPage = draft?.bytesPerPage ?? 0
  const pageBytes = bytesPerPage + draftPage
  const fixedBytes = request.weightBytes + request.stateBytes + request.workspaceBytes + draftFixed
  const left = request.freeBytes - fixedBytes - RESERVE_BYTES
  const affordable =
    pageBytes === 0
      ? left < 0
        ? 0
        : Number.MAX_SAFE_INTEGER
      : Math.max(0, Math.floor(left / pageBytes)) * pageSize
  const wanted = Math.max(kvCacheTokens, contextLength)
  const least = wanted > 0 ? wanted : Math.min(MIN_AUTO_TOKENS, modelLength)
  if (Math.ceil(least / pageSize) * pageSize > affordable)
    throw shortage(request, least, affordable)
  const tokens = wanted > 0 ? wanted : Math.min(modelLength, affordable)
  const pages = Math.ceil(tokens / pageSize)
  return {
    contextLength: contextLength > 0 ? contextLength : Math.min(modelLength, tokens),
    kvCacheTokens: pages * pageSize,
    pages,
    kvBytes: pages * bytesPerPage,
    draftBytes: draftFixed + pages * draftPage,
    spareBytes: left - pages * pageBytes,
  }
}

function shortage(request: MemoryRequest, tokens: number, affordable: number): MemoryError {
  const { draft } = request
  const pageBytes = request.bytesPerPage + (draft?.bytesPerPage ?? 0)
  const kvBytes = Math.ceil(tokens / request.pageSize) * pageBytes
  const needs = [
    ...(kvBytes > 0 ? [`${size(kvBytes)} of KV cache for ${tokens} tokens`] : []),
    `${size(request.weightBytes)} of weights`,
    ...(request.stateBytes > 0 ? [`${size(request.stateBytes)} of sequences' states`] : []),
    ...(draft === undefined ? [] : [`${size(draft.weightBytes)} of the draft model's weights`]),
    `${size(request.workspaceBytes + (draft?.workspaceBytes ?? 0) + RESERVE_BYTES)} of workspace`,
  ]
  const fits = Math.min(affordable, request.modelLength)
  const place = request.device === undefined ? "" : ` on ${request.device}`
  return new MemoryError(
    `not enough memory${place}: ${needs.join(", ")} are needed, ${size(request.freeBytes)} are free`,
    {
      hint:
        kvBytes > 0 && fits >= MIN_AUTO_TOKENS
          ? `--ctx ${fits} fits`
          : request.stateBytes > request.freeBytes / 4
            ? "a lower --max-batch-size needs fewer states, --no-prefix-cache keeps none of them"
            : "a smaller or more strongly quantised model would fit",
    },
  )
}

function size(bytes: number): string {
  return bytes < 2 ** 30
    ? `${(bytes / 2 ** 20).toFixed(0)} MiB`
    : `${(bytes / 2 ** 30).toFixed(1)} GiB`
}
