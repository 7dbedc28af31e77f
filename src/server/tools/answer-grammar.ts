import type { StructuralTagFormat, TagFormat } from "@mlc-ai/web-xgrammar"

import type { ReasoningFormat, ToolCallFormat } from "../../tokenizer/chat-formats.ts"
import type { ToolParameters } from "./answer.ts"
import { XML_MARKUP } from "./xml-arguments.ts"

/** What an answer has to be: a structural tag of xgrammar without its envelope. */
export type AnswerFormat = StructuralTagFormat

/** As GenerateParams has it. */
export function grammarText(format: AnswerFormat): string {
  return JSON.stringify({ type: "structural_tag", format })
}

/** JSON by a schema; `true` for any value. */
export function jsonFormat(schema: boolean | Record<string, unknown>): AnswerFormat {
  return { type: "json_schema", json_schema: typeof schema === "boolean" ? schema : modern(schema) }
}

/** Keywords whose value is data, in which nothing is a schema. */
const DATA: ReadonlySet<string> = new Set(["const", "default", "enum", "examples"])

/** Lists in `items`, as drafts before 2020-12 have tuples, become `prefixItems`, which xgrammar knows. */
function modern<T>(schema: T): T {
  if (Array.isArray(schema)) return schema.map(modern) as T
  if (typeof schema !== "object" || schema === null) return schema
  const out: Record<string, unknown> = {}
  for (const [key, value] of Object.entries(schema))
    out[key] = DATA.has(key) ? value : modern(value as unknown)
  const { items, additionalItems } = out
  // a property may be called items too: its value is a schema and no list
  if (!Array.isArray(items)) return out as T
  delete out["items"]
  delete out["additionalItems"]
  out["prefixItems"] = items
  if (additionalItems !== undefined) out["items"] = additionalItems
  return out as T
}

/**
 * Reasoning first, free, and then what the format says. `at`: "open" where the prompt has begun it, "closed" where it is
 * over, "none" where the answer may begin it.
 */
export function afterReasoning(
  format: AnswerFormat,
  reasoning: ReasoningFormat | undefined,
  at: "open" | "closed" | "none",
): AnswerFormat {
  if (reasoning === undefined || at === "closed") return format
  const thinking = (begin: string): AnswerFormat => ({
    type: "sequence",
    elements: [
      { type: "tag", begin, content: { type: "any_text" }, end: reasoning.close },
      { type: "regex", pattern: "\\n{0,2}" },
      format,
    ],
  })
  if (at === "open") return thinking("")
  return { type: "or", elements: [format, thinking(reasoning.open.trimEnd())] }
}

/** One call of one of these tools, and nothing else. */
export function oneCall(format: ToolCallFormat, tools: ToolParameters): AnswerFormat {
  const calls = [...tools].map(([name, schema]) => callTag(format, name, schema))
  const [only] = calls
  return only !== undefined && calls.length === 1 ? only : { type: "or", elements: calls }
}

/** Text, in which calls, once begun, have the arguments of their schemas; undefined where a format's calls have no mark. */
export function callsInText(
  format: ToolCallFormat,
  tools: ToolParameters,
): AnswerFormat | undefined {
  const trigger = format.section?.open ?? format.open
  const tags = [...tools].map(([name, schema]) => callTag(format, name, schema))
  if (trigger === "" || !tags.every(({ begin }) => begin.startsWith(trigger))) return undefined
  return { type: "triggered_tags", triggers: [trigger], tags }
}

/** The format's example with this name and these arguments. */
function callTag(
  format: ToolCallFormat,
  name: string,
  schema: Readonly<Record<string, unknown>>,
): TagFormat {
  const markup = XML_MARKUP[format.name]
  const [before, after] = markup === undefined ? around(format.example) : aroundElements(format)
  const begin = before.replace(/(?<![A-Za-z])f(?![A-Za-z])/, () => name)
  return { type: "tag", begin, content: argumentsFormat(format, schema), end: after }
}

function around(example: string): [before: string, after: string] {
  for (const args of ['{"a": 1}', "{a:1}", "a=1"]) {
    const at = example.indexOf(args)
    if (at >= 0) return [example.slice(0, at), example.slice(at + args.length)]
  }
  throw new RangeError(`no arguments in ${example}`)
}

function aroundElements({ name, example }: ToolCallFormat): [before: string, after: string] {
  const element = XML_MARKUP[name]?.example ?? ""
  const at = example.indexOf(element)
  if (at < 0) throw new RangeError(`no argument in ${example}`)
  return [example.slice(0, at), example.slice(at + element.length)]
}

function argumentsFormat(
  format: ToolCallFormat,
  schema: Readonly<Record<string, unknown>>,
): AnswerFormat {
  const object = { ...schema, type: "object" }
  if (format.arguments === "json") return jsonFormat(object)
  const properties = (schema["properties"] ?? {}) as Record<string, Record<string, unknown>>
  const required = Array.isArray(schema["required"])
    ? (schema["required"] as unknown[])
    : Object.keys(properties)
  const shared = schema["$defs"] === undefined ? {} : { $defs: schema["$defs"] }
  // arguments that may be left out are left out: a model that is made to call needs no more
  const names = Object.keys(properties).filter((name) => required.includes(name))
  const markup = XML_MARKUP[format.name]
  const elements = names.flatMap((name, i): AnswerFormat[] => {
    const value: Record<string, unknown> = { ...properties[name], ...shared }
    const json = jsonFormat(value)
    if (markup === undefined) {
      const sign = format.arguments === "gemma" ? ":" : "="
      return [{ type: "const_string", value: `${i > 0 ? "," : ""}${name}${sign}` }, json]
    }
    const [open, close] = markup.example
      .replace(/(?<![A-Za-z])a(?![A-Za-z])/g, () => name)
      .split("1")
    const isText = value["type"] === "string" && value["enum"] === undefined
    const begin = isText ? (open ?? "").replace('string="false"', 'string="true"') : (open ?? "")
    const end = close ?? ""
    const content: AnswerFormat = isText ? { type: "any_text" } : enumOr(value, json)
    return [{ type: "tag", begin, content, end }]
  })
  if (format.arguments === "gemma")
    return { type: "sequence", elements: [text("{"), ...elements, text("}")] }
  if (elements.length === 0) return { type: "regex", pattern: "" }
  return { type: "sequence", elements }
}

/** Between tags the strings of an enum have no quotation marks. */
function enumOr(value: Record<string, unknown>, json: AnswerFormat): AnswerFormat {
  const { enum: values } = value
  if (!Array.isArray(values) || !values.every((one) => typeof one === "string")) return json
  return { type: "or", elements: values.map((one) => text(one as string)) }
}

function text(value: string): AnswerFormat {
  return { type: "const_string", value }
}
