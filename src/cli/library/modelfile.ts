import { FormatError } from "../../errors.ts"

/** A Modelfile's lines, as Ollama's format has them. */
export interface Modelfile {
  readonly from: string
  readonly system?: string
  readonly template?: string
  readonly parameters: Readonly<Record<string, string | number | boolean | readonly string[]>>
  readonly messages: readonly { readonly role: string; readonly content: string }[]
  readonly license: readonly string[]
}

const COMMANDS = ["FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE"]

/** @throws FormatError naming file and line */
export function parseModelfile(file: string, text: string): Modelfile {
  const parameters: Record<string, string | number | boolean | string[]> = {}
  const messages: { role: string; content: string }[] = []
  const license: string[] = []
  let from: string | undefined
  let system: string | undefined
  let template: string | undefined
  for (const { line, command, value } of instructions(file, text)) {
    const fail = (reason: string): never => {
      throw new FormatError(`${file}:${line}`, reason)
    }
    switch (command) {
      case "FROM":
        from = value
        break
      case "SYSTEM":
        system = value
        break
      case "TEMPLATE":
        template = value
        break
      case "LICENSE":
        license.push(value)
        break
      case "MESSAGE": {
        const [, role, content] = /^(system|user|assistant)\s+([^]*)$/.exec(value) ?? []
        if (role === undefined || content === undefined)
          return fail("MESSAGE needs system, user or assistant, and a text")
        messages.push({ role, content: unquoted(content) })
        break
      }
      case "PARAMETER": {
        const [, name, given] = /^(\w+)\s+([^]*)$/.exec(value) ?? []
        if (name === undefined || given === undefined)
          return fail("PARAMETER needs a name and a value")
        const one = unquoted(given)
        if (name === "stop") parameters["stop"] = [...((parameters["stop"] as string[]) ?? []), one]
        else parameters[name] = scalar(one)
        break
      }
      default:
        fail("ADAPTER: adapters are not supported: merge them into the weights")
    }
  }
  if (from === undefined) throw new FormatError(file, "has no FROM line")
  return {
    from,
    parameters,
    messages,
    license,
    ...(system === undefined ? {} : { system }),
    ...(template === undefined ? {} : { template }),
  }
}

interface Instruction {
  readonly line: number
  readonly command: string
  readonly value: string
}

/** A command and its value, which goes over several lines between triple quotes. */
function* instructions(file: string, text: string): Generator<Instruction> {
  const lines = text.split(/\r?\n/)
  for (let i = 0; i < lines.length; i++) {
    const line = (lines[i] as string).trim()
    if (line === "" || line.startsWith("#")) continue
    const [, word = "", rest = ""] = /^(\S+)\s*([^]*)$/.exec(line) ?? []
    const command = word.toUpperCase()
    const number = i + 1
    if (!COMMANDS.includes(command))
      throw new FormatError(`${file}:${number}`, `unknown command ${JSON.stringify(word)}`, {
        hint: `known are ${COMMANDS.join(", ")}`,
      })
    let value = rest
    const open = value.indexOf('"""')
    if (open >= 0) {
      let end = value.indexOf('"""', open + 3)
      while (end < 0) {
        if (++i >= lines.length) throw new FormatError(`${file}:${number}`, 'no closing """')
        value += `\n${lines[i]}`
        end = value.indexOf('"""', open + 3)
      }
      value = value.slice(0, open) + value.slice(open + 3, end)
    } else if (command !== "PARAMETER" && command !== "MESSAGE") value = unquoted(value)
    if (value.trim() === "" && command !== "SYSTEM" && command !== "TEMPLATE")
      throw new FormatError(`${file}:${number}`, `${command} has no value`)
    yield { line: number, command, value }
  }
}

function unquoted(text: string): string {
  const trimmed = text.trim()
  return /^".*"$/s.test(trimmed) && trimmed.length > 1 ? trimmed.slice(1, -1) : trimmed
}

function scalar(text: string): string | number | boolean {
  if (/^(true|false)$/i.test(text)) return text.toLowerCase() === "true"
  const value = Number(text)
  return text === "" || Number.isNaN(value) ? text : value
}
