import { RequestError } from "../../errors.ts"
import type { ServerContext } from "../context.ts"
import { randomId } from "../ids.ts"
import { extraSampling, type SamplingRequest } from "../sampling.ts"
import { type AnswerFormat, jsonFormat } from "../tools/answer-grammar.ts"
import type { ChatRequest, CompletionRequest } from "./schema.ts"

/** Fields that every completion object has. */
export interface Envelope {
  readonly id: string
  readonly object: string
  readonly created: number
  readonly model: string
  readonly system_fingerprint: string
}

export function envelope(id: string, object: string, context: ServerContext): Envelope {
  const { model, client } = context
  return {
    id,
    object,
    created: Math.floor(Date.now() / 1000),
    model: model.name,
    // Answers with the same seed may differ when any of these does.
    system_fingerprint: `kt-${client.info.device}-${client.info.isa}-${client.info.precision}`,
  }
}

export function completionId(prefix: "chatcmpl" | "cmpl"): string {
  return `${prefix}-${randomId()}`
}

export function samplingOf(
  body: Omit<ChatRequest | CompletionRequest, "logprobs">,
  logprobs: number | undefined,
): SamplingRequest {
  return {
    temperature: body.temperature,
    topK: body.top_k,
    topP: body.top_p,
    minP: body.min_p,
    repetitionPenalty: body.repetition_penalty ?? body.repeat_penalty,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    logitBias: body.logit_bias,
    seed: body.seed,
    stopTokens: body.stop_token_ids,
    ignoreEos: body.ignore_eos,
    tellsProgress: body.stream === true && body.return_progress === true,
    logprobs,
    extra: extraSampling(body),
  }
}

/** What the content must match by response_format or one of its relatives; RequestError 400 where several are given. */
export function contentFormat(body: ChatRequest | CompletionRequest): AnswerFormat | undefined {
  const { response_format: response, grammar, json_schema: schema, structured_outputs: own } = body
  const found: AnswerFormat[] = []
  if (response?.type === "json_object")
    found.push(jsonFormat(response.schema ?? { type: "object" }))
  if (response?.type === "json_schema") found.push(jsonFormat(response.json_schema.schema))
  if (grammar) found.push({ type: "grammar", grammar })
  if (schema !== undefined && schema !== null) found.push(jsonFormat(schema))
  if (own?.json !== undefined && own.json !== null) found.push(jsonFormat(own.json))
  if (own?.regex) found.push({ type: "regex", pattern: own.regex })
  if (own?.grammar) found.push({ type: "grammar", grammar: own.grammar })
  if (own?.choice) {
    const elements = own.choice.map((value) => ({ type: "const_string" as const, value }))
    found.push({ type: "or", elements })
  }
  if (found.length > 1)
    throw new RequestError(400, "response_format: the output can match only one format", {
      code: "invalid_value",
      param: "response_format",
    })
  return found[0]
}
