import type { PromptProgress } from "../../worker/protocol.ts"
import type { ChoiceTimings, ChoiceUsage, TokenLogprob } from "../generate.ts"
import type { ServerTokenizer } from "../types.ts"

export interface Usage {
  readonly prompt_tokens: number
  readonly completion_tokens: number
  readonly total_tokens: number
  readonly prompt_tokens_details: { readonly cached_tokens: number }
}

/** The names llama.cpp's server uses, and two more. */
export interface Timings {
  /** Prompt tokens taken from the prefix cache. */
  readonly cache_n: number
  /** Prompt tokens computed. */
  readonly prompt_n: number
  readonly prompt_ms: number
  readonly prompt_per_token_ms: number
  readonly prompt_per_second: number
  readonly predicted_n: number
  /** From the first token to the last. */
  readonly predicted_ms: number
  /** Of the tokens after the first. */
  readonly predicted_per_token_ms: number
  readonly predicted_per_second: number
  readonly queue_ms: number
  readonly ttft_ms: number
  /** With speculative decoding: tokens guessed, and those that were right. */
  readonly draft_n?: number
  readonly draft_n_accepted?: number
}

/** One finished choice and the prompt it belongs to. */
export interface FinishedChoice {
  readonly prompt: number
  readonly usage: ChoiceUsage
  readonly timings: ChoiceTimings
}

/** Prompts count once, however many choices each has. */
export function usageOf(choices: readonly FinishedChoice[]): Usage {
  const prompts = new Map<number, ChoiceUsage>()
  let completion = 0
  for (const { prompt, usage } of choices) {
    completion += usage.completionTokens
    const seen = prompts.get(prompt)
    if (seen === undefined || usage.cachedTokens < seen.cachedTokens) prompts.set(prompt, usage)
  }
  let promptTokens = 0
  let cached = 0
  for (const usage of prompts.values()) {
    promptTokens += usage.promptTokens
    cached += usage.cachedTokens
  }
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completion,
    total_tokens: promptTokens + completion,
    prompt_tokens_details: { cached_tokens: cached },
  }
}

/** llama.cpp's form. */
export function promptProgress({ total, cached, processed, ms }: PromptProgress): object {
  return { total, cache: cached, processed, time_ms: ms }
}

/** Over all choices: they run side by side, so times are the longest, tokens the sum. */
export function timingsOf(choices: readonly FinishedChoice[]): Timings {
  const { prompt_tokens, completion_tokens, prompt_tokens_details } = usageOf(choices)
  const longest = (pick: (timings: ChoiceTimings) => number): number =>
    choices.reduce((most, { timings }) => Math.max(most, pick(timings)), 0)
  const computed = prompt_tokens - prompt_tokens_details.cached_tokens
  const promptMs = longest((t) => t.prefillMs)
  const predictedMs = longest((t) => t.decodeMs)
  const afterFirst = choices.reduce(
    (n, { usage }) => n + Math.max(0, usage.completionTokens - 1),
    0,
  )
  const drafts = choices.flatMap(({ timings }) => timings.draft ?? [])
  const total = (pick: (draft: { drafted: number; accepted: number }) => number): number =>
    drafts.reduce((sum, draft) => sum + pick(draft), 0)
  return {
    cache_n: prompt_tokens_details.cached_tokens,
    prompt_n: computed,
    prompt_ms: promptMs,
    prompt_per_token_ms: computed > 0 ? promptMs / computed : 0,
    prompt_per_second: perSecond(computed, promptMs),
    predicted_n: completion_tokens,
    predicted_ms: predictedMs,
    predicted_per_token_ms: afterFirst > 0 ? predictedMs / afterFirst : 0,
    predicted_per_second: perSecond(afterFirst, predictedMs),
    queue_ms: longest((t) => t.queueMs),
    ttft_ms: longest((t) => t.ttftMs),
    ...(drafts.length === 0
      ? {}
      : { draft_n: total((d) => d.drafted), draft_n_accepted: total((d) => d.accepted) }),
  }
}

function perSecond(count: number, ms: number): number {
  return ms > 0 ? (count * 1000) / ms : 0
}

export interface ChatLogprob {
  readonly token: string
  readonly logprob: number
  readonly bytes: readonly number[]
}

export interface ChatLogprobs {
  readonly content: readonly (ChatLogprob & { readonly top_logprobs: readonly ChatLogprob[] })[]
  readonly refusal: null
}

export function chatLogprobs(
  tokenizer: ServerTokenizer,
  tokens: readonly TokenLogprob[],
): ChatLogprobs {
  const one = (id: number, logprob: number): ChatLogprob => {
    const bytes = tokenizer.tokenBytes(id)
    return { token: tokenText(bytes), logprob: finite(logprob), bytes: Array.from(bytes) }
  }
  return {
    content: tokens.map(({ token, logprob, top }) => ({
      ...one(token, logprob),
      top_logprobs: top.map(([id, value]) => one(id, value)),
    })),
    refusal: null,
  }
}

/** The older form of /v1/completions: parallel arrays. */
export interface TextLogprobs {
  readonly tokens: string[]
  readonly token_logprobs: (number | null)[]
  readonly top_logprobs: (Record<string, number> | null)[] | null
  readonly text_offset: number[]
}

/** `offset` is the position in the choice's text at which these tokens start. */
export function textLogprobs(
  tokenizer: ServerTokenizer,
  tokens: readonly TokenLogprob[],
  topCount: number,
  offset: number,
): TextLogprobs {
  const text = (id: number): string => tokenText(tokenizer.tokenBytes(id))
  const out: TextLogprobs = {
    tokens: [],
    token_logprobs: [],
    top_logprobs: topCount > 0 ? [] : null,
    text_offset: [],
  }
  let at = offset
  for (const { token, logprob, top } of tokens) {
    const string = text(token)
    out.tokens.push(string)
    out.token_logprobs.push(finite(logprob))
    out.top_logprobs?.push(Object.fromEntries(top.map(([id, value]) => [text(id), finite(value)])))
    out.text_offset.push(at)
    at += string.length
  }
  return out
}

/** The same of a prompt: nothing is known of its first token, and tokens that its text lacks take no room in it. */
export function promptTextLogprobs(
  tokenizer: ServerTokenizer,
  prompt: { readonly ids: Int32Array; readonly text: string },
  tokens: readonly TokenLogprob[],
  topCount: number,
): TextLogprobs {
  const first = { token: prompt.ids[0] as number, logprob: 0, top: [] }
  const out = textLogprobs(tokenizer, [first, ...tokens], topCount, 0)
  out.token_logprobs[0] = null
  if (out.top_logprobs !== null) out.top_logprobs[0] = null
  let at = 0
  for (const [i, string] of out.tokens.entries()) {
    out.text_offset[i] = at
    if (prompt.text.startsWith(string, at)) at += string.length
  }
  return out
}

/** vLLM's form: by token id, the prompt's own token among them. Ranks are of tokens among the likeliest. */
export function promptLogprobs(
  tokenizer: ServerTokenizer,
  tokens: readonly TokenLogprob[],
): (Record<string, object> | null)[] {
  const one = (id: number, logprob: number, rank: number | undefined): object => ({
    logprob: finite(logprob),
    ...(rank === undefined ? {} : { rank }),
    decoded_token: tokenText(tokenizer.tokenBytes(id)),
  })
  const shown = tokens.map(({ token, logprob, top }) => {
    const likely = top.map(([id, value], i) => [String(id), one(id, value, i + 1)] as const)
    const has = top.some(([id]) => id === token)
    return Object.fromEntries([
      ...(has ? [] : [[String(token), one(token, logprob, undefined)] as const]),
      ...likely,
    ])
  })
  return [null, ...shown]
}

/** Parts of characters that are no text of their own show as U+FFFD; `bytes` has the truth. */
function tokenText(bytes: Uint8Array): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes)
}

/** JSON has no infinity; OpenAI writes -9999 for a token that cannot occur. */
function finite(logprob: number): number {
  return Number.isFinite(logprob) ? logprob : -9999
}
