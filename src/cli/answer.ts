import { KtError } from "../errors.ts"
import { generateParams } from "../server/sampling.ts"
import type { SamplingDefaults } from "../server/types.ts"
import { Detokenizer, StopMatcher } from "../tokenizer/detokenizer.ts"
import type { FinishReason } from "../worker/protocol.ts"
import type { Session } from "./session.ts"

export interface AnswerOptions {
  readonly sampling: SamplingDefaults
  readonly seed?: number | undefined
  readonly stops?: readonly string[]
  readonly signal?: AbortSignal
  /** The text begins here and continues no prompt of a template. */
  readonly atStart?: boolean
}

/** What came of a prompt. */
export interface Answer {
  readonly text: string
  readonly finish: FinishReason
  readonly promptTokens: number
  readonly cachedTokens: number
  readonly tokens: number
  readonly ids: readonly number[]
  readonly prefillSeconds: number
  /** From the first token to the last. */
  readonly decodeSeconds: number
}

/** Generates from a prompt; `onText` gets the answer as it comes, in whole characters and without stop strings. */
export async function answer(
  session: Session,
  prompt: Int32Array,
  options: AnswerOptions,
  onText: (text: string) => void,
): Promise<Answer> {
  const { client, tokenizer } = session
  const { sampling, seed, stops = [], signal, atStart = false } = options
  const longest = sampling.maxTokens ?? client.info.contextLength
  const params = generateParams({ seed }, longest, sampling, tokenizer)
  const detokenizer = new Detokenizer(tokenizer, { atStart })
  const matcher = new StopMatcher(stops)
  const ends = new Set(params.stopTokens)
  const ids: number[] = []
  let text = ""
  let finish: FinishReason = "abort"
  let first: { promptTokens: number; cachedTokens: number } | undefined
  const started = performance.now()
  let firstAt = started
  let lastAt = started
  const emit = (piece: string): void => {
    if (piece === "") return
    text += piece
    onText(piece)
  }
  for await (const events of client.generate(prompt, params, signal)) {
    lastAt = performance.now()
    for (const event of events) {
      if (event.finish === "error") throw new KtError(event.error ?? "the engine failed")
      if (event.first !== undefined) {
        first = event.first
        firstAt = lastAt
      }
      if (event.finish !== undefined) finish = event.finish
      if (event.token < 0) continue
      ids.push(event.token)
      if (!ends.has(event.token)) emit(matcher.push(detokenizer.push(event.token)).text)
      if (matcher.stopped !== undefined) break
    }
    if (matcher.stopped !== undefined) {
      finish = "stop"
      break
    }
  }
  if (matcher.stopped === undefined) {
    emit(matcher.push(detokenizer.flush()).text)
    emit(matcher.flush())
  }
  return {
    text,
    finish,
    promptTokens: first?.promptTokens ?? prompt.length,
    cachedTokens: first?.cachedTokens ?? 0,
    tokens: ids.length,
    ids,
    prefillSeconds: (firstAt - started) / 1000,
    decodeSeconds: (lastAt - firstAt) / 1000,
  }
}

/** "31 tokens at 152.3 tokens/s, first after 0.08 s (prompt 24 tokens, 8 cached)" */
export function speedLine(a: Answer): string {
  const rate =
    a.tokens > 1 && a.decodeSeconds > 0
      ? ` at ${((a.tokens - 1) / a.decodeSeconds).toFixed(1)} tokens/s`
      : ""
  const cached = a.cachedTokens > 0 ? `, ${a.cachedTokens} cached` : ""
  return `${a.tokens} tokens${rate}, first after ${a.prefillSeconds.toFixed(2)} s (prompt ${a.promptTokens} tokens${cached})`
}
