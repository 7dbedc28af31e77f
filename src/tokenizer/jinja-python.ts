import { Environment, Interpreter, Template } from "@huggingface/jinja"

type Node = NonNullable<Parameters<Interpreter["evaluate"]>[0]>
/** A value of the template language; the library does not export its classes, so they are told apart by `type`. */
type Value = ReturnType<Interpreter["evaluate"]>
type Program = Template["parsed"]

/** An expression whose text is printed, as Jinja prints it: None too. */
interface Output extends Node {
  readonly type: "Output"
  readonly expression: Node
}

/** A value that has been computed already, in the place of an expression. */
interface Computed extends Node {
  readonly type: "Computed"
  readonly value: Value
}

interface Binary extends Node {
  readonly operator: { readonly value: string }
  readonly left: Node
  readonly right: Node
}

interface Filter extends Node {
  readonly operand: Node
  readonly filter: Node & { readonly value?: string; readonly callee?: { readonly value: string } }
}

interface Member extends Node {
  readonly object: Node & { readonly value?: unknown; readonly property?: Node }
  readonly property: Node & { readonly value?: unknown }
  readonly computed: boolean
}

const STATEMENTS: ReadonlySet<string> = new Set(
  "Program Set If For Macro CallStatement FilterStatement Break Continue Comment".split(" "),
)
/** Filters that make a string of whatever they are given. */
const STRING_FILTERS: ReadonlySet<string> = new Set(
  "trim upper lower title capitalize replace indent escape e string safe".split(" "),
)
/** Attributes of Python's dict, which `mapping.name` finds before the keys. */
const DICT_METHODS: ReadonlySet<string> = new Set("items keys values get".split(" "))
const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&#34;",
  "'": "&#39;",
}

/** Parses a template for `PythonInterpreter`. */
export function parseTemplate(source: string): Program {
  const program = new Template(source).parsed
  markOutputs(program)
  return program
}

function markOutputs(node: object): void {
  const fields = node as Record<string, unknown>
  for (const name of ["body", "alternate", "defaultBlock"]) {
    const list = fields[name]
    if (!Array.isArray(list)) continue
    const nodes = list as Node[]
    for (const [i, statement] of nodes.entries()) {
      if (STATEMENTS.has(statement.type)) markOutputs(statement)
      else nodes[i] = outputOf(statement)
    }
  }
}

function outputOf(expression: Node): Output {
  return { type: "Output", expression }
}

/**
 * The library's interpreter with the rules of Python that it relaxes: operands must have fitting types, equality is deep and
 * typed, None is printed, an undefined value has no members, `dict.items` is the method even where there is such a key, and
 * text marked as safe escapes what is joined to it (jinja2's Markup).
 */
export class PythonInterpreter extends Interpreter {
  readonly #safe = new WeakSet<object>()

  override evaluate(node: Node | undefined, environment: Environment): Value {
    switch (node?.type) {
      case "Output":
        return valueOf(textOf(this.evaluate((node as Output).expression, environment)))
      case "Computed":
        return (node as Computed).value
      case "BinaryExpression":
        return this.#binary(node as Binary, environment)
      case "FilterExpression":
        return this.#filter(node as Filter, environment)
      case "MemberExpression":
        return this.#member(node as Member, environment)
      default:
        return super.evaluate(node, environment)
    }
  }

  #binary(node: Binary, environment: Environment): Value {
    const operator = node.operator.value
    const left = this.evaluate(node.left, environment)
    if (operator === "and")
      return left.__bool__().value ? this.evaluate(node.right, environment) : left
    if (operator === "or")
      return left.__bool__().value ? left : this.evaluate(node.right, environment)
    const right = this.evaluate(node.right, environment)
    switch (operator) {
      case "==":
        return valueOf(equal(left, right))
      case "!=":
        return valueOf(!equal(left, right))
      case "in":
        return valueOf(contains(right, left))
      case "not in":
        return valueOf(!contains(right, left))
      case "~":
        return valueOf(textOf(left) + textOf(right))
    }
    for (const operand of [left, right])
      if (operand.type === "UndefinedValue")
        throw new Error(`an undefined value stands beside "${operator}"`)
    const numbers = isNumber(left) && isNumber(right)
    if (operator === "+" && isText(left) && isText(right)) return this.#join(left, right)
    if (operator === "*" && !numbers) return this.#repeat(left, right)
    if (["<", ">", "<=", ">="].includes(operator)) {
      const order = compare(left, right, operator)
      return valueOf(
        operator === "<"
          ? order < 0
          : operator === ">"
            ? order > 0
            : operator === "<="
              ? order <= 0
              : order >= 0,
      )
    }
    if (operator === "%" && numbers) {
      const divisor = Number(right.value)
      const rest = Number(left.value) % divisor
      if (divisor === 0) throw new Error("integer modulo by zero")
      // the sign of the divisor, as in Python
      if (rest !== 0 && rest < 0 !== divisor < 0)
        return this.#numeric("+", rest, right, environment)
    }
    const lists = operator === "+" && isList(left) && left.type === right.type
    if (!numbers && !lists)
      throw new Error(
        `unsupported operand types for ${operator}: ${nameOf(left)} and ${nameOf(right)}`,
      )
    return super.evaluate(
      { ...node, left: computed(asNumber(left)), right: computed(asNumber(right)) } as Node,
      environment,
    )
  }

  #numeric(operator: string, left: number, right: Value, environment: Environment): Value {
    return super.evaluate(
      {
        type: "BinaryExpression",
        operator: { value: operator },
        left: computed(valueOf(left)),
        right: computed(asNumber(right)),
      } as Node,
      environment,
    )
  }

  #join(left: Value, right: Value): Value {
    const isSafe = this.#safe.has(left) || this.#safe.has(right)
    const text = (value: Value): string =>
      isSafe && !this.#safe.has(value) ? escapeHtml(textOf(value)) : textOf(value)
    const joined = valueOf(text(left) + text(right))
    if (isSafe) this.#safe.add(joined)
    return joined
  }

  #repeat(left: Value, right: Value): Value {
    const [sequence, count] = left.type === "IntegerValue" ? [right, left] : [left, right]
    if (count.type !== "IntegerValue" || !(isText(sequence) || isList(sequence)))
      throw new Error(`unsupported operand types for *: ${nameOf(left)} and ${nameOf(right)}`)
    const times = Math.max(0, count.value as number)
    const length = (sequence.value as string | Value[]).length
    if (times * length > MAX_REPEATED)
      throw new Error(`a repetition of ${times * length} is longer than ${MAX_REPEATED}`)
    if (isText(sequence)) return valueOf((sequence.value as string).repeat(times))
    const repeated = valueOf([])
    repeated.value = Array.from({ length: times }, () => sequence.value as Value[]).flat()
    return repeated
  }

  #filter(node: Filter, environment: Environment): Value {
    const name = node.filter.value ?? node.filter.callee?.value ?? ""
    let operand = this.evaluate(node.operand, environment)
    const wasSafe = this.#safe.has(operand)
    if (name === "tojson" && operand.type === "UndefinedValue")
      throw new Error("an undefined value cannot be written as JSON")
    if (STRING_FILTERS.has(name) && !isText(operand)) {
      if (operand.type !== "NullValue" && operand.type !== "UndefinedValue")
        operand = valueOf(textOf(operand))
    }
    const result = super.evaluate({ ...node, operand: computed(operand) } as Node, environment)
    if (name !== "safe" && !(wasSafe && STRING_FILTERS.has(name) && name !== "string"))
      return result
    // a copy, so that a variable's own text is not marked
    const marked = valueOf(textOf(result))
    this.#safe.add(marked)
    return marked
  }

  #member(node: Member, environment: Environment): Value {
    const object = this.evaluate(node.object, environment)
    if (object.type === "UndefinedValue") {
      const what =
        node.object.type === "Identifier"
          ? `"${String(node.object.value)}"`
          : node.object.type === "MemberExpression"
            ? `the member ${JSON.stringify((node.object.property as { value?: unknown }).value ?? "asked for")}`
            : "a value"
      throw new Error(`${what} is undefined`)
    }
    if (!node.computed && object.type === "ObjectValue") {
      const name = String(node.property.value)
      const method = DICT_METHODS.has(name) ? object.builtins.get(name) : undefined
      if (method !== undefined) return method
    }
    return super.evaluate({ ...node, object: computed(object) } as Node, environment)
  }
}

/** Longer repetitions are no template's intention. */
const MAX_REPEATED = 10_000_000

function valueOf(value: unknown): Value {
  return new Environment().set("value", value)
}

function computed(value: Value): Computed {
  return { type: "Computed", value }
}

function isText(value: Value): boolean {
  return value.type === "StringValue"
}

function isList(value: Value): boolean {
  return value.type === "ArrayValue" || value.type === "TupleValue"
}

function isNumber(value: Value): boolean {
  return ["IntegerValue", "FloatValue", "BooleanValue"].includes(value.type)
}

/** Booleans count as 0 and 1 where numbers are asked for. */
function asNumber(value: Value): Value {
  return value.type === "BooleanValue" ? valueOf(Number(value.value)) : value
}

function textOf(value: Value): string {
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
function nameOf(value: Value): string {
  return value.type.replace(/Value$/, "").toLowerCase()
}

function equal(a: Value, b: Value): boolean {
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

function contains(container: Value, item: Value): boolean {
  if (isList(container)) return (container.value as Value[]).some((each) => equal(each, item))
  if (container.type === "ObjectValue")
    return (container.value as Map<unknown, Value>).has(item.value)
  if (isText(container) && isText(item))
    return (container.value as string).includes(item.value as string)
  if (container.type === "UndefinedValue") return false
  throw new Error(`"in" has ${nameOf(container)} on its right and ${nameOf(item)} on its left`)
}

function compare(a: Value, b: Value, operator: string): number {
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

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (char) => ENTITIES[char]!)
}
