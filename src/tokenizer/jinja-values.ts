import { Environment, type Interpreter } from "@huggingface/jinja"

export type Node = NonNullable<Parameters<Interpreter["evaluate"]>[0]>
/** A value of the template language; the library does not export its classes, so they are told apart by `type`. */
export type Value = ReturnType<Interpreter["evaluate"]>

/** A value that has been computed already, in the place of an expression. */
export interface Computed extends Node {
  readonly type: "Computed"
  readonly value: Value
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&#34;",
  "'": "&#39;",
}

export function valueOf(value: unknown): Value {
  return new Environment().set("value", value)
}

export function computed(value: Value): Computed {
  return { type: "Computed", value }
}

/** A list of values that exist already. */
export function listOf(items: readonly Value[]): Value {
  const list = valueOf([])
  list.value = [...items]
  return list
}

/** What a loop or a filter goes through: items, keys or characters; nothing where there is nothing. */
export function itemsOf(value: Value): readonly Value[] {
  if (isList(value)) return value.value as Value[]
  if (isText(value)) return [...(value.value as string)].map(valueOf)
  if (value.type === "ObjectValue")
    return [...(value.value as Map<unknown, Value>).keys()].map(valueOf)
  if (value.type === "UndefinedValue") return []
  throw new Error(`${nameOf(value)} cannot be iterated over`)
}

export function isText(value: Value): boolean {
  return value.type === "StringValue"
}

export function isList(value: Value): boolean {
  return value.type === "ArrayValue" || value.type === "TupleValue"
}

export function isNumber(value: Value): boolean {
  return ["IntegerValue", "FloatValue", "BooleanValue"].includes(value.type)
}

/** Booleans count as 0 and 1 where numbers are asked for. */
export function asNumber(value: Value): Value {
  return value.type === "BooleanValue" ? valueOf(Number(value.value)) : value
}

export function textOf(value: Value): string {
  switch (value.type) {
    case "StringValue":
      return value.value as string
    case "NullValue":
      return "None"
    case "UndefinedValue":
      return ""
    default:
      return value.toString()
  }
}

/** Python's name of the type, for messages. */
export function nameOf(value: Value): string {
  return value.type.replace(/Value$/, "").toLowerCase()
}

export function equal(a: Value, b: Value): boolean {
  if (isNumber(a) && isNumber(b)) return Number(a.value) === Number(b.value)
  if (a.type !== b.type) return false
  if (isList(a)) {
    const [left, right] = [a.value as Value[], b.value as Value[]]
    return left.length === right.length && left.every((item, i) => equal(item, right[i]!))
  }
  if (a.type === "ObjectValue") {
    const [left, right] = [a.value as Map<string, Value>, b.value as Map<string, Value>]
    return (
      left.size === right.size &&
      [...left].every(([key, item]) => right.has(key) && equal(item, right.get(key)!))
    )
  }
  return a.value === b.value
}

export function contains(container: Value, item: Value): boolean {
  if (isList(container)) return (container.value as Value[]).some((each) => equal(each, item))
  if (container.type === "ObjectValue")
    return (container.value as Map<unknown, Value>).has(item.value)
  if (isText(container) && isText(item))
    return (container.value as string).includes(item.value as string)
  if (container.type === "UndefinedValue") return false
  throw new Error(`"in" has ${nameOf(container)} on its right and ${nameOf(item)} on its left`)
}

export function compare(a: Value, b: Value, operator: string): number {
  if (isNumber(a) && isNumber(b)) return Number(a.value) - Number(b.value)
  if (isText(a) && isText(b)) {
    const [left, right] = [[...(a.value as string)], [...(b.value as string)]]
    for (let i = 0; i < left.length && i < right.length; i++)
      if (left[i] !== right[i]) return left[i]!.codePointAt(0)! - right[i]!.codePointAt(0)!
    return left.length - right.length
  }
  if (isList(a) && a.type === b.type) {
    const [left, right] = [a.value as Value[], b.value as Value[]]
    for (let i = 0; i < left.length && i < right.length; i++)
      if (!equal(left[i]!, right[i]!)) return compare(left[i]!, right[i]!, operator)
    return left.length - right.length
  }
  throw new Error(`unsupported operand types for ${operator}: ${nameOf(a)} and ${nameOf(b)}`)
}

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (char) => ENTITIES[char]!)
}
