import type { ToolCallFormat } from "../../tokenizer/chat-formats.ts"
import { type CallBody, closeAfter, type PartialCall, type ToolParameters } from "./answer.ts"
import { readGemma, readPython } from "./literals.ts"
import { objectEntries, valueEnd } from "./partial-json.ts"
import { readXml, XML_MARKUP } from "./xml-arguments.ts"

export interface CallReader {
  /** The calls in a body that began after the format's opening marker; `isEnd` when nothing follows. */
  read(body: string, isEnd: boolean): CallBody
  /** For formats without an opening marker: is this text a call (undefined: cannot be told yet)? */
  readonly wholeAnswer?: (text: string) => boolean | undefined
}

/** What comes between a call's opening marker and its JSON arguments; groups `name` and `id`. */
const HEADS: Readonly<Record<string, RegExp>> = {
  "kimi-k2":
    /^\s*(?<id>(?:functions\.)?(?<name>[\w.-]+?)(?::\d+)?)\s*<\|tool_call_argument_begin\|>\s*/,
  "deepseek-v3": /^\s*function<｜tool▁sep｜>(?<name>[^\n`{]+)\s*```(?:json)?\s*/,
  "deepseek-v3.1": /^\s*(?<name>[^<{]+)<｜tool▁sep｜>\s*/,
  "mistral-args": /^\s*(?<name>[^\s[{]+)\s*(?:\[CALL_ID\](?<id>[^[]+))?\[ARGS\]\s*/,
  "functionary-v3.2": /^(?!all\n)(?<name>[\w.-]+)\n\s*/,
  "functionary-v3.1": /^(?<name>[\w.-]+)>\s*/,
  solar: /^(?<id>[^<]*)<\|tool_call:name\|>(?<name>[^<]+)<\|tool_call:args\|>\s*/,
}

/** Characters after which text without a name is no call, in formats whose calls have no closing marker. */
const MAX_HEAD_LENGTH = 256

export function callReader(format: ToolCallFormat, tools: ToolParameters): CallReader {
  switch (format.arguments) {
    case "xml": {
      const markup = XML_MARKUP[format.name]
      if (markup === undefined) throw new RangeError(`no markup for ${format.name}`)
      return { read: (body, isEnd) => readXml(body, isEnd, format.close, markup, tools) }
    }
    case "gemma":
      return { read: (body, isEnd) => readGemma(body, isEnd, format.close) }
    case "python":
      return {
        read: (body, isEnd) => readPython(body, isEnd, format.close),
        ...(format.open === "" ? { wholeAnswer: (text) => startsPython(text, tools) } : {}),
      }
    case "json": {
      const head = HEADS[format.name]
      if (head !== undefined)
        return { read: (body, isEnd) => readNamed(body, isEnd, format.close, head) }
      return {
        read: (body, isEnd) => readObjects(body, isEnd, format.close),
        ...(format.open === "" ? { wholeAnswer: (text) => startsObject(text, tools) } : {}),
      }
    }
  }
}

/** `f{"a": 1}` with the format's own signs between name and arguments. */
function readNamed(body: string, isEnd: boolean, close: string, head: RegExp): CallBody {
  const match = head.exec(body)
  if (match === null) {
    const waits = close === "" && !isEnd && body.length < MAX_HEAD_LENGTH
    return { calls: [], end: waits ? -1 : closeAfter(body, 0, close, isEnd) }
  }
  const { name = "", id } = match.groups ?? {}
  const start = match[0].length
  const end = valueEnd(body, start)
  const call = {
    name: name.trim(),
    id: id?.trim() || undefined,
    arguments: body.slice(start, end < 0 ? undefined : end),
  }
  if (end >= 0) return { calls: [call], end: closeAfter(body, end, close, isEnd) }
  const isJson = body.slice(start).trimStart().startsWith("{")
  if (isJson || body.slice(start).trim() === "")
    return { calls: [call], end: isEnd ? body.length : -1 }
  return { calls: [{ ...call, arguments: "" }], end: closeAfter(body, start, close, isEnd) }
}

const NAME_KEYS = ["name", "tool_name", "function"]
const ARGUMENT_KEYS = ["arguments", "parameters", "args"]

/** One object with name and arguments, a list of such, or several after each other. */
function readObjects(body: string, isEnd: boolean, close: string): CallBody {
  const calls: PartialCall[] = []
  let position = skip(body, 0, /[\s[]/)
  while (body[position] === "{") {
    const end = valueEnd(body, position)
    const call = objectCall(body, position, end)
    if (call !== undefined) calls.push(call)
    if (end < 0) return { calls, end: isEnd ? body.length : -1 }
    position = skip(body, end, /[\s,;]/)
    if (position >= body.length && close === "" && body.trimStart().startsWith("["))
      return { calls, end: isEnd ? body.length : -1 }
  }
  if (body[position] === "]") position++
  if (position >= body.length && calls.length === 0) return { calls, end: isEnd ? body.length : -1 }
  return { calls, end: closeAfter(body, position, close, isEnd) }
}

function objectCall(body: string, start: number, end: number): PartialCall | undefined {
  const entries = objectEntries(body, start)
  let named = entries.find(({ key, end: e }) => NAME_KEYS.includes(key) && e >= 0)
  const args = entries.find(({ key }) => ARGUMENT_KEYS.includes(key))
  const only = entries[0]
  if (named === undefined && args === undefined && only !== undefined && body[only.start] === "{") {
    // Apertus writes {"f": {"a": 1}}
    return { name: only.key, id: undefined, arguments: slice(body, only) }
  }
  let name = named === undefined ? undefined : parsed(slice(body, named))
  if (typeof name === "object" && name !== null) name = (name as { name?: unknown }).name
  const text = args === undefined ? (end < 0 ? "" : "{}") : argumentText(body, args)
  // an id after the arguments comes too late for a call that is passed on as it comes
  const before = args === undefined ? entries : entries.slice(0, entries.indexOf(args))
  const id = before.find(({ key, end: e }) => (key === "id" || key === "tool_call_id") && e >= 0)
  const idText = id === undefined ? undefined : parsed(slice(body, id))
  return {
    name: typeof name === "string" ? name : undefined,
    id: typeof idText === "string" ? idText : undefined,
    arguments: text,
  }
}

interface Span {
  readonly start: number
  readonly end: number
}

const slice = (body: string, { start, end }: Span): string =>
  body.slice(start, end < 0 ? undefined : end)

/** Some models write the arguments as a string that holds JSON. */
function argumentText(body: string, span: Span): string {
  if (body[span.start] !== '"') return slice(body, span)
  return span.end < 0 ? "" : String(parsed(slice(body, span)))
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function skip(text: string, position: number, what: RegExp): number {
  while (position < text.length && what.test(text[position] as string)) position++
  return position
}

/** `{"name": "f"` with the name of a tool. */
function startsObject(text: string, tools: ToolParameters): boolean | undefined {
  const start = text.startsWith("[") ? skip(text, 1, /\s/) : 0
  if (start >= text.length) return undefined
  if (text[start] !== "{") return false
  const end = valueEnd(text, start)
  const name = objectCall(text, start, end)?.name
  if (name !== undefined) return tools.has(name)
  return end < 0 ? undefined : false
}

/** `[f(` with the name of a tool. */
function startsPython(text: string, tools: ToolParameters): boolean | undefined {
  const match = /^\[\s*([\w.]*)\s*(\(?)/.exec(text)
  if (match === null) return false
  const [whole, name = "", paren] = match
  if (paren === "(") return tools.has(name)
  return whole.length === text.length ? undefined : false
}
