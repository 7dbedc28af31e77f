import type { ServerContext } from "../context.ts"
import type { SamplingRequest } from "../sampling.ts"
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
  return `${prefix}-${crypto.randomUUID().replaceAll("-", "")}`
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
    logprobs,
  }
}
