import type { OpenAPIHono, RouteConfig } from "@hono/zod-openapi"
import { z } from "@hono/zod-openapi"
import type { Context } from "hono"

import { RequestError } from "../errors.ts"
import type { EngineClient } from "../worker/protocol.ts"
import type { Admission } from "./admission.ts"
import { generate, type Generation, type SequenceRequest } from "./generate.ts"
import type { ServerMetrics } from "./metrics.ts"
import type { StreamOptions } from "./stream.ts"
import type { ModelMetadata, ServerConfig, ServerTokenizer } from "./types.ts"

/** Name under which every client finds the model that is served. */
export const MODEL_ALIAS = "default"

/** What routes work with. */
export interface ServerContext {
  readonly client: EngineClient
  readonly tokenizer: ServerTokenizer
  readonly model: ModelMetadata
  readonly config: ServerConfig
  readonly admission: Admission
  readonly metrics: ServerMetrics
  /** Tells the log of a failure that is the server's own. */
  readonly report: (error: RequestError, requestId: string) => void
}

/** Variables of a request: its id and when it came; and what the listener offers. */
export interface ServerEnv {
  /** `keepOpen` has silence on the request's connection pass, now that all of it is here. */
  Bindings: { readonly keepOpen?: () => void }
  Variables: { requestId: string; arrivedMs: number }
}

export type App = OpenAPIHono<ServerEnv>
export type RequestContext = Context<ServerEnv>

/**
 * RequestError 404 unless `name` is the served model, with or without Ollama's tag, or the alias.
 */
export function checkModel(context: ServerContext, name: string | null | undefined): void {
  if (name === undefined || name === null) return
  const { name: known } = context.model
  if (name === known || name === MODEL_ALIAS) return
  if (name === `${known}:latest` || name === `${MODEL_ALIAS}:latest`) return
  throw new RequestError(404, `model "${name}" not found; this server has "${known}"`, {
    code: "model_not_found",
    param: "model",
  })
}

export interface GenerationOptions {
  /** Control tokens whose text belongs to the answer. */
  readonly keepToken?: (id: number) => boolean
  /** It goes on when the client has gone. */
  readonly outlivesClient?: boolean
}

/** Starts the sequences of one HTTP request. */
export function startGeneration(
  context: ServerContext,
  c: RequestContext,
  sequences: readonly SequenceRequest[],
  stop: readonly string[],
  { keepToken, outlivesClient = false }: GenerationOptions = {},
): Generation {
  return generate(
    { ...context, requestTimeoutMs: context.config.requestTimeoutMs },
    {
      sequences,
      stop,
      signal: outlivesClient ? undefined : c.req.raw.signal,
      arrivedMs: c.get("arrivedMs"),
      ...(keepToken === undefined ? {} : { keepToken }),
    },
  )
}

/** How a generation is streamed: errors in the API's shape, abort when the client goes away. */
export function streamOptions(
  context: ServerContext,
  c: RequestContext,
  generation: Generation,
  errorBody: (error: RequestError) => unknown,
): StreamOptions {
  return {
    heartbeatMs: context.config.heartbeatMs,
    errorBody: (error) => {
      context.report(error, c.get("requestId"))
      return errorBody(error)
    },
    onClose: () => void generation.return?.(),
  }
}

/** Documents a route; the handler is added beside it, as bodies of any content type are read. */
export function document(app: App, route: RouteConfig): void {
  app.openAPIRegistry.registerPath(route)
}

export function jsonContent(
  schema: z.ZodType,
  description: string,
): {
  description: string
  content: { "application/json": { schema: z.ZodType } }
} {
  return { description, content: { "application/json": { schema } } }
}
