import type { z } from "@hono/zod-openapi"

import { RequestError } from "../errors.ts"
import type { RequestContext } from "./context.ts"

type Issue = z.core.$ZodIssue

/** Longest piece of a wrong value that an error message repeats. */
const MAX_SHOWN = 60

/**
 * The JSON body, checked by the schema. Any content type is read, as Ollama's clients and plain
 * `curl -d` send others. RequestError 400 names the first wrong field and its value.
 */
export async function readBody<T>(c: RequestContext, schema: z.ZodType<T>): Promise<T> {
  const text = await c.req.text()
  // there is no environment where no listener is
  c.env?.keepOpen?.()
  let body: unknown
  try {
    body = JSON.parse(text)
  } catch (error) {
    const reason = text.trim() === "" ? "it is empty" : (error as Error).message
    throw new RequestError(400, `the request body is not JSON: ${reason}`, {
      code: "invalid_json",
      cause: error,
    })
  }
  const result = schema.safeParse(body)
  if (result.success) return result.data
  const issue = deepest(result.error.issues, body)
  const path = fieldName(issue)
  throw new RequestError(400, describe(issue, path, body), {
    code: codeOf(issue),
    ...(path === "" ? {} : { param: path }),
  })
}

function codeOf(issue: Issue): string {
  if (issue.code === "unrecognized_keys") return "unknown_field"
  const given: unknown = issue.code === "custom" ? issue.params?.["code"] : undefined
  return typeof given === "string" ? given : "invalid_value"
}

/** A union's own message says nothing; the branch that got furthest does. */
function deepest(issues: readonly Issue[], body: unknown): Issue {
  const first = issues[0]
  if (first === undefined) throw new RangeError("no issue")
  if (first.code !== "invalid_union") return first
  if (valueAt(body, first.path) === undefined) {
    return { code: "custom", path: first.path, message: "this field is required", input: undefined }
  }
  const inner = first.errors
    .map((branch) => branch[0])
    .filter((issue) => issue !== undefined)
    .map((issue) => ({ ...issue, path: [...first.path, ...issue.path] }) as Issue)
  const reached = (issue: Issue): number =>
    issue.path.length * 2 + (issue.code === "invalid_type" ? 0 : 1)
  const best = inner.reduce<Issue | undefined>(
    (a, b) => (a === undefined || reached(b) > reached(a) ? b : a),
    undefined,
  )
  if (best === undefined) return first
  // Nothing matched at the top: name all types that would have.
  if (best.code === "invalid_type" && best.path.length === first.path.length) {
    const types = inner.map((issue) => (issue.code === "invalid_type" ? issue.expected : ""))
    const expected = [...new Set(types.filter((type) => type !== ""))].map(withArticle).join(" or ")
    return { code: "custom", path: first.path, message: `expected ${expected}`, input: undefined }
  }
  return best
}

function fieldName(issue: Issue): string {
  const path =
    issue.code === "unrecognized_keys" ? [...issue.path, issue.keys[0] ?? ""] : issue.path
  return path.reduce<string>(
    (name, key) =>
      typeof key === "number"
        ? `${name}[${key}]`
        : name === ""
          ? String(key)
          : `${name}.${String(key)}`,
    "",
  )
}

function describe(issue: Issue, path: string, body: unknown): string {
  const where = path === "" ? "the request body" : path
  if (issue.code === "unrecognized_keys") return `${where}: this field is not known here`
  const value = valueAt(body, issue.path)
  if (value !== undefined) return `${where} ${shown(value)}: ${expectation(issue)}`
  return `${where}: ${issue.code === "invalid_type" ? "this field is required" : issue.message}`
}

function valueAt(body: unknown, path: readonly PropertyKey[]): unknown {
  let value = body
  for (const key of path) value = (value as Record<PropertyKey, unknown> | undefined)?.[key]
  return value
}

function expectation(issue: Issue): string {
  switch (issue.code) {
    case "invalid_type":
      return `expected ${withArticle(issue.expected)}`
    case "too_small": {
      const relation = issue.inclusive === false ? "more than" : "at least"
      return `must ${size(issue.origin, relation, Number(issue.minimum))}`
    }
    case "too_big": {
      const relation = issue.inclusive === false ? "less than" : "at most"
      return `must ${size(issue.origin, relation, Number(issue.maximum))}`
    }
    case "invalid_value":
      return `expected ${issue.values.map((value) => JSON.stringify(value)).join(" or ")}`
    case "invalid_key":
      return issue.issues[0]?.message ?? issue.message
    default:
      return issue.message
  }
}

function size(origin: string, relation: string, limit: number): string {
  const unit = origin === "string" ? "character" : origin === "array" ? "item" : undefined
  if (unit === undefined) return `be ${relation} ${limit}`
  return `have ${relation} ${limit} ${unit}${limit === 1 ? "" : "s"}`
}

function withArticle(type: string): string {
  const name = type === "int" ? "integer" : type === "record" ? "object" : type
  return `${/^[aeiou]/.test(name) ? "an" : "a"} ${name}`
}

function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value)
  return text.length <= MAX_SHOWN ? text : `${text.slice(0, MAX_SHOWN)}…`
}
