import { z } from "@hono/zod-openapi"

import { type App, document, jsonContent, type ServerRoot, useModel } from "../context.ts"
import {
  base64Of,
  checkTexts,
  defaultPooling,
  MAX_TEXTS,
  poolTexts,
  totalTokens,
} from "../embed.ts"
import { readBody } from "../request.ts"
import { accepted } from "../schema.ts"
import { checkIds } from "../token-ids.ts"
import { errorSchema } from "./schema.ts"

const tokens = z.array(z.int().min(0)).min(1)

/** How vectors are made, where a request wants them otherwise than the model was made for. */
export const poolingFields = {
  pooling: z
    .enum(["mean", "cls", "last"])
    .nullish()
    .openapi({ description: "Extension; by default as the checkpoint says, else last" }),
  normalize: z
    .boolean()
    .nullish()
    .openapi({ description: "Extension; false leaves vectors the length that they have" }),
}

const requestSchema = z
  .strictObject({
    model: z.string().nullish().openapi({ description: 'A known model, or "default"' }),
    input: z
      .union([
        z.string(),
        z.array(z.string()).min(1).max(MAX_TEXTS),
        tokens,
        z.array(tokens).min(1).max(MAX_TEXTS),
      ])
      .openapi({ description: "One text or several, as text or as tokens" }),
    encoding_format: z.enum(["float", "base64"]).nullish(),
    dimensions: z
      .int()
      .min(1)
      .nullish()
      .openapi({ description: "Only the first so many values, normalised again" }),
    user: accepted("users are not told apart"),
    ...poolingFields,
  })
  .openapi("EmbeddingsRequest")

const responseSchema = z
  .object({
    object: z.literal("list"),
    data: z.array(
      z.object({
        object: z.literal("embedding"),
        index: z.int(),
        embedding: z.union([z.array(z.number()), z.string()]),
      }),
    ),
    model: z.string(),
    usage: z.object({ prompt_tokens: z.int(), total_tokens: z.int() }),
  })
  .openapi("EmbeddingsResponse")

type Input = z.infer<typeof requestSchema>["input"]

export function addEmbeddings(app: App, root: ServerRoot): void {
  document(app, {
    method: "post",
    path: "/v1/embeddings",
    summary: "Vectors of texts",
    tags: ["OpenAI"],
    request: { body: jsonContent(requestSchema, "Texts") },
    responses: {
      200: jsonContent(responseSchema, "A vector each, in their order"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/v1/embeddings", async (c) => {
    const body = await readBody(c, requestSchema)
    const context = await useModel(root, c, body.model, { anyKind: true })
    const { tokenizer, model } = context
    const texts = inputsOf(body.input).map((one) => {
      if (typeof one === "string") return tokenizer.encode(one)
      checkIds(tokenizer, one, "input")
      return Int32Array.from(one)
    })
    checkTexts(context, texts, "input")
    const params = {
      pooling: body.pooling ?? defaultPooling(context),
      normalize: body.normalize !== false,
      ...(body.dimensions ? { dimensions: body.dimensions } : {}),
    }
    const works = texts.map((ids) => ({ ids, params }))
    const results = await poolTexts(context, c, works, "dimensions")
    const isText = body.encoding_format === "base64"
    const count = totalTokens(results)
    return c.json({
      object: "list",
      data: results.map(({ values }, index) => ({
        object: "embedding",
        index,
        embedding: isText ? base64Of(values) : [...values],
      })),
      model: model.name,
      usage: { prompt_tokens: count, total_tokens: count },
    })
  })
}

function inputsOf(input: Input): readonly (string | readonly number[])[] {
  if (typeof input === "string") return [input]
  return isIds(input) ? [input] : input
}

function isIds(
  input: readonly (string | number | readonly number[])[],
): input is readonly number[] {
  return typeof input[0] === "number"
}
