import { createHash, timingSafeEqual } from "node:crypto"
import { isIP } from "node:net"
import { hostname } from "node:os"

import type { MiddlewareHandler } from "hono"

import { RequestError } from "../errors.ts"

/** Routes that answer without a key. */
const OPEN_PATHS = new Set(["/health", "/ready"])

/**
 * Asks for one of the keys as `Authorization: Bearer` or `x-api-key`; compared in constant time.
 */
export function requireKey(keys: readonly string[]): MiddlewareHandler {
  const digests = keys.map(digest)
  return async (c, next) => {
    if (digests.length > 0 && !OPEN_PATHS.has(c.req.path)) {
      const bearer = /^Bearer\s+(.+)$/i.exec(c.req.header("authorization") ?? "")?.[1]
      const given = bearer ?? c.req.header("x-api-key")
      if (given === undefined) {
        throw new RequestError(
          401,
          "an API key is required: send it as Authorization: Bearer KEY",
          {
            code: "invalid_api_key",
          },
        )
      }
      if (!matches(digests, digest(given))) {
        throw new RequestError(401, "the API key is not valid", { code: "invalid_api_key" })
      }
    }
    await next()
  }
}

/** Suffixes that the public DNS does not hand out. */
const LOCAL_SUFFIXES = ["", ".local", ".lan", ".internal", ".home.arpa"]

/**
 * Refuses requests that web pages of other origins send: browsers send "simple" cross-origin POSTs
 * without asking first, so CORS headers alone would let any page use a server on this machine. A
 * page of the server's own host passes only under an address or a local name, since any public name
 * can be made to point here (DNS rebinding).
 */
export function requireOrigin(allowed: readonly string[]): MiddlewareHandler {
  return async (c, next) => {
    const origin = c.req.header("origin")
    if (origin !== undefined && !isAllowed(origin, allowed)) {
      if (!isOwnPage(origin, c.req.header("host"))) {
        throw new RequestError(403, `the origin ${origin} may not use this server`, {
          code: "origin_not_allowed",
          hint: "allow it as a CORS origin, or set an API key",
        })
      }
    }
    await next()
  }
}

/** Whether the list has an origin; "*" is all, "localhost" this machine's at any port. */
export function isAllowed(origin: string, allowed: readonly string[]): boolean {
  if (allowed.includes("*") || allowed.includes(origin)) return true
  return (
    allowed.includes("localhost") &&
    /^https?:\/\/(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/.test(origin)
  )
}

function isOwnPage(origin: string, host: string | undefined): boolean {
  if (!URL.canParse(origin)) return false
  const url = new URL(origin)
  if (url.host !== host) return false
  const name = url.hostname.replace(/^\[|\]$/g, "")
  if (isIP(name) !== 0 || name === "localhost" || name.endsWith(".localhost")) return true
  return LOCAL_SUFFIXES.some((suffix) => name === hostname().toLowerCase() + suffix)
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest()
}

/** Looks at every key, so that the time tells nothing. */
function matches(digests: readonly Buffer[], given: Buffer): boolean {
  let found = false
  for (const key of digests) found = timingSafeEqual(key, given) || found
  return found
}
