import { z } from "@hono/zod-openapi"

import { RequestError } from "../../errors.ts"
import { ollamaErrorBody } from "../api-error.ts"
import {
  type App,
  document,
  jsonContent,
  type RequestContext,
  type ServerRoot,
  streamOptions,
} from "../context.ts"
import type { ModelStore, NewModel, OnProgress, Progress } from "../models/store.ts"
import { readBody } from "../request.ts"
import { ndjsonResponse } from "../stream.ts"
import {
  copyRequestSchema,
  createRequestSchema,
  errorSchema,
  progressSchema,
  pullRequestSchema,
} from "./manage-schema.ts"
import { modelField } from "./models.ts"

/** Making, bringing and deleting models, as Ollama's clients ask for it. */
export function addOllamaManagement(app: App, root: ServerRoot): void {
  const { models } = root
  const wrong = { "4XX": jsonContent(errorSchema, "Why the request is refused") }
  const tags = ["Ollama"]
  const steps = {
    200: jsonContent(progressSchema, "Lines of JSON, or with stream: false the last one"),
    ...wrong,
  }

  document(app, {
    method: "post",
    path: "/api/create",
    summary: "Make a model of another one, or of files sent to /api/blobs",
    tags,
    request: { body: jsonContent(createRequestSchema, "A Modelfile's fields") },
    responses: steps,
  })
  app.post("/api/create", async (c) => {
    const body = await readBody(c, createRequestSchema)
    const store = storeOf(root)
    const { from, files, system, template, parameters, messages, license, quantize } = body
    const model: NewModel = {
      name: modelField(body),
      from: from ? models.find(from) : undefined,
      files: files ?? undefined,
      system: system || undefined,
      template: template || undefined,
      parameters: withoutNulls(parameters ?? undefined),
      messages: messages?.map(({ role, content }) => ({ role, content: content ?? "" })),
      license: typeof license === "string" ? [license] : (license ?? undefined),
      quantize: quantize || undefined,
    }
    store.checkNew(model)
    return progressResponse(root, c, body.stream, async (tell) => {
      await store.create(model, tell)
      models.changed()
    })
  })

  document(app, {
    method: "post",
    path: "/api/pull",
    summary: "Bring a model from Hugging Face's hub: hf.co/user/repo:quantisation",
    tags,
    request: { body: jsonContent(pullRequestSchema, "Which model") },
    responses: steps,
  })
  app.post("/api/pull", async (c) => {
    const body = await readBody(c, pullRequestSchema)
    const store = storeOf(root)
    const name = modelField(body)
    store.checkPull(name)
    return progressResponse(root, c, body.stream, async (tell, signal) => {
      await store.pull(name, tell, signal)
      models.changed()
    })
  })

  document(app, {
    method: "post",
    path: "/api/push",
    summary: "Refused: models are not sent anywhere",
    tags,
    request: { body: jsonContent(pullRequestSchema, "Which model") },
    responses: wrong,
  })
  app.post("/api/push", async (c) => {
    const name = modelField(await readBody(c, pullRequestSchema))
    throw new RequestError(
      400,
      `model ${JSON.stringify(name.slice(0, 120))}: this server sends models nowhere; the hub's own tools upload files`,
      { code: "unsupported", param: "model" },
    )
  })

  document(app, {
    method: "post",
    path: "/api/copy",
    summary: "Give a model another name",
    tags,
    request: { body: jsonContent(copyRequestSchema, "From and to") },
    responses: { 200: { description: "Done" }, ...wrong },
  })
  app.post("/api/copy", async (c) => {
    const { source, destination } = await readBody(c, copyRequestSchema)
    await storeOf(root).copy(models.find(source), destination)
    models.changed()
    return c.body(null, 200)
  })

  document(app, {
    method: "delete",
    path: "/api/delete",
    summary: "Delete a model that was created or pulled here",
    tags,
    request: { body: jsonContent(pullRequestSchema, "Which model") },
    responses: { 200: { description: "It is gone" }, ...wrong },
  })
  app.delete("/api/delete", async (c) => {
    const model = models.find(modelField(await readBody(c, pullRequestSchema)))
    const store = storeOf(root)
    if (!store.isOurs(model))
      throw new RequestError(
        403,
        `model "${model.name}" was neither pulled nor created here, so its file is not deleted`,
        { code: "model_not_ours", param: "model" },
      )
    // models that share its weights go on with them
    const isShared = models.library
      .list()
      .some((one) => one.key === model.key && one.name !== model.name)
    await store.remove(model)
    models.changed()
    if (!isShared) await models.unload(model)
    return c.body(null, 200)
  })

  const blobParams = { params: z.object({ digest: z.string() }) }
  document(app, {
    method: "get",
    path: "/api/blobs/{digest}",
    summary: "Whether a file is here; HEAD is what clients ask with",
    tags,
    request: blobParams,
    responses: { 200: { description: "It is" }, 404: { description: "It is not" } },
  })
  document(app, {
    method: "post",
    path: "/api/blobs/{digest}",
    summary: "Send a file for /api/create, under the SHA-256 of its bytes",
    tags,
    request: blobParams,
    responses: { 201: { description: "It is here" }, ...wrong },
  })
  app.get("/api/blobs/:digest", async (c) => {
    const isHere = await storeOf(root).hasBlob(c.req.param("digest"))
    return c.body(null, isHere ? 200 : 404)
  })
  app.post("/api/blobs/:digest", async (c) => {
    await storeOf(root).putBlob(c.req.param("digest"), c.req.raw.body)
    return c.body(null, 201)
  })
}

/** RequestError 400 where this server has the model it was started with and no other. */
function storeOf({ models }: ServerRoot): ModelStore {
  const { store } = models.library
  if (store !== undefined) return store
  throw new RequestError(400, "this server has no folder for models", { code: "unsupported" })
}

function withoutNulls(
  values: Readonly<Record<string, unknown>> | undefined,
): Record<string, unknown> | undefined {
  if (values === undefined) return undefined
  return Object.fromEntries(
    Object.entries(values).filter(([, value]) => value !== null && value !== undefined),
  )
}

/** Does the work and tells of it: as lines while it goes on, or with stream: false when it is done. */
async function progressResponse(
  root: ServerRoot,
  c: RequestContext,
  stream: boolean | null | undefined,
  work: (tell: OnProgress, signal: AbortSignal) => Promise<void>,
): Promise<Response> {
  if (stream === false) {
    await work(() => {}, c.req.raw.signal)
    return c.json({ status: "success" })
  }
  const gone = new AbortController()
  const signal = AbortSignal.any([gone.signal, c.req.raw.signal, root.workload.signal])
  const options = streamOptions(root, c, ollamaErrorBody, () => gone.abort())
  return ndjsonResponse(told(work, signal), options)
}

/** What the work tells, with the newest line in place of those that nobody has read. */
async function* told(
  work: (tell: OnProgress, signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): AsyncGenerator<Progress> {
  const lines = new Map<string, Progress>()
  let wake = (): void => {}
  let ended = false
  const done = work((progress) => {
    lines.set(progress.status, progress)
    wake()
  }, signal).finally(() => {
    ended = true
    wake()
  })
  done.catch(() => {})
  for (;;) {
    const [first] = lines
    if (first !== undefined) {
      lines.delete(first[0])
      yield first[1]
    } else if (ended) break
    else await new Promise<void>((resolve) => (wake = resolve))
  }
  await done
  yield { status: "success" }
}
