import { z } from "@hono/zod-openapi"

import { version } from "../../package.json" with { type: "json" }
import { KtError, RequestError } from "../errors.ts"
import type { EngineClient, EngineStats } from "../worker/protocol.ts"
import { type App, document, jsonContent, type ServerRoot } from "./context.ts"

/** An engine step that is longer than this leaves /metrics with the last known engine values. */
const STATS_TIMEOUT_MS = 2000

/** Health, readiness, metrics and the description of the API. */
export function addOperations(app: App, root: ServerRoot): void {
  document(app, {
    method: "get",
    path: "/health",
    summary: "Whether the process answers",
    tags: ["Operations"],
    responses: { 200: jsonContent(z.object({ status: z.literal("ok") }), "It does") },
  })
  app.get("/health", (c) => c.json({ status: "ok" }))

  const readySchema = z.object({
    status: z.literal("ready"),
    model: z.string().nullable().openapi({ description: "The one used last" }),
    loaded: z.array(z.string()),
  })
  document(app, {
    method: "get",
    path: "/ready",
    summary: "Whether new requests are taken",
    tags: ["Operations"],
    responses: {
      200: jsonContent(readySchema, "They are"),
      503: { description: "The server is shutting down, or its engine has failed" },
    },
  })
  app.get("/ready", async (c) => {
    const loaded = root.models.loaded()
    // one dead engine of several still has to be noticed
    await Promise.all(loaded.map((entry) => engineStats(entry.loaded.client))).catch(
      (error: unknown) => {
        const reason = error instanceof KtError ? error.message : "the engine does not answer"
        throw new RequestError(503, reason, { code: "engine_stopped", cause: error })
      },
    )
    if (root.workload.draining) {
      throw new RequestError(503, "the server is shutting down", {
        code: "shutting_down",
        retryAfterSeconds: 5,
      })
    }
    const names = loaded.map(({ model }) => model.name)
    return c.json({ status: "ready", model: names[0] ?? null, loaded: names })
  })

  document(app, {
    method: "get",
    path: "/metrics",
    summary: "Prometheus metrics",
    tags: ["Operations"],
    responses: {
      200: { description: "Text format", content: { "text/plain": { schema: z.string() } } },
    },
  })
  app.get("/metrics", async (c) => {
    // A failed engine is a fact to show, not a reason to show nothing.
    const stats = await Promise.all(
      root.models.loaded().map(async ({ model, loaded }) => {
        const known = await engineStats(loaded.client).catch(() => "failed" as const)
        return [model.name, known] as const
      }),
    )
    root.metrics.engines(new Map(stats))
    const { registry } = root.metrics
    return c.body(await registry.metrics(), 200, {
      "content-type": registry.contentType,
      // llama.cpp's
      "process-start-time-unix": String(Math.round(performance.timeOrigin / 1000)),
    })
  })

  app.openAPIRegistry.registerComponent("securitySchemes", "key", {
    type: "http",
    scheme: "bearer",
  })
  const open = root.config.apiKeys.length === 0
  app.doc31("/openapi.json", {
    openapi: "3.1.0",
    info: { title: "KTransformers", version },
    ...(open ? {} : { security: [{ key: [] }] }),
  })
}

/** Undefined while a long step keeps the engine busy; rejects when it has failed. */
export async function engineStats(client: EngineClient): Promise<EngineStats | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), STATS_TIMEOUT_MS)
  })
  try {
    return await Promise.race([client.stats(), late])
  } finally {
    clearTimeout(timer)
  }
}
