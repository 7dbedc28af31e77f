import { ConfigError, RequestError } from "../errors.ts"
import type { Pooled, PoolParams } from "../worker/protocol.ts"
import type { RequestContext, ServerContext } from "./context.ts"
import { asRequestError, sequenceLimit, timeoutSignal } from "./generate.ts"

/** Texts of one request. */
export const MAX_TEXTS = 2048

/** One text and what is to be made of it. */
export interface PoolWork {
  readonly ids: Int32Array
  readonly params: PoolParams
}

/** What makes an embedding where a request says nothing: what the checkpoint was made with, else the last token's state. */
export function defaultPooling({ client }: ServerContext): PoolParams["pooling"] {
  const { pooling } = client.info
  if (pooling === undefined) return "last"
  if (pooling.pooling !== "rank") return pooling.pooling
  return pooling.generates ? "last" : "mean"
}

/** RequestError 400 where a text is empty or longer than the context. */
export function checkTexts(
  context: ServerContext,
  texts: readonly Int32Array[],
  param: string,
): void {
  const limit = sequenceLimit(context.client)
  for (const [i, { length }] of texts.entries()) {
    const name = texts.length === 1 ? param : `${param}[${i}]`
    if (length === 0)
      throw new RequestError(400, `${name}: the text holds no tokens`, {
        code: "empty_prompt",
        param: name,
      })
    if (length > limit)
      throw new RequestError(
        400,
        `${name}: the text has ${length} tokens, but the context is ${limit} tokens`,
        { code: "context_length_exceeded", param: name },
      )
  }
}

/**
 * Vectors or scores of texts, in their order. As many are given to the engine at a time as it runs; the request takes as
 * many places in the queue. RequestError 429, 503, 504, and 400 where parameters do not fit the model.
 */
export async function poolTexts(
  context: ServerContext,
  c: RequestContext,
  works: readonly PoolWork[],
  param: string,
): Promise<Pooled[]> {
  const { client, admission, config } = context
  const places = Math.min(works.length, client.info.maxBatchSize)
  const ticket = admission.enter(places)
  const controller = new AbortController()
  const signals = [controller.signal, ticket.signal, c.req.raw.signal]
  if (config.requestTimeoutMs > 0) signals.push(timeoutSignal(config.requestTimeoutMs, controller))
  const signal = AbortSignal.any(signals)
  const results: Pooled[] = []
  let next = 0
  const work = async (): Promise<void> => {
    for (let i = next++; i < works.length; i = next++) {
      const { ids, params } = works[i] as PoolWork
      results[i] = await client.pool(ids, params, signal)
    }
  }
  try {
    await Promise.all(Array.from({ length: places }, work))
    return results
  } catch (error) {
    if (error instanceof ConfigError && !signal.aborted)
      throw new RequestError(400, `${param}: ${error.message}`, { code: "invalid_value", param })
    throw asRequestError(signal.aborted ? signal.reason : error)
  } finally {
    controller.abort()
    ticket.release()
  }
}

export function totalTokens(results: readonly Pooled[]): number {
  return results.reduce((sum, { promptTokens }) => sum + promptTokens, 0)
}

/** Little-endian floats. */
export function base64Of(values: Float32Array): string {
  const bytes = new Uint8Array(values.length * 4)
  const view = new DataView(bytes.buffer)
  values.forEach((value, i) => view.setFloat32(4 * i, value, true))
  return Buffer.from(bytes).toString("base64")
}
