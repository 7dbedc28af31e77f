import type { Context } from "hono"

import type { RequestError } from "../errors.ts"

/** OpenAI's error object; also what llama.cpp's and KTransformers' clients understand. */
export interface OpenAIErrorBody {
  readonly error: {
    readonly message: string
    readonly type: string
    readonly param: string | null
    readonly code: string | null
  }
}

export function openaiErrorBody(error: RequestError): OpenAIErrorBody {
  return {
    error: {
      message: sentence(error),
      type: errorType(error.status),
      param: error.param ?? null,
      code: error.code ?? null,
    },
  }
}

export function ollamaErrorBody(error: RequestError): { readonly error: string } {
  return { error: sentence(error) }
}

/** Anthropic's error object. */
export function anthropicErrorBody(error: RequestError): unknown {
  const types: Readonly<Record<number, string>> = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
  }
  const type = types[error.status] ?? (error.status >= 500 ? "api_error" : "invalid_request_error")
  return { type: "error", error: { type, message: sentence(error) } }
}

/** The error as a response in the shape of the API that the path belongs to. */
export function errorResponse(c: Context, error: RequestError): Response {
  const ollama = c.req.path.startsWith("/api/")
  const headers: Record<string, string> = {}
  if (error.retryAfterSeconds !== undefined) {
    headers["retry-after"] = String(error.retryAfterSeconds)
  }
  if (error.status === 401) headers["www-authenticate"] = "Bearer"
  const anthropic = c.req.path.startsWith("/v1/messages")
  const body = ollama
    ? ollamaErrorBody(error)
    : anthropic
      ? anthropicErrorBody(error)
      : openaiErrorBody(error)
  return Response.json(body, { status: error.status, headers })
}

function sentence(error: RequestError): string {
  return error.hint === undefined ? error.message : `${error.message} (${error.hint})`
}

function errorType(status: number): string {
  if (status === 401) return "authentication_error"
  if (status === 403) return "permission_error"
  if (status === 429) return "rate_limit_error"
  if (status === 503) return "unavailable_error"
  return status >= 500 ? "server_error" : "invalid_request_error"
}
