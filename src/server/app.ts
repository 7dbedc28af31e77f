import { OpenAPIHono } from "@hono/zod-openapi"
import type { MiddlewareHandler } from "hono"
import { bodyLimit } from "hono/body-limit"
import { cors } from "hono/cors"
import { matchedRoutes } from "hono/route"

import { RequestError } from "../errors.ts"
import { Workload } from "./admission.ts"
import { addMessages } from "./anthropic/messages.ts"
import { errorResponse } from "./api-error.ts"
import { isAllowed, requireKey, requireOrigin } from "./auth.ts"
import { addCache } from "./cache.ts"
import type { ServerEnv, ServerRoot } from "./context.ts"
import { asRequestError } from "./generate.ts"
import { randomId } from "./ids.ts"
import { addCompletion } from "./llamacpp/completion.ts"
import { addEmbedding } from "./llamacpp/embedding.ts"
import { addRerank } from "./llamacpp/rerank.ts"
import { addSlots } from "./llamacpp/slots.ts"
import { addTokens } from "./llamacpp/tokens.ts"
import { addMachine } from "./machine.ts"
import { ServerMetrics } from "./metrics.ts"
import { DEFAULT_KEEP_ALIVE_MS } from "./models/keep-alive.ts"
import type { KnownModel, LoadedModel } from "./models/library.ts"
import { type Lease, ModelManager } from "./models/manager.ts"
import { addModelOverview } from "./models/overview.ts"
import { addChat } from "./ollama/chat.ts"
import { addEmbed } from "./ollama/embed.ts"
import { addGenerate } from "./ollama/generate.ts"
import { addOllamaManagement } from "./ollama/manage.ts"
import { addOllamaModels } from "./ollama/models.ts"
import { addChatCompletions, addInputTokens } from "./openai/chat-completions.ts"
import { addCompletions } from "./openai/completions.ts"
import { ConversationStore } from "./openai/conversation-store.ts"
import { addConversations } from "./openai/conversations.ts"
import { addEmbeddings } from "./openai/embeddings.ts"
import { addFim } from "./openai/fim.ts"
import { KeptDatabase } from "./openai/kept-database.ts"
import { addModels } from "./openai/models.ts"
import { ResponseStore } from "./openai/response-store.ts"
import { addResponses } from "./openai/responses.ts"
import { addOperations } from "./operations.ts"
import { routedPath } from "./paths.ts"
import { addTei } from "./tei.ts"
import { DEFAULT_SERVER_CONFIG, type ServerDeps } from "./types.ts"

/** The application, the work that `startServer` drains, and the models whose engines are closed after it. */
export type ServerApp = OpenAPIHono<ServerEnv> & {
  readonly admission: Workload
  readonly models: ModelManager
}

/** A client's own request id is used when it is short and plain. */
const REQUEST_ID = /^[\w.:-]{1,128}$/

/** All routes over the models; `app.request()` tests it in process, `startServer` serves it. */
export function createApp(deps: ServerDeps): ServerApp {
  const config = { ...DEFAULT_SERVER_CONFIG, ...deps.config }
  const workload = new Workload()
  const metrics = new ServerMetrics(workload, deps.registry)
  const models = modelsOf(deps, { config, workload, metrics, log: deps.onLog ?? (() => {}) })
  const report = (error: RequestError, requestId: string): void => {
    if (error.status === 500) deps.onFailure?.(error.cause ?? error, requestId)
  }
  const context: ServerRoot = { config, models, workload, metrics, report }
  const app = new OpenAPIHono<ServerEnv>({ getPath: routedPath })

  app.use(observe(metrics))
  if (config.corsOrigins.length > 0) {
    app.use(
      cors({
        origin: config.corsOrigins.includes("*")
          ? "*"
          : (origin) => (isAllowed(origin, config.corsOrigins) ? origin : undefined),
        exposeHeaders: ["x-request-id", "retry-after"],
      }),
    )
  }
  app.use(requireKey(config.apiKeys))
  // A key tells friend from foe already.
  if (config.apiKeys.length === 0) app.use(requireOrigin(config.corsOrigins))
  const limit = bodyLimit({
    maxSize: config.bodyLimit,
    onError: () => {
      throw new RequestError(413, `the request body is larger than ${config.bodyLimit} bytes`, {
        code: "request_too_large",
      })
    },
  })
  // files of models go to the disk as they come, and have a limit of their own there
  app.use((c, next) => (c.req.path.startsWith("/api/blobs/") ? next() : limit(c, next)))
  app.onError((error, c) => {
    const known = asRequestError(error)
    report(known, c.get("requestId"))
    return errorResponse(c, known)
  })
  app.notFound((c) =>
    errorResponse(
      c,
      new RequestError(404, `there is no ${c.req.method} ${c.req.path}`, { code: "not_found" }),
    ),
  )

  addCache(app, context)
  addOperations(app, context)
  addMachine(app, context)
  addModels(app, context)
  addChatCompletions(app, context)
  addInputTokens(app, context)
  addCompletions(app, context)
  addFim(app, context)
  const kept = deps.kept ?? new KeptDatabase(":memory:")
  const responses = new ResponseStore(kept)
  const conversations = new ConversationStore(kept)
  addResponses(app, context, { responses, conversations })
  addConversations(app, conversations, responses)
  addMessages(app, context)
  addTokens(app, context)
  addSlots(app, context)
  addCompletion(app, context)
  addEmbeddings(app, context)
  addEmbedding(app, context)
  addRerank(app, context)
  addTei(app, context)
  addEmbed(app, context)
  addOllamaModels(app, context)
  addOllamaManagement(app, context)
  addModelOverview(app, context)
  addChat(app, context)
  addGenerate(app, context)
  return Object.assign(app, { admission: workload, models })
}

/** The models that were given: a library of many, or one that is loaded. */
function modelsOf(
  deps: ServerDeps,
  server: ConstructorParameters<typeof ModelManager>[1],
): ModelManager {
  if (deps.models !== undefined) {
    const { first, ...options } = deps.models
    const manager = new ModelManager(options, server)
    if (first !== undefined) manager.adopt(first.model, first.loaded)
    return manager
  }
  const { client, tokenizer } = deps
  const { chatTemplate } = deps.model
  const model: KnownModel = { ...deps.model, key: deps.model.name }
  const loaded: LoadedModel = { client, tokenizer, chatTemplate, withTemplate: () => tokenizer }
  const library = {
    isFixed: true,
    list: () => [model],
    describe: () => model,
    check: () => {},
    load: () => Promise.resolve(loaded),
  }
  const limits = { maxModels: 1, memoryBytes: Number.POSITIVE_INFINITY, aliases: [] }
  const times = { keepAliveMs: DEFAULT_KEEP_ALIVE_MS, loadTimeoutMs: 60_000 }
  const manager = new ModelManager({ library, ...limits, ...times }, server)
  manager.adopt(model, loaded)
  return manager
}

/** Gives each request an id, a start time and a line in the metrics. */
function observe(metrics: ServerMetrics): MiddlewareHandler<ServerEnv> {
  return async (c, next) => {
    const started = performance.now()
    const given = c.req.header("x-request-id") ?? ""
    const requestId = REQUEST_ID.test(given) ? given : `req_${randomId()}`
    c.set("requestId", requestId)
    c.set("arrivedMs", started)
    const leases: Lease[] = []
    c.set("leases", leases)
    try {
      await next()
    } finally {
      // work that goes on has its own hold on the model
      for (const lease of leases) lease.release()
    }
    c.res.headers.set("x-request-id", requestId)
    // the name that Anthropic's clients read
    if (c.req.path.startsWith("/v1/messages")) c.res.headers.set("request-id", requestId)
    // Unknown paths count as one route, or anybody could grow the metrics.
    const route =
      matchedRoutes(c).findLast(({ path }) => path !== "/*" && path !== "*")?.path ?? "other"
    metrics.request(route, c.req.method, c.res.status, (performance.now() - started) / 1000)
  }
}
