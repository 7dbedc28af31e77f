import { type CallBody, closeAfter, type PartialCall, type ToolParameters } from "./answer.ts"

/** How a format writes name and arguments as elements. */
export interface XmlMarkup {
  /** From the call's start to the end of its name (group `name`). */
  readonly head: RegExp
  /** One argument up to its value: group `key`, and `type` where the markup says it. */
  readonly open: RegExp
  readonly close: string
  /** The argument of the format's example, a = 1. */
  readonly example: string
  /** A line break after the opening and before the closing tag is not the value's. */
  readonly trimLines?: boolean
}

const DSML = "\uff5cDSML\uff5c"
const DSML_MARKUP: XmlMarkup = {
  head: /^\s*name="(?<name>[^"]+)"\s*>/,
  open: new RegExp(
    `<${DSML}parameter name="(?<key>[^"]+)"(?: string="(?<type>true|false)")?\\s*>`,
    "g",
  ),
  close: `</${DSML}parameter>`,
  example: `<${DSML}parameter name="a" string="false">1</${DSML}parameter>`,
}
const FUNCTION_MARKUP: XmlMarkup = {
  head: /^\s*<function=(?<name>[^>\s]+)\s*>/,
  open: /<parameter=(?<key>[^>]+)>/g,
  close: "</parameter>",
  example: "<parameter=a>1</parameter>",
  trimLines: true,
}

export const XML_MARKUP: Readonly<Record<string, XmlMarkup>> = {
  glm: {
    head: /^\s*(?<name>[^<\s][^<\n]*?)\s*(?=\n|<arg_key>|<\/tool_call>)/,
    open: /<arg_key>\s*(?<key>[^<]*?)\s*<\/arg_key>\s*<arg_value>/g,
    close: "</arg_value>",
    example: "<arg_key>a</arg_key>\n<arg_value>1</arg_value>",
  },
  seed: FUNCTION_MARKUP,
  "qwen3-coder": { ...FUNCTION_MARKUP, example: "<parameter=a>\n1\n</parameter>" },
  "minimax-m2": {
    head: /^\s*name="?(?<name>[^">]+)"?\s*>/,
    open: /<parameter name="?(?<key>[^">]+)"?\s*>/g,
    close: "</parameter>",
    example: '<parameter name="a">1</parameter>',
  },
  "minimax-m3": {
    head: /^\s*name="?(?<name>[^">]+)"?\s*>/,
    open: /\]<\]minimax\[>\[<(?<key>[^/>\s]+)>/g,
    close: "]<]minimax[>[</",
    example: "]<]minimax[>[<a>1]<]minimax[>[</a>",
  },
  "deepseek-dsml-tool-calls": DSML_MARKUP,
  "deepseek-dsml-function-calls": DSML_MARKUP,
  minicpm: {
    head: /^\s*name="(?<name>[^"]+)"\s*>/,
    open: /<param name="(?<key>[^"]+)"\s*>/g,
    close: "</param>",
    example: '<param name="a">1</param>',
  },
  "kimi-k3": {
    head: /^\s*"?(?<name>[^"\s<]+)"?[^<]*<\|sep\|>/,
    open: /<\|open\|>argument key="(?<key>[^"]+)"(?: type="(?<type>[^"]*)")?[^<]*<\|sep\|>/g,
    close: "<|close|>argument<|sep|>",
    example: '<|open|>argument key="a" type="number"<|sep|>1<|close|>argument<|sep|>',
  },
}

/**
 * Name and arguments written as elements. Values are strings where the tool's schema (or the markup) says so; others are
 * JSON, and strings where they are none. A string is passed on as it comes, everything else once it is complete.
 */
export function readXml(
  body: string,
  isEnd: boolean,
  close: string,
  markup: XmlMarkup,
  tools: ToolParameters,
): CallBody {
  const head = markup.head.exec(body)
  if (head === null) return { calls: [], end: closeAfter(body, 0, close, isEnd) }
  const name = head.groups?.["name"] ?? ""
  let text = "{"
  let position = head[0].length
  let separator = ""
  const call = (args: string): PartialCall => ({ name, id: undefined, arguments: args })
  for (;;) {
    markup.open.lastIndex = position
    const open = markup.open.exec(body)
    const ends = body.indexOf(close, position)
    if (open === null || (ends >= 0 && ends < open.index)) {
      const end = closeAfter(body, position, close, isEnd)
      return { calls: [call(end < 0 ? text : `${text}}`)], end }
    }
    const { key = "", type } = open.groups ?? {}
    const start = open.index + open[0].length
    const stop = body.indexOf(markup.close, start)
    const isString = isStringValue(tools.get(name), key, type)
    const known = text.length
    text += `${separator}${JSON.stringify(key)}: `
    separator = ", "
    if (stop < 0 && isString) {
      const rest = partialString(body.slice(start), markup)
      return { calls: [call(text + rest + (isEnd ? '"}' : ""))], end: isEnd ? body.length : -1 }
    }
    if (stop < 0) {
      // shown once it is complete
      const before = `${text.slice(0, known)}${isEnd ? "}" : ""}`
      return { calls: [call(before)], end: isEnd ? body.length : -1 }
    }
    const value = trimmed(body.slice(start, stop), markup)
    text += isString ? JSON.stringify(value) : jsonOrString(value)
    position = stop + markup.close.length
  }
}

function isStringValue(
  schema: Readonly<Record<string, unknown>> | undefined,
  key: string,
  type: string | undefined,
): boolean {
  if (type === "true" || type === "string") return true
  if (type !== undefined) return false
  const properties = schema?.["properties"] as Record<string, { type?: unknown }> | undefined
  return properties?.[key]?.type === "string"
}

function trimmed(value: string, { trimLines }: XmlMarkup): string {
  return trimLines === true ? value.replace(/^\r?\n/, "").replace(/\r?\n$/, "") : value
}

function jsonOrString(value: string): string {
  const text = value.trim()
  try {
    JSON.parse(text)
    return text
  } catch {
    if (/^(True|False|None)$/.test(text)) return text === "None" ? "null" : text.toLowerCase()
    return JSON.stringify(value)
  }
}

/** A string that has no end yet, without what might be the beginning of its closing tag. */
function partialString(value: string, markup: XmlMarkup): string {
  let text = markup.trimLines === true ? value.replace(/^\r?\n/, "") : value
  const tail = `\n${markup.close}`
  for (let n = Math.min(tail.length, text.length); n > 0; n--) {
    const end = text.slice(-n)
    if (tail.startsWith(end) || markup.close.startsWith(end)) {
      text = text.slice(0, -n)
      break
    }
  }
  return JSON.stringify(text).slice(0, -1)
}
