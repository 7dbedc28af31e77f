import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import type { Pooled } from "../../worker/protocol.ts"
import {
  type App,
  document,
  jsonContent,
  type RequestContext,
  type ServerContext,
  type ServerRoot,
  useModel,
} from "../context.ts"
import { checkTexts, defaultPooling, MAX_TEXTS, poolTexts, totalTokens } from "../embed.ts"
import { sequenceLimit } from "../generate.ts"
import { readBody } from "../request.ts"
import { embeddingsRequestSchema, embedRequestSchema, errorSchema } from "./schema.ts"

const embedResponse = z
  .object({
    model: z.string(),
    embeddings: z.array(z.array(z.number())),
    total_duration: z.int().openapi({ description: "Nanoseconds, as all durations" }),
    load_duration: z.int(),
    prompt_eval_count: z.int(),
  })
  .openapi("OllamaEmbedResponse")
const embeddingsResponse = z
  .object({ embedding: z.array(z.number()) })
  .openapi("OllamaEmbeddingsResponse")

export function addEmbed(app: App, root: ServerRoot): void {
  document(app, {
    method: "post",
    path: "/api/embed",
    summary: "Vectors of texts, of length 1",
    tags: ["Ollama"],
    request: { body: jsonContent(embedRequestSchema, "Texts; none loads the model") },
    responses: {
      200: jsonContent(embedResponse, "A vector each, in their order"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/api/embed", async (c) => {
    const body = await readBody(c, embedRequestSchema)
    const context = await useModel(root, c, body.model, use(body.keep_alive))
    const { input } = body
    const texts = typeof input === "string" ? (input === "" ? [] : [input]) : (input ?? [])
    const results = await embed(context, c, texts, {
      truncate: body.truncate !== false,
      normalize: true,
      dimensions: body.dimensions ?? undefined,
    })
    return c.json({
      model: body.model,
      embeddings: results.map(({ values }) => [...values]),
      total_duration: nanoseconds(performance.now() - c.get("arrivedMs")),
      load_duration: nanoseconds(context.loadMs),
      prompt_eval_count: totalTokens(results),
    })
  })

  document(app, {
    method: "post",
    path: "/api/embeddings",
    summary: "One text's vector, not normalised; /api/embed replaces it",
    tags: ["Ollama"],
    request: { body: jsonContent(embeddingsRequestSchema, "A text; none loads the model") },
    responses: {
      200: jsonContent(embeddingsResponse, "The vector"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/api/embeddings", async (c) => {
    const body = await readBody(c, embeddingsRequestSchema)
    const context = await useModel(root, c, body.model, use(body.keep_alive))
    const texts = body.prompt ? [body.prompt] : []
    const [result] = await embed(context, c, texts, {
      truncate: true,
      normalize: false,
      dimensions: undefined,
    })
    return c.json({ embedding: [...(result?.values ?? [])] })
  })
}

function use(keepAlive: string | number | null | undefined): {
  keepAlive: string | number | null | undefined
  anyKind: true
} {
  return { keepAlive, anyKind: true }
}

async function embed(
  context: ServerContext,
  c: RequestContext,
  texts: readonly string[],
  options: { truncate: boolean; normalize: boolean; dimensions: number | undefined },
): Promise<Pooled[]> {
  if (texts.length > MAX_TEXTS)
    throw new RequestError(400, `input: ${texts.length} texts, at most ${MAX_TEXTS}`, {
      code: "invalid_value",
      param: "input",
    })
  if (texts.length === 0) return []
  const { tokenizer, client } = context
  const limit = sequenceLimit(client)
  const whole = texts.map((text) => tokenizer.encode(text))
  const ids = options.truncate ? whole.map((one) => tokenizer.truncate(one, limit)) : whole
  checkTexts(context, ids, "input")
  const { normalize, dimensions } = options
  const params = {
    pooling: defaultPooling(context),
    normalize,
    ...(dimensions === undefined ? {} : { dimensions }),
  }
  const works = ids.map((one) => ({ ids: one, params }))
  return poolTexts(context, c, works, "dimensions")
}

function nanoseconds(ms: number): number {
  return Math.round(ms * 1e6)
}
