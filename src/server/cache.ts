import { z } from "@hono/zod-openapi"

import { type App, document, jsonContent, type ServerRoot } from "./context.ts"
import { engineStats } from "./operations.ts"

const tier = z.object({
  bytes: z.number(),
  limit_bytes: z.number().optional(),
  hit_tokens: z.number().openapi({ description: "Prompt tokens taken from it" }),
})

const modelCache = z.object({
  model: z.string(),
  prompt_tokens: z.number().openapi({ description: "Tokens of all prompts" }),
  hit_rate: z.number().openapi({ description: "Share of them that was known" }),
  device: tier,
  host: tier,
  disk: tier.extend({
    writes: z.number(),
    drops: z.number().openapi({ description: "Blocks not written, since too many waited" }),
    failures: z.number().openapi({ description: "Blocks that were damaged or gone" }),
  }),
})

/** What the prefix cache holds, and its end. */
export function addCache(app: App, root: ServerRoot): void {
  document(app, {
    method: "get",
    path: "/cache",
    summary: "The prefix cache of every loaded model, tier by tier",
    tags: ["Operations"],
    responses: { 200: jsonContent(z.object({ models: z.array(modelCache) }), "Bytes and hits") },
  })
  app.get("/cache", async (c) => {
    const models: z.infer<typeof modelCache>[] = []
    for (const { model, loaded } of root.models.loaded()) {
      const stats = await engineStats(loaded.client).catch(() => undefined)
      if (stats === undefined) continue
      const { promptTokensTotal: prompts, cachedTokensTotal: cached } = stats
      const host = stats.cacheHostTokensTotal
      const disk = stats.cacheDiskTokensTotal
      models.push({
        model: model.name,
        prompt_tokens: prompts,
        hit_rate: prompts === 0 ? 0 : cached / prompts,
        device: { bytes: stats.cacheDeviceBytes, hit_tokens: Math.max(0, cached - host - disk) },
        host: {
          bytes: stats.cacheHostBytes,
          limit_bytes: stats.cacheHostLimitBytes,
          hit_tokens: host,
        },
        disk: {
          bytes: stats.cacheDiskBytes,
          limit_bytes: stats.cacheDiskLimitBytes,
          hit_tokens: disk,
          writes: stats.cacheDiskWritesTotal,
          drops: stats.cacheDiskDropsTotal,
          failures: stats.cacheDiskFailuresTotal,
        },
      })
    }
    return c.json({ models })
  })

  document(app, {
    method: "delete",
    path: "/cache",
    summary: "Forgets every known prefix of the loaded models, on all tiers; running answers go on",
    tags: ["Operations"],
    responses: { 200: jsonContent(z.object({ cleared: z.array(z.string()) }), "Models' names") },
  })
  app.delete("/cache", (c) => {
    const loaded = root.models.loaded()
    for (const entry of loaded) entry.loaded.client.clearCache()
    return c.json({ cleared: loaded.map(({ model }) => model.name) })
  })
}
