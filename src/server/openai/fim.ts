import { z } from "@hono/zod-openapi"

import { openaiErrorBody } from "../api-error.ts"
import {
  aborting,
  type App,
  document,
  jsonContent,
  type RequestContext,
  type ServerContext,
  type ServerRoot,
  startGeneration,
  streamOptions,
  useModel,
} from "../context.ts"
import { fitTokens, type Generation } from "../generate.ts"
import { infillPrompt } from "../infill.ts"
import { readBody } from "../request.ts"
import { generateParams } from "../sampling.ts"
import { seedSchema, stopSchema, stopStrings } from "../schema.ts"
import { sseResponse } from "../stream.ts"
import { completionId, envelope } from "./common.ts"
import { type FinishedChoice, timingsOf, usageOf } from "./format.ts"
import { chatResponseSchema, errorSchema } from "./schema.ts"

const limits = z.int().min(1).nullish()

const requestSchema = z
  .looseObject({
    model: z.string().nullish(),
    prompt: z.string().openapi({ description: "The text before the hole" }),
    suffix: z.string().nullish().openapi({ description: "The text after it" }),
    max_tokens: limits,
    max_completion_tokens: limits,
    temperature: z.number().min(0).max(2).nullish(),
    top_p: z.number().gt(0).max(1).nullish(),
    presence_penalty: z.number().min(-2).max(2).nullish(),
    frequency_penalty: z.number().min(-2).max(2).nullish(),
    stop: stopSchema,
    seed: seedSchema,
    random_seed: seedSchema,
    stream: z.boolean().nullish(),
  })
  .openapi("FimRequest")

type FimRequest = z.infer<typeof requestSchema>

/** Mistral's route for editors: a text with a hole, answered in the shape of a chat. */
export function addFim(app: App, root: ServerRoot): void {
  document(app, {
    method: "post",
    path: "/v1/fim/completions",
    summary: "Fill the hole of a text, as Mistral's clients ask for it",
    tags: ["OpenAI"],
    request: { body: jsonContent(requestSchema, "What is before the hole and what after it") },
    responses: {
      200: jsonContent(chatResponseSchema, "The text, or with stream: true server-sent events"),
      "4XX": jsonContent(errorSchema, "Why the request is refused"),
    },
  })
  app.post("/v1/fim/completions", async (c) => {
    const body = await readBody(c, requestSchema)
    const context = await useModel(root, c, body.model)
    const generation = start(context, c, body)
    if (body.stream !== true) return c.json(await whole(context, generation))
    const options = streamOptions(context, c, openaiErrorBody, aborting(generation))
    return sseResponse(chunks(context, generation), options)
  })
}

function start(context: ServerContext, c: RequestContext, body: FimRequest): Generation {
  const { client, config, tokenizer } = context
  const asked = body.max_tokens ?? body.max_completion_tokens ?? config.defaults.maxTokens
  const ids = infillPrompt(context, {
    prefix: body.prompt,
    suffix: body.suffix ?? "",
    maxTokens: asked,
    param: "suffix",
  })
  const sampling = {
    temperature: body.temperature,
    topP: body.top_p,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    seed: body.seed ?? body.random_seed,
  }
  const fitting = fitTokens(client, ids.length, asked, "prompt")
  const params = generateParams(sampling, fitting, config.defaults, tokenizer)
  return startGeneration(context, c, [{ ids, params }], stopStrings(body.stop))
}

async function whole(context: ServerContext, generation: Generation): Promise<unknown> {
  let content = ""
  let finish_reason = "stop"
  const finished: FinishedChoice[] = []
  for await (const event of generation) {
    if (event.type === "text") content += event.text
    else {
      finish_reason = event.finishReason
      finished.push({ prompt: 0, usage: event.usage, timings: event.timings })
    }
  }
  const message = { role: "assistant", content }
  return {
    ...envelope(completionId("chatcmpl"), "chat.completion", context),
    choices: [{ index: 0, message, logprobs: null, finish_reason }],
    usage: usageOf(finished),
    timings: timingsOf(finished),
  }
}

async function* chunks(context: ServerContext, generation: Generation): AsyncGenerator<unknown> {
  const head = envelope(completionId("chatcmpl"), "chat.completion.chunk", context)
  const choice = (content: string, finish_reason: string | null): unknown => ({
    index: 0,
    delta: { role: "assistant", content },
    finish_reason,
  })
  for await (const event of generation) {
    if (event.type === "text") {
      yield { ...head, choices: [choice(event.text, null)] }
      continue
    }
    const finished = [{ prompt: 0, usage: event.usage, timings: event.timings }]
    const end = { usage: usageOf(finished), timings: timingsOf(finished) }
    yield { ...head, choices: [choice("", event.finishReason)], ...end }
  }
}
