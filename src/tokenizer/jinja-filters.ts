import {
  asNumber,
  compare,
  contains,
  equal,
  escapeHtml,
  isText,
  itemsOf,
  listOf,
  textOf,
  type Value,
  valueOf,
} from "./jinja-values.ts"

/** What a filter may ask of the interpreter. */
interface Around {
  readonly apply: (filter: string, value: Value, args: readonly Value[]) => Value
  readonly test: (test: string, value: Value, args: readonly Value[]) => boolean
}

/** Undefined where the library's own does. */
type Filter = (
  operand: Value,
  args: readonly Value[],
  named: ReadonlyMap<string, Value>,
  around: Around,
) => Value | undefined

/** A member by a dotted path, as `attribute=` takes it. */
function memberOf(value: Value, path: Value | undefined): Value {
  let member = value
  for (const name of textOf(path ?? valueOf("")).split(".")) {
    const key = /^\d+$/.test(name) ? Number(name) : name
    const found =
      member.type === "ObjectValue"
        ? (member.value as Map<string | number, Value>).get(name)
        : typeof key === "number" && Array.isArray(member.value)
          ? (member.value as Value[])[key]
          : undefined
    if (found === undefined) return valueOf(undefined)
    member = found
  }
  return member
}

/** Tests that compare, by Python's rules; the library's are JavaScript's. */
function passes(value: Value, args: readonly Value[], around: Around): boolean {
  const [test, ...rest] = args
  if (test === undefined) return value.__bool__().value
  const other = rest[0] ?? valueOf(undefined)
  switch (textOf(test)) {
    case "equalto":
    case "eq":
    case "==":
      return equal(value, other)
    case "ne":
    case "!=":
      return !equal(value, other)
    case "in":
      return contains(other, value)
    case "gt":
    case ">":
      return compare(value, other, ">") > 0
    case "ge":
    case ">=":
      return compare(value, other, ">=") >= 0
    case "lt":
    case "<":
      return compare(value, other, "<") < 0
    case "le":
    case "<=":
      return compare(value, other, "<=") <= 0
    default:
      return around.test(textOf(test), value, rest)
  }
}

function chosen(keeps: boolean): Filter {
  return (operand, args, _named, around) =>
    operand.type === "NullValue"
      ? undefined
      : listOf(itemsOf(operand).filter((item) => passes(item, args, around) === keeps))
}

function chosenByMember(keeps: boolean): Filter {
  return (operand, [path, ...args], _named, around) =>
    operand.type === "NullValue"
      ? undefined
      : listOf(
          itemsOf(operand).filter((item) => passes(memberOf(item, path), args, around) === keeps),
        )
}

function rounded(value: number, digits: number, method: string): number {
  const scale = 10 ** digits
  if (method === "ceil") return Math.ceil(value * scale) / scale
  if (method === "floor") return Math.floor(value * scale) / scale
  // halves to the even neighbour, as Python rounds
  const scaled = value * scale
  const whole = Math.round(scaled)
  const isHalf = Math.abs(scaled % 1) === 0.5
  return (isHalf && whole % 2 !== 0 ? whole - 1 : whole) / scale
}

/** Filters that the library lacks or has only for some operands and arguments. */
export const FILTERS: ReadonlyMap<string, Filter> = new Map<string, Filter>(
  Object.entries<Filter>({
    select: chosen(true),
    reject: chosen(false),
    selectattr: chosenByMember(true),
    rejectattr: chosenByMember(false),
    map: (operand, args, named, around) => {
      if (operand.type === "NullValue") return undefined
      const path = named.get("attribute")
      const [filter, ...rest] = args
      const items = itemsOf(operand)
      if (path === undefined && filter === undefined) return undefined
      if (path === undefined)
        return listOf(items.map((item) => around.apply(textOf(filter!), item, rest)))
      return listOf(
        items.map((item) => {
          const member = memberOf(item, path)
          return member.type === "UndefinedValue" ? (named.get("default") ?? member) : member
        }),
      )
    },
    join: (operand, args, named) => {
      if (operand.type === "NullValue") return undefined
      const path = named.get("attribute") ?? args[1]
      const items = itemsOf(operand).map((item) =>
        path === undefined ? item : memberOf(item, path),
      )
      return valueOf(items.map(textOf).join(textOf(args[0] ?? named.get("d") ?? valueOf(""))))
    },
    sum: (operand, args, named) => {
      const path = named.get("attribute") ?? args[0]
      const items = itemsOf(operand).map((item) =>
        path === undefined ? item : memberOf(item, path),
      )
      return items.every((item) => item.type === "IntegerValue" || item.type === "BooleanValue")
        ? valueOf(items.reduce((sum, item) => sum + Number(asNumber(item).value), 0))
        : undefined
    },
    first: (operand) => itemsOf(operand)[0] ?? valueOf(undefined),
    last: (operand) => itemsOf(operand).at(-1) ?? valueOf(undefined),
    list: (operand) => (operand.type === "NullValue" ? undefined : listOf(itemsOf(operand))),
    d: (operand, args, named, around) =>
      around.apply("default", operand, [...args, ...(named.has("boolean") ? [valueOf(true)] : [])]),
    e: (operand) => valueOf(escapeHtml(textOf(operand))),
    escape: (operand) => valueOf(escapeHtml(textOf(operand))),
    trim: (operand, [chars]) =>
      chars === undefined || !isText(operand)
        ? undefined
        : valueOf(strip(operand.value as string, textOf(chars))),
    wordcount: (operand) => valueOf(textOf(operand).match(/[\p{L}\p{N}_]+/gu)?.length ?? 0),
    batch: (operand, [size]) => {
      const items = itemsOf(operand)
      const count = Number(size?.value)
      if (!(count > 0)) throw new Error("batch needs a size above 0")
      return listOf(
        Array.from({ length: Math.ceil(items.length / count) }, (_, i) =>
          listOf(items.slice(i * count, (i + 1) * count)),
        ),
      )
    },
    round: (operand, args, named) => {
      const value = Number(operand.value)
      const digits = Number((args[0] ?? named.get("precision"))?.value ?? 0)
      const method = textOf(args[1] ?? named.get("method") ?? valueOf("common"))
      const result = valueOf(0.5)
      result.value = rounded(value, digits, method)
      return result
    },
  }),
)

function strip(text: string, chars: string): string {
  let start = 0
  let end = text.length
  while (start < end && chars.includes(text[start]!)) start++
  while (end > start && chars.includes(text[end - 1]!)) end--
  return text.slice(start, end)
}

type Method = (text: string, ...args: unknown[]) => unknown

/** Methods of Python's str that the library lacks. */
export const STRING_METHODS: ReadonlyMap<string, Method> = new Map<string, Method>(
  Object.entries<Method>({
    find: (text, part) => text.indexOf(String(part)),
    rfind: (text, part) => text.lastIndexOf(String(part)),
    index: (text, part) => {
      const at = text.indexOf(String(part))
      if (at < 0) throw new Error("substring not found")
      return at
    },
    count: (text, part) => text.split(String(part)).length - 1,
    rsplit: (text, separator, limit) => {
      const parts = text.split(String(separator ?? " "))
      const most = typeof limit === "number" && limit >= 0 ? limit : Infinity
      if (parts.length - 1 <= most) return parts
      const cut = parts.length - most
      return [parts.slice(0, cut).join(String(separator)), ...parts.slice(cut)]
    },
    isdigit: (text) => /^\p{Nd}+$/u.test(text),
    isalpha: (text) => /^\p{L}+$/u.test(text),
    isalnum: (text) => /^[\p{L}\p{N}]+$/u.test(text),
    isspace: (text) => /^\p{White_Space}+$/u.test(text),
    isupper: (text) => text !== text.toLowerCase() && text === text.toUpperCase(),
    islower: (text) => text !== text.toUpperCase() && text === text.toLowerCase(),
    removeprefix: (text, part) =>
      text.startsWith(String(part)) ? text.slice(String(part).length) : text,
    removesuffix: (text, part) =>
      part !== "" && text.endsWith(String(part)) ? text.slice(0, -String(part).length) : text,
    splitlines: (text) => {
      const lines = text.split(/\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/)
      if (lines.at(-1) === "") lines.pop()
      return lines
    },
    zfill: (text, width) =>
      text.replace(/^[+-]?/, (sign) => sign + "0".repeat(Math.max(0, Number(width) - text.length))),
  }),
)
