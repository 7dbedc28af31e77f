import { getPath } from "hono/utils/url"

/** llama.cpp's other names of routes. Its /completions and /embeddings are not OpenAI's, which begin with /v1. */
const ALIASES: ReadonlyMap<string, string> = new Map([
  ["/models", "/v1/models"],
  ["/chat/completions", "/v1/chat/completions"],
  ["/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"],
  ["/completions", "/completion"],
  ["/embeddings", "/embedding"],
  ["/responses", "/v1/responses"],
  ["/v1/health", "/health"],
])

/** The path by which a request is routed. */
export function routedPath(request: Request): string {
  const path = getPath(request)
  return ALIASES.get(path) ?? path
}
