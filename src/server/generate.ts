import { ConfigError, EngineError, KtError, RequestError } from "../errors.ts"
import type {
  EngineClient,
  GenerateParams,
  PromptProgress,
  TokenEvent,
} from "../worker/protocol.ts"
import type { Admission, Ticket } from "./admission.ts"
import { merge } from "./merge.ts"
import type { ModelMetrics } from "./metrics.ts"
import { TextStream } from "./text-stream.ts"
import type { ServerTokenizer } from "./types.ts"

/** One sequence to generate. */
export interface SequenceRequest {
  readonly ids: Int32Array
  readonly params: GenerateParams
}

export interface GenerationRequest {
  /** Choice i is sequence i. */
  readonly sequences: readonly SequenceRequest[]
  /** Strings that end a choice; not part of its text. */
  readonly stop: readonly string[]
  /** Control tokens whose text belongs to the answer; others are left out. */
  readonly keepToken?: (id: number) => boolean
  /** Told of each token, the one that ends a sequence included. */
  readonly onToken?: ((choice: number, token: number) => void) | undefined
  /** Told once when nothing of it runs any more. */
  readonly onEnd?: (() => void) | undefined
  /** Aborted when the client goes away. */
  readonly signal: AbortSignal | undefined
  /** performance.now() when the request came in. */
  readonly arrivedMs: number
}

export interface TokenLogprob {
  readonly token: number
  readonly logprob: number
  readonly top: readonly (readonly [token: number, logprob: number])[]
}

export interface ChoiceUsage {
  readonly promptTokens: number
  readonly cachedTokens: number
  /** Generated tokens, the one that ended the sequence included. */
  readonly completionTokens: number
}

export interface ChoiceTimings {
  readonly queueMs: number
  /** Computing the prompt, up to the first token. */
  readonly prefillMs: number
  /** From the request's arrival to its first token. */
  readonly ttftMs: number
  /** From the first token to the last. */
  readonly decodeMs: number
  /** Tokens guessed by speculative decoding, and those that were right; undefined where there were none. */
  readonly draft?: { readonly drafted: number; readonly accepted: number } | undefined
}

/** A choice that goes on. */
export interface SoFar {
  readonly usage: ChoiceUsage
  readonly timings: ChoiceTimings
}

export type GenerationEvent =
  | {
      readonly type: "text"
      readonly choice: number
      /** Whole characters only. */
      readonly text: string
      /** Tokens whose text is complete with this event, when asked for. */
      readonly logprobs: readonly TokenLogprob[]
      /** Tokens of the choice so far. */
      readonly completionTokens: number
      /** Where asked for, with the first event, whose text may be empty: of the prompt's tokens from the second on. */
      readonly prompt?: readonly TokenLogprob[]
      /** Where asked for, with events before the first that has a text. */
      readonly progress?: PromptProgress
      readonly sofar: () => SoFar
    }
  | {
      readonly type: "end"
      readonly choice: number
      readonly finishReason: "stop" | "length"
      /** The stop string that ended the choice. */
      readonly stopString: string | undefined
      readonly usage: ChoiceUsage
      readonly timings: ChoiceTimings
    }

/**
 * Events of all choices as they come. `return()` (or leaving a `for await`) aborts what still runs.
 */
export interface Generation extends AsyncIterableIterator<GenerationEvent> {
  /**
   * Waits until the engine has taken the first sequence. A grammar is looked at by the engine alone, so that a stream
   * which has one must not begin before. RequestError where it is refused.
   */
  accepted(): Promise<void>
}

export interface GeneratorDeps {
  readonly client: EngineClient
  readonly tokenizer: ServerTokenizer
  readonly admission: Admission
  readonly metrics: ModelMetrics
  readonly requestTimeoutMs: number
}

/** Tokens that one sequence may hold: the context, or the whole KV cache where that is smaller. */
export function sequenceLimit(client: EngineClient): number {
  const { contextLength, kvCacheTokens } = client.info
  return kvCacheTokens > 0 ? Math.min(contextLength, kvCacheTokens) : contextLength
}

/**
 * How many tokens may be generated: what was asked for, cut to what the context leaves.
 * RequestError 400 when the prompt is empty or fills the context.
 */
export function fitTokens(
  client: EngineClient,
  promptTokens: number,
  asked: number | undefined,
  param: string,
): number {
  const limit = sequenceLimit(client)
  if (promptTokens === 0) {
    throw new RequestError(400, `${param}: the prompt holds no tokens`, {
      code: "empty_prompt",
      param,
    })
  }
  if (promptTokens >= limit) {
    throw new RequestError(
      400,
      `${param}: the prompt has ${promptTokens} tokens, but the context is ${limit} tokens and must leave room for an answer`,
      { code: "context_length_exceeded", param },
    )
  }
  return Math.min(asked ?? Number.POSITIVE_INFINITY, limit - promptTokens)
}

/** Admits the request (RequestError 429, 503) and starts its sequences at once. */
export function generate(deps: GeneratorDeps, request: GenerationRequest): Generation {
  const ticket = deps.admission.enter(request.sequences.length)
  const controller = new AbortController()
  const signals = [controller.signal, ticket.signal]
  if (deps.requestTimeoutMs > 0) signals.push(timeoutSignal(deps.requestTimeoutMs, controller))
  const signal = AbortSignal.any(signals)
  const events = merge(
    request.sequences.map((_, choice) => runChoice(deps, request, choice, signal)),
  )
  return closable(events, ticket, controller, signal, request)
}

/**
 * A generator that was never started runs no `finally`; this gives the ticket back in every case.
 */
function closable(
  events: AsyncGenerator<GenerationEvent>,
  ticket: Ticket,
  controller: AbortController,
  signal: AbortSignal,
  { signal: gone, onEnd }: GenerationRequest,
): Generation {
  let isClosed = false
  const close = (): void => {
    if (!isClosed) onEnd?.()
    isClosed = true
    gone?.removeEventListener("abort", close)
    ticket.release()
    controller.abort()
    // A pending read ends because the signal is aborted; nobody needs its outcome.
    events.return(undefined).catch(() => {})
  }
  gone?.addEventListener("abort", close, { once: true })
  // Work starts now, not when a slow client begins to read; who reads first gets the outcome, an
  // error too.
  let started: Promise<IteratorResult<GenerationEvent>> | undefined = events.next()
  started.catch(() => {})
  if (gone?.aborted === true) close()
  const failed = (error: unknown): RequestError => {
    const cause: unknown = signal.aborted ? signal.reason : error
    close()
    return asRequestError(cause)
  }
  return {
    [Symbol.asyncIterator]() {
      return this
    },
    async accepted() {
      try {
        await started
      } catch (error) {
        throw failed(error)
      }
    },
    async next() {
      try {
        const pending = started ?? events.next()
        started = undefined
        const result = await pending
        if (result.done === true) close()
        return result
      } catch (error) {
        throw failed(error)
      }
    },
    async return() {
      close()
      return { done: true, value: undefined }
    },
  }
}

async function* runChoice(
  deps: GeneratorDeps,
  request: GenerationRequest,
  choice: number,
  signal: AbortSignal,
): AsyncGenerator<GenerationEvent> {
  const sequence = request.sequences[choice]
  if (sequence === undefined) throw new RangeError(`choice ${choice}`)
  const { ids, params } = sequence
  const wantLogprobs = params.logprobs !== undefined
  const text = new TextStream(deps.tokenizer, request.stop, request.keepToken)
  let first: TokenEvent["first"]
  let firstMs = 0
  let lastMs = 0
  let completionTokens = 0
  let finishReason: "stop" | "length" | undefined
  let draft: ChoiceTimings["draft"]
  let progress: PromptProgress | undefined

  const sofar = (): SoFar => ({
    usage: {
      promptTokens: progress?.processed ?? ids.length,
      cachedTokens: first?.cachedTokens ?? progress?.cached ?? 0,
      completionTokens,
    },
    timings: {
      queueMs: first?.queueMs ?? 0,
      prefillMs: first?.prefillMs ?? progress?.ms ?? firstMs - request.arrivedMs,
      ttftMs: completionTokens === 0 ? 0 : firstMs - request.arrivedMs,
      decodeMs: completionTokens === 0 ? 0 : lastMs - firstMs,
      draft,
    },
  })

  for await (const all of deps.client.generate(ids, params, signal)) {
    const events = params.tellsProgress === true ? all.filter(isToken) : all
    for (const event of all) {
      if (event.progress === undefined) continue
      progress = event.progress
      yield {
        type: "text",
        choice,
        text: "",
        logprobs: [],
        progress,
        completionTokens,
        sofar,
      }
    }
    if (events.length === 0) continue
    progress = undefined
    const beforeMs = lastMs
    lastMs = performance.now()
    if (beforeMs > 0) deps.metrics.tokens(events.length, (lastMs - beforeMs) / 1000)
    let piece = ""
    let logprobs: readonly TokenLogprob[] = []
    const prompt = events[0]?.promptLogprobs?.map((one, i) => ({
      token: ids[i + 1] as number,
      ...one,
    }))
    if (prompt !== undefined)
      yield {
        type: "text",
        choice,
        text: "",
        logprobs: [],
        prompt,
        completionTokens,
        sofar,
      }
    for (const event of events) {
      if (event.finish === "error") throw engineError(event)
      if (event.finish === "abort") throw signal.reason ?? engineStopped()
      request.onToken?.(choice, event.token)
      if (completionTokens++ === 0) {
        first = event.first
        firstMs = lastMs
        deps.metrics.firstToken(first, (firstMs - request.arrivedMs) / 1000)
      }
      if (event.finish !== undefined) finishReason = event.finish
      if (event.drafted !== undefined)
        draft = { drafted: event.drafted, accepted: event.accepted ?? 0 }
      // The token that ends a sequence is not part of its text.
      if (event.finish === "stop") continue
      const delta = text.push(event.token, wantLogprobs ? logprobOf(event) : undefined)
      piece += delta.text
      if (delta.logprobs.length > 0) logprobs = [...logprobs, ...delta.logprobs]
      if (text.stopString !== undefined) break
    }
    if (piece !== "") yield { type: "text", choice, text: piece, logprobs, completionTokens, sofar }
    if (text.stopString !== undefined) {
      finishReason = "stop"
      break
    }
  }
  if (signal.aborted) throw signal.reason
  if (finishReason === undefined) {
    throw new RequestError(500, "the engine ended the sequence without a reason", {
      code: "engine_error",
    })
  }
  const rest = text.flush()
  if (rest.text !== "" || rest.logprobs.length > 0)
    yield { type: "text", choice, ...rest, completionTokens, sofar }
  // A stop string may come to light only with the last characters.
  const reason = text.stopString === undefined ? finishReason : "stop"
  const { usage, timings } = sofar()
  deps.metrics.finished({
    reason,
    promptTokens: ids.length,
    generatedTokens: completionTokens,
    seconds: (lastMs - request.arrivedMs) / 1000,
    queueSeconds: timings.queueMs / 1000,
    prefillSeconds: timings.prefillMs / 1000,
    decodeSeconds: timings.decodeMs / 1000,
  })
  yield {
    type: "end",
    choice,
    finishReason: reason,
    stopString: text.stopString,
    usage,
    timings,
  }
}

function isToken({ progress }: TokenEvent): boolean {
  return progress === undefined
}

function engineError({ error = "the engine failed", isRefused }: TokenEvent): RequestError {
  if (isRefused === true) return new RequestError(400, error, { code: "invalid_value" })
  return new RequestError(500, error, { code: "engine_error" })
}

function engineStopped(): RequestError {
  return new RequestError(503, "the engine stopped", { code: "engine_stopped" })
}

function logprobOf(event: TokenEvent): TokenLogprob {
  return {
    token: event.token,
    logprob: event.logprob ?? Number.NEGATIVE_INFINITY,
    top: event.topLogprobs ?? [],
  }
}

export function timeoutSignal(timeoutMs: number, done: AbortController): AbortSignal {
  const controller = new AbortController()
  const timer = setTimeout(() => {
    controller.abort(
      new RequestError(504, `the request took longer than ${timeoutMs} ms`, {
        code: "request_timeout",
      }),
    )
  }, timeoutMs)
  done.signal.addEventListener("abort", () => clearTimeout(timer), { once: true })
  return controller.signal
}

/**
 * What is thrown to a client: our own sentences, or a plain "internal error" that tells nothing of
 * the inside.
 */
export function asRequestError(error: unknown): RequestError {
  if (error instanceof RequestError) return error
  if (error instanceof ConfigError) {
    return new RequestError(400, error.message, { code: "invalid_value", cause: error })
  }
  if (error instanceof EngineError) {
    return new RequestError(503, error.message, {
      code: "engine_stopped",
      cause: error,
      retryAfterSeconds: 1,
    })
  }
  if (error instanceof KtError) {
    return new RequestError(500, error.message, { code: "engine_error", cause: error })
  }
  if (error instanceof Error && error.name === "AbortError") {
    return new RequestError(499, "the client closed the request", { code: "client_closed" })
  }
  return new RequestError(500, "internal error", { code: "internal_error", cause: error })
}
