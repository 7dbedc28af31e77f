import { ConfigError, KtError } from "../errors.ts"
import { readEvents } from "../web/sse.ts"

/** A server under test, of any make that has OpenAI's /v1/completions. */
export interface Target {
  readonly url: string
  readonly model: string
  /** Ids that prompts are drawn from, from 0. */
  readonly vocabSize: number
  readonly apiKey: string | undefined
}

/** What one request saw; times in ms from when it was sent. */
export interface Sample {
  /** To the first text. */
  readonly ttft: number
  /** To the last. */
  readonly total: number
  readonly promptTokens: number
  readonly tokens: number
  /** The longest wait between two pieces of text. */
  readonly longestGap: number
}

/** Ids that every vocabulary of a language model has, where the server does not say how many there are. */
const SMALL_VOCAB = 16_000

/** @throws ConfigError where there is no such server, or it has no model */
export async function openTarget(url: string, apiKey: string | undefined): Promise<Target> {
  const base = url.replace(/\/+$/, "").replace(/\/v1$/, "")
  let list: { data?: { id?: string; meta?: { n_vocab?: number } | null }[] }
  try {
    const response = await fetch(`${base}/v1/models`, { headers: headersOf(apiKey) })
    if (!response.ok) throw new ConfigError(`${url}: /v1/models answered ${response.status}`)
    list = (await response.json()) as typeof list
  } catch (error) {
    if (error instanceof ConfigError) throw error
    throw new ConfigError(`${url}: no server answers there (${(error as Error).message})`)
  }
  const [first] = list.data ?? []
  if (first?.id === undefined) throw new ConfigError(`${url}: /v1/models names no model`)
  return { url: base, model: first.id, vocabSize: first.meta?.n_vocab ?? SMALL_VOCAB, apiKey }
}

/** One streamed completion, greedy and to its full length. @throws KtError where the server refuses or breaks off */
export async function complete(
  target: Target,
  prompt: readonly number[],
  maxTokens: number,
): Promise<Sample> {
  const sent = performance.now()
  const response = await fetch(`${target.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headersOf(target.apiKey) },
    body: JSON.stringify({
      model: target.model,
      prompt,
      max_tokens: maxTokens,
      temperature: 0,
      ignore_eos: true,
      stream: true,
      stream_options: { include_usage: true },
    }),
  })
  if (!response.ok || response.body === null)
    throw new KtError(`${target.url}: ${response.status} ${(await response.text()).slice(0, 200)}`)
  let first = 0
  let last = 0
  let longestGap = 0
  let usage: { prompt_tokens: number; completion_tokens: number } | undefined
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") break
    const chunk = JSON.parse(data) as Chunk
    if (chunk.error) throw new KtError(`${target.url}: ${chunk.error.message}`)
    usage = chunk.usage ?? usage
    if (!chunk.choices?.length) continue
    const now = performance.now()
    if (first === 0) first = now
    else longestGap = Math.max(longestGap, now - last)
    last = now
  }
  if (first === 0 || usage === undefined)
    throw new KtError(`${target.url}: the stream ended without tokens or without their number`)
  return {
    ttft: first - sent,
    total: last - sent,
    promptTokens: usage.prompt_tokens,
    tokens: usage.completion_tokens,
    longestGap,
  }
}

interface Chunk {
  readonly error?: { readonly message: string }
  readonly choices?: readonly unknown[]
  readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number } | null
}

function headersOf(apiKey: string | undefined): Record<string, string> {
  return apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }
}
