import type { OpenAPIHono, RouteConfig } from "@hono/zod-openapi"
import { z } from "@hono/zod-openapi"
import type { Context } from "hono"

import { RequestError } from "../errors.ts"
import type { EngineClient } from "../worker/protocol.ts"
import type { Admission, Workload } from "./admission.ts"
import { generate, type Generation, type SequenceRequest } from "./generate.ts"
import type { ModelMetrics, ServerMetrics } from "./metrics.ts"
import { keepAliveMs } from "./models/keep-alive.ts"
import type { ModelSettings } from "./models/library.ts"
import type { Lease, ModelManager } from "./models/manager.ts"
import { stopParameter, withParameters } from "./models/parameters.ts"
import type { StreamOptions } from "./stream.ts"
import type { ModelMetadata, ServerConfig, ServerTokenizer } from "./types.ts"

/** What routes of one model work with. */
export interface ServerContext {
  readonly client: EngineClient
  readonly tokenizer: ServerTokenizer
  readonly model: ModelMetadata
  /** Its defaults are the model's own, where it has some. */
  readonly config: ServerConfig
  readonly admission: Admission
  readonly metrics: ModelMetrics
  /** What a created model adds. */
  readonly settings?: ModelSettings | undefined
  /** How long the request waited for the model to be loaded. */
  readonly loadMs: number
  /** Tells the log of a failure that is the server's own. */
  readonly report: (error: RequestError, requestId: string) => void
}

/** What all routes share; `useModel` gives those that need one a model. */
export interface ServerRoot {
  readonly config: ServerConfig
  readonly models: ModelManager
  readonly workload: Workload
  readonly metrics: ServerMetrics
  readonly report: (error: RequestError, requestId: string) => void
}

/** Variables of a request: its id, when it came and the models it uses; and what the listener offers. */
export interface ServerEnv {
  /** `keepOpen` has silence on the request's connection pass, now that all of it is here. */
  Bindings: { readonly keepOpen?: () => void }
  Variables: { requestId: string; arrivedMs: number; leases: Lease[] }
}

export type App = OpenAPIHono<ServerEnv>
export type RequestContext = Context<ServerEnv>

export interface UseOptions {
  /** Ollama's `keep_alive`. */
  readonly keepAlive?: string | number | null | undefined
  /** What is asked for when the name is not known: clients that know only models of their own ask for those. */
  readonly orDefault?: boolean
  /** The route generates nothing: models that cannot will do. */
  readonly anyKind?: boolean
}

/**
 * The model that a request names, loaded; it stays so until the answer has begun, and then as long as it has work.
 * RequestError 404 where there is none of that name, 503 where it takes too long.
 */
export async function useModel(
  root: ServerRoot,
  c: RequestContext,
  name: string | null | undefined,
  { keepAlive, orDefault = false, anyKind = false }: UseOptions = {},
): Promise<ServerContext> {
  const { models, config, report } = root
  const keepMs = keepAliveMs(keepAlive)
  const lease = await models.use(models.find(name, orDefault), keepMs, c.req.raw.signal)
  c.get("leases").push(lease)
  const { model, loaded, admission, metrics, loadMs } = lease
  if (!anyKind && loaded.client.info.pooling?.generates === false)
    throw new RequestError(
      400,
      `model "${model.name}" embeds or ranks texts and generates none: ask /v1/embeddings or /v1/rerank`,
      { code: "unsupported_model", param: "model" },
    )
  const { settings } = model
  const template = settings?.template ?? loaded.chatTemplate
  return {
    client: loaded.client,
    tokenizer:
      settings?.template === undefined ? loaded.tokenizer : loaded.withTemplate(settings.template),
    model: template === undefined ? model : { ...model, chatTemplate: template },
    config: withParameters(
      loaded.defaults === undefined ? config : { ...config, defaults: loaded.defaults },
      settings?.parameters,
    ),
    admission,
    metrics,
    settings,
    loadMs,
    report,
  }
}

export interface GenerationOptions {
  /** Control tokens whose text belongs to the answer. */
  readonly keepToken?: (id: number) => boolean
  /** It goes on when the client has gone. */
  readonly outlivesClient?: boolean
  readonly onToken?: (choice: number, token: number) => void
  readonly onEnd?: () => void
}

/** Starts the sequences of one HTTP request. */
export function startGeneration(
  context: ServerContext,
  c: RequestContext,
  sequences: readonly SequenceRequest[],
  stop: readonly string[],
  { keepToken, outlivesClient = false, onToken, onEnd }: GenerationOptions = {},
): Generation {
  return generate(
    { ...context, requestTimeoutMs: context.config.requestTimeoutMs },
    {
      sequences,
      stop: stop.length > 0 ? stop : stopParameter(context.settings?.parameters),
      signal: outlivesClient ? undefined : c.req.raw.signal,
      arrivedMs: c.get("arrivedMs"),
      onToken,
      onEnd,
      ...(keepToken === undefined ? {} : { keepToken }),
    },
  )
}

/** Ends a generation that nobody reads any more. */
export function aborting(generation: Generation): () => void {
  return () => void generation.return?.()
}

/** How an answer is streamed: errors in the API's shape, and `onClose` when the client has gone or has it all. */
export function streamOptions(
  context: Pick<ServerContext, "config" | "report">,
  c: RequestContext,
  errorBody: (error: RequestError) => unknown,
  onClose: () => void,
): StreamOptions {
  return {
    heartbeatMs: context.config.heartbeatMs,
    errorBody: (error) => {
      context.report(error, c.get("requestId"))
      return errorBody(error)
    },
    onClose,
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
