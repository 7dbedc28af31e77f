import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import {
  type App,
  document,
  jsonContent,
  type RequestContext,
  type ServerRoot,
  useModel,
} from "../context.ts"
import { checkTexts, defaultPooling, MAX_TEXTS, poolTexts } from "../embed.ts"
import { errorSchema } from "../openai/schema.ts"
import { readBody } from "../request.ts"
import { idsOf } from "./tokens.ts"

const token = z.int().min(0)
/** Text, tokens, or both in turns. */
const mixed = z.union([z.string(), z.array(z.union([z.string(), token])).min(1)])
const texts = z.union([
  z.string(),
  z
    .array(z.union([mixed, token]))
    .min(1)
    .max(1_000_000),
])

const requestSchema = z
  .looseObject({
    model: z.string().nullish(),
    content: texts.nullish(),
    input: texts.nullish().openapi({ description: "Another name of content" }),
    embd_normalize: z
      .union([z.literal(-1), z.literal(2)])
      .nullish()
      .openapi({ description: "2: vectors of length 1 (the default); -1: as they are" }),
    pooling: z.enum(["mean", "cls", "last", "none"]).nullish().openapi({
      description: "Extension; none gives every token's vector, by default as the checkpoint says",
    }),
  })
  .openapi("LlamaEmbeddingRequest")

const responseSchema = z
  .array(z.object({ index: z.int(), embedding: z.array(z.array(z.number())) }))
  .openapi("LlamaEmbeddingResponse")

/** /embedding and /embeddings: llama.cpp's own, which are two names of one. */
export function addEmbedding(app: App, root: ServerRoot): void {
  for (const path of ["/embedding", "/embeddings"]) {
    document(app, {
      method: "post",
      path,
      summary: "Vectors of texts, or of their tokens",
      tags: ["llama.cpp"],
      request: { body: jsonContent(requestSchema, "Texts") },
      responses: {
        200: jsonContent(responseSchema, "Lists of vectors: one each, or one a token"),
        "4XX": jsonContent(errorSchema, "Why the request is refused"),
      },
    })
    app.post(path, (c) => answer(root, c))
  }
}

async function answer(root: ServerRoot, c: RequestContext): Promise<Response> {
  const body = await readBody(c, requestSchema)
  const given = body.content ?? body.input
  if (given === undefined || given === null)
    throw new RequestError(400, "content: this field is required", {
      code: "invalid_value",
      param: "content",
    })
  const context = await useModel(root, c, body.model, { anyKind: true })
  const flags = { addSpecial: true, parseSpecial: true }
  const ids = promptsOf(given).map((one) => idsOf(context.tokenizer, one, "content", flags))
  checkTexts(context, ids, "content")
  const params = {
    pooling: body.pooling ?? defaultPooling(context),
    normalize: body.embd_normalize !== -1,
  }
  const works = ids.map((one) => ({ ids: one, params }))
  const results = await poolTexts(context, c, works, "content")
  return c.json(
    results.map(({ values, promptTokens }, index) => {
      const dim = params.pooling === "none" ? values.length / promptTokens : values.length
      const embedding = Array.from({ length: values.length / dim }, (_, i) => [
        ...values.subarray(i * dim, (i + 1) * dim),
      ])
      return { index, embedding }
    }),
  )
}

type Mixed = z.infer<typeof mixed>

/** A list with a number in it is one text of tokens (and pieces of text); otherwise each entry is a text. */
function promptsOf(given: z.infer<typeof texts>): Mixed[] {
  if (typeof given === "string") return [given]
  if (given.some((one) => typeof one === "number"))
    return [given.filter((one) => typeof one === "string" || typeof one === "number")]
  if (given.length > MAX_TEXTS)
    throw new RequestError(400, `content: ${given.length} texts, at most ${MAX_TEXTS}`, {
      code: "invalid_value",
      param: "content",
    })
  return given.filter((one) => typeof one !== "number")
}
