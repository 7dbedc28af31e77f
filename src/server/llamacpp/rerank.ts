import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import {
  type App,
  document,
  jsonContent,
  type RequestContext,
  type ServerContext,
  type ServerRoot,
  useModel,
} from "../context.ts"
import { checkTexts, MAX_TEXTS, poolTexts, type PoolWork, totalTokens } from "../embed.ts"
import { randomId } from "../ids.ts"
import { errorSchema } from "../openai/schema.ts"
import { readBody } from "../request.ts"
import { accepted } from "../schema.ts"

const document_ = z.union([z.string(), z.looseObject({ text: z.string() })])
const list = z.array(document_).min(1).max(MAX_TEXTS)

const requestSchema = z
  .looseObject({
    model: z.string().nullish(),
    query: z.string().min(1),
    documents: list.nullish(),
    texts: list.nullish().openapi({ description: "TEI's name of documents, answered in its form" }),
    top_n: z.int().min(1).nullish().openapi({ description: "Only the best so many" }),
    return_documents: z.boolean().nullish(),
    return_text: z.boolean().nullish().openapi({ description: "TEI's return_documents" }),
    max_tokens_per_doc: accepted("documents are never cut"),
  })
  .openapi("RerankRequest")

const documentsSchema = z.object({
  id: z.string(),
  object: z.literal("list"),
  model: z.string(),
  results: z.array(
    z.object({
      index: z.int(),
      relevance_score: z.number(),
      document: z.object({ text: z.string() }).optional(),
    }),
  ),
  usage: z.object({ prompt_tokens: z.int(), total_tokens: z.int() }),
})
const textsSchema = z.array(
  z.object({ index: z.int(), score: z.number(), text: z.string().optional() }),
)
const responseSchema = z.union([documentsSchema, textsSchema]).openapi("RerankResponse")

/** Names under which Jina's, Cohere's, TEI's and llama.cpp's clients ask. */
const PATHS = ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/v2/rerank"]

export function addRerank(app: App, root: ServerRoot): void {
  for (const path of PATHS) {
    document(app, {
      method: "post",
      path,
      summary: "Texts by how well they answer a query",
      tags: ["llama.cpp"],
      request: { body: jsonContent(requestSchema, "A query and texts") },
      responses: {
        200: jsonContent(responseSchema, "The best first"),
        "4XX": jsonContent(errorSchema, "Why the request is refused"),
      },
    })
    app.post(path, (c) => answer(root, c))
  }
}

async function answer(root: ServerRoot, c: RequestContext): Promise<Response> {
  const body = await readBody(c, requestSchema)
  const given = body.documents ?? body.texts
  if (given === undefined || given === null)
    throw new RequestError(400, "documents: this field is required", {
      code: "invalid_value",
      param: "documents",
    })
  const context = await useModel(root, c, body.model, { anyKind: true })
  const texts = given.map((one) => (typeof one === "string" ? one : one.text))
  const work = rankerOf(context)
  const works = texts.map((text) => work(body.query, text))
  const ids = works.map((one) => one.ids)
  checkTexts(context, ids, "documents")
  const results = await poolTexts(context, c, works, "documents")
  const ranked = results
    .map(({ values }, index) => ({ index, score: values[0] as number }))
    .toSorted((a, b) => b.score - a.score || a.index - b.index)
    .slice(0, body.top_n ?? undefined)
  if (!body.documents) {
    const withText = body.return_text === true
    return c.json(
      ranked.map((one) => ({ ...one, ...(withText ? { text: texts[one.index] } : {}) })),
    )
  }
  const count = totalTokens(results)
  return c.json({
    id: `rerank-${randomId()}`,
    object: "list",
    model: context.model.name,
    results: ranked.map(({ index, score }) => ({
      index,
      relevance_score: score,
      ...(body.return_documents === true ? { document: { text: texts[index] } } : {}),
    })),
    usage: { prompt_tokens: count, total_tokens: count },
  })
}

/** Qwen3-Reranker's prompt, from its model card; converted files bring it along. */
const QWEN3_PROMPT = `<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

`

/** How the model is shown a query and a text. RequestError 400 where it was not made to compare them. */
function rankerOf(context: ServerContext): (query: string, text: string) => PoolWork {
  const { tokenizer, client, model } = context
  const { info } = client
  const { hasClassifier = false, generates = true } = info.pooling ?? {}
  if (hasClassifier && info.architecture === "bert") {
    return (query, text) => {
      const { ids, secondFrom } = tokenizer.encodePair(query, text)
      return { ids, params: { pooling: "rank", normalize: false, secondFrom } }
    }
  }
  const yes = tokenizer.tokenId("yes")
  const no = tokenizer.tokenId("no")
  const isNamed = /rerank/i.test(model.name) || /rerank/i.test(info.modelPath)
  const isMade = hasClassifier || tokenizer.rerankTemplate !== undefined || (generates && isNamed)
  if (!isMade || (!hasClassifier && (yes === undefined || no === undefined)))
    throw new RequestError(400, `model "${model.name}" is no reranker`, {
      code: "unsupported_model",
      param: "model",
      hint: "a BERT with a classification head and Qwen3-Reranker are",
    })
  const template = tokenizer.rerankTemplate ?? QWEN3_PROMPT
  const verdict = hasClassifier ? {} : { verdict: [yes as number, no as number] as const }
  return (query, text) => {
    const parts: Readonly<Record<string, string>> = { "{query}": query, "{document}": text }
    const prompt = template.replace(/\{query\}|\{document\}/g, (key) => parts[key] ?? key)
    const ids = tokenizer.encode(prompt, { addSpecial: false, parseSpecial: true })
    return { ids, params: { pooling: "rank", normalize: false, ...verdict } }
  }
}
