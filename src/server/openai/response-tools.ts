import type { Tool } from "../chat.ts"
import { CLIENT_TOOLS, type ResponseRequest } from "./responses-schema.ts"

/** What the model's name for a tool stands for. */
export interface KnownTool {
  readonly kind: "function" | "custom"
  readonly name: string
  readonly namespace: string | undefined
}

export interface ResponseTools {
  /** As templates have them. */
  readonly tools: readonly Tool[]
  /** By the name that the model is told. */
  readonly known: ReadonlyMap<string, KnownTool>
}

type Given = NonNullable<ResponseRequest["tools"]>[number]

/**
 * The tools that the model is told of: functions; custom tools, whose free text is a function's one argument; and those of
 * namespaces, whose name goes before theirs. Tools that nobody runs here are left out.
 */
export function responseTools(given: readonly Given[]): ResponseTools {
  const tools: Tool[] = []
  const known = new Map<string, KnownTool>()
  const add = (tool: Given, namespace: string | undefined): void => {
    const name = tool.name as string
    const told = toolName(name, namespace)
    const kind = tool.type === "custom" ? "custom" : "function"
    known.set(told, { kind, name, namespace })
    const { type: _, tools: __, format: ___, ...described } = tool
    tools.push({
      type: "function",
      function:
        kind === "function"
          ? { ...described, name: told }
          : { name: told, description: customDescription(tool), parameters: CUSTOM_PARAMETERS },
    })
  }
  for (const tool of given) {
    if (tool.type === "namespace") for (const one of tool.tools ?? []) add(one, tool.name)
    else if (CLIENT_TOOLS.has(tool.type)) add(tool, undefined)
  }
  return { tools, known }
}

export function toolName(name: string, namespace: string | undefined): string {
  return namespace === undefined ? name : `${namespace}__${name}`
}

const CUSTOM_PARAMETERS = {
  type: "object",
  properties: { input: { type: "string" } },
  required: ["input"],
}

function customDescription({ description, format }: Given): string {
  const { syntax, definition } = (format ?? {}) as { syntax?: string; definition?: string }
  const grammar =
    definition === undefined ? "" : `\nThe input follows this ${syntax} grammar:\n${definition}`
  return (typeof description === "string" ? description : "") + grammar
}

/** A custom tool's text from the arguments that the model wrote, which may not be what they should. */
export function customInput(written: string): string {
  try {
    const { input } = JSON.parse(written) as { input?: unknown }
    if (typeof input === "string") return input
  } catch {
    // the text itself is the best guess
  }
  return written
}
